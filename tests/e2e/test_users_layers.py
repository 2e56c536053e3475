"""Layers of installed packages in a real hub: one that works, and one that fails in every way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.clients import (
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    fetch,
    in_time,
    message,
    stuffed,
    unique_ids,
)
from tests.support.commands import metad
from tests.support.hub import Hub, HubError, address

_spec = importlib.util.spec_from_file_location(
    "layer_example", Path(__file__).parents[1] / "layers" / "test_example.py"
)
example = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(example)

# Fails at the point given by the mailbox's number: 2 verdict, 3 write, 4 commit, 5 done with
# nonsense, 6 done twice, 7 open_mailbox, 8 fetch, 9 delete; 10 works.
FAILING = """
from metad.layers.base import Incoming, Layer, Maildrop
from metad.store.ids import HubClock, IdMaker
from metad.system.osio import Osio

BODY = b"Subject: x\\r\\n\\r\\n.\\r\\n"

class In(Incoming):
    def write(self, chunk):
        if b"fail to write" in chunk:
            raise ZeroDivisionError("a write")
    def commit(self, envelope, done):
        mailbox = envelope.recipients[0].mailbox
        if mailbox == 4:
            raise KeyError("a commit\\nin two lines")
        if mailbox == 5:
            done(ValueError("no RefusedError"))
        done(None)
        if mailbox == 6:
            done(None)
    def abort(self):
        raise RuntimeError("an abort")

class Drop(Maildrop):
    octets = 14
    def __init__(self, mailbox):
        self.mailbox = mailbox
    def __len__(self):
        return 1
    def size(self, number):
        return 14
    def uid(self, number):
        return "u1"
    def fetch(self, number, most):
        if self.mailbox == 8:
            raise LookupError("a fetch")
        return [BODY]
    def delete(self, numbers, done):
        if self.mailbox == 9:
            raise LookupError("a deletion")
        done(None)
    def close(self):
        raise RuntimeError("a close")

class Failing(Layer):
    name = "failing"
    def start(self, context):
        self.ids = IdMaker(HubClock(Osio(), context.area.clock_offset), context.row.index)
    def stop(self):
        pass
    def next_id(self):
        return self.ids.next()
    def check_mailbox(self, mailbox):
        if mailbox == 2:
            raise TypeError("a check")
    def begin(self):
        return In()
    def open_mailbox(self, mailbox):
        if mailbox == 7:
            raise OSError("an opening")
        return Drop(mailbox)
    def tick(self):
        raise ArithmeticError("a tick")

class NoStart(Failing):
    def start(self, context):
        raise FloatingPointError("cannot begin")

class NoOptions(Failing):
    @classmethod
    def check_options(cls, options, data):
        raise BufferError("no options")
"""


@pytest.fixture
def packages(monkeypatch):
    """A directory that the hub imports from, with the example and the failing layers."""
    made = []

    def install(hub):
        target = hub.home / "packages"
        target.mkdir()
        example.install(target)
        (target / "failing.py").write_text(FAILING)
        info = target / "failing-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[metad.layers]\nfailing = failing:Failing\nno-start = failing:NoStart\n"
            "no-options = failing:NoOptions\nbroken = failing:Nothing\n"
        )
        target.chmod(0o755)
        monkeypatch.setenv("PYTHONPATH", str(target))
        made.append(target)
        return hub

    return install


def test_a_layer_of_an_installed_package_is_a_hub(packages):
    with packages(Hub(["ann", "bob"], layer="files")) as hub:
        sent = [message(), message(b""), message(b"y" * 200_000 + b"\r\n")]
        for one in sent:
            deliver(hub, one, "ann", "bob")
        assert bodies(hub, "ann") == sent
        before = unique_ids(hub, "bob")
        fetch(hub, "bob", delete=True)
        hub.restart()
        assert bodies(hub, "ann") == sent
        assert unique_ids(hub, "bob") == []
        assert len(set(before)) == 3
        assert hub.status()["messages"] == 0


def test_mail_is_imported_into_any_layer(packages):
    with packages(Hub(["ann"], layer="files")) as hub:
        path = hub.home / "in.mbox"
        path.write_bytes(b"From a Mon Nov 23 12:00:00 2026\nSubject: one\n\nbody\n\n")
        done = metad(hub, "mail", "import", address("ann"), "--from", f"mbox:{path}", "--json")
        assert json.loads(done.stdout)["imported"] == 1
        assert fetch(hub, "ann")[0].endswith(b"Subject: one\r\n\r\nbody\r\n")


def attempt(hub, name, body=b""):
    """The replies to RCPT and to the end of the data of one message."""
    with SmtpLine(hub) as smtp:
        smtp.say("MAIL FROM:<>")
        smtp.send(f"RCPT TO:<{address(name)}>\r\n".encode())
        accepted = smtp.line()
        if not accepted.startswith(b"250"):
            smtp.say("NOOP")
            return accepted, b""
        smtp.say("DATA", b"354")
        smtp.send(stuffed(message(body)))
        kept = smtp.line()
        smtp.say("NOOP")
        return accepted, kept


def test_a_layer_that_raises_costs_that_message_a_451_and_never_the_worker(packages):
    names = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    with packages(Hub(names, layer="failing")) as hub:
        pids = [worker["pid"] for worker in hub.status()["workers"]]
        for _ in range(6):
            assert attempt(hub, "two")[0].startswith(b"451 4.3.0")
            assert attempt(hub, "three", b"fail to write\r\n")[1].startswith(b"451 4.3.0")
            for name in ("four", "five"):
                assert attempt(hub, name)[1].startswith(b"451 4.3.0")
            for name in ("six", "ten"):
                assert attempt(hub, name)[1].startswith(b"250")
            with Pop3Line(hub) as pop:
                pop.log_in("seven", answer=b"-ERR [SYS/TEMP]")
                pop.log_in("eight")
                pop.say("RETR 1", b"-ERR [SYS/TEMP]")
                pop.say("TOP 1 0", b"-ERR [SYS/TEMP]")
                pop.say("QUIT")
            with Pop3Line(hub) as pop:
                pop.log_in("nine")
                pop.say("DELE 1")
                pop.say("QUIT", b"-ERR [SYS/TEMP]")
            assert fetch(hub, "ten") == [b"Subject: x\r\n\r\n"]
        assert [worker["pid"] for worker in hub.status()["workers"]] == pids
        log = hub.log.read_text()
        assert "ZeroDivisionError('a write')" in log
        ticked = "warning: layer: ArithmeticError('a tick')"
        assert in_time(lambda: ticked in hub.log.read_text())


@pytest.mark.parametrize(
    ("layer", "options", "reason", "code"),
    [("no-such", "", "there is no layer no-such", 78), ("broken", "", "cannot be loaded", 78),
     ("no-options", "", "no-options failed: BufferError", 78),
     ("files", 'root = "here"', "layer: root: must be an absolute path", 78),
     ("sort", 'template = "../{id}"', "layer: template: must be a relative path", 78),
     ("log", "x = 1", "knows no setting x", 78),
     ("no-start", "", "FloatingPointError", None)],
)  # fmt: skip
def test_a_layer_that_cannot_begin_stops_the_start_with_a_word(
    packages, layer, options, reason, code
):
    hub = packages(Hub(["ann"], settings=f"[layer]\n{options}", layer=layer))
    try:
        with pytest.raises(HubError):
            hub.start()
        log = hub.log.read_text()
        assert reason in log
        assert "Traceback" not in log
        if code:
            done = hub.run("start", check=False)
            assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    finally:
        hub.process = None
        hub.close()
        shutil.rmtree(hub.home)


def test_sort_puts_mail_elsewhere_even_when_workers_are_confined():
    with Hub(["ann", "bob"], layer="sort") as hub:
        root = hub.home / "vhosts"
        root.mkdir()
        os.chown(root, hub.data.stat().st_uid, -1)
        hub.stop()
        ports = hub.smtp_port, hub.pop3_port
        text = hub.config.read_text()
        lines = f'[layer]\nroot = {json.dumps(str(root))}\ntemplate = "{{domain}}/{{id}}"\n'
        hub.config.write_text(text + lines)
        hub.start()
        assert (hub.smtp_port, hub.pop3_port) == ports
        deliver(hub, message(), "ann", "bob")
        files = sorted(root.glob("example.test/*/new/*"))
        assert [path.parts[-3] for path in files] == ["2", "3"]
        with Pop3Line(hub) as pop:
            pop.log_in("ann", answer=b"-ERR [SYS/PERM]")
