"""metad trace on a real hub: live, across workers and TLS, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from metad.cli.attached import ask_all
from metad.errors import EX_UNAVAILABLE, EX_USAGE
from tests.support.clients import Pop3Line, SmtpLine, deliver, message, stranger
from tests.support.hub import DEADLINE, METAD, PASSWORD, Hub, address, lines_of
from tests.support.live import LiveHub


class Trace:
    """A running `metad trace --json`."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.seen: list[dict] = []
        self._lines = lines_of(process.stdout.fileno(), DEADLINE)

    def until(self, text: str, side: str = "") -> list[dict]:
        """Everything up to a line with `text`."""
        for line in self._lines:
            self.seen.append(json.loads(line))
            if text in self.seen[-1]["text"] and self.seen[-1]["side"].startswith(side):
                return self.seen
        raise AssertionError(f"never: {text}; but {self.texts()}")

    def texts(self) -> list[str]:
        return [f"{one['side']}: {one['text']}" for one in self.seen]


@contextmanager
def tracing(hub: Hub, what: str, *options: str) -> Iterator[Trace]:
    """A trace that has begun: every worker has received the request."""
    command = [METAD, "trace", what, "--json", *options, "--config", str(hub.config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        trace = Trace(process)
        wait_begun(hub, process)
        yield trace
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, b"")


def wait_begun(hub: Hub, process: subprocess.Popen) -> None:
    """It is connected with every worker, and each has read what it wants: a worker that answers us
    has read what came before."""
    workers = len(hub.workers())
    for _ in range(2000):
        try:
            links = [
                os.readlink(f"/proc/{process.pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{process.pid}/fd")
            ]
        except OSError:
            links = []
        if sum(link.startswith("socket:") for link in links) >= workers and _sent(process):
            silent = ask_all(hub.data, {"command": "who"}, lambda line: None, DEADLINE)
            assert not silent
            return
        if process.poll() is not None:
            return
        signal.sigtimedwait([], 0.01)
    raise AssertionError("the trace does not begin")


def _sent(process: subprocess.Popen) -> bool:
    """It waits in poll or epoll: so its requests are sent."""
    with open(f"/proc/{process.pid}/wchan") as file:
        return "poll" in file.read()


def test_a_client_is_followed_live_without_credentials_and_content(hub, mailbox):
    here = stranger()
    with tracing(hub, here) as trace:
        with SmtpLine(hub, source=here) as smtp:
            smtp.deliver(message(b"private words\r\n"), mailbox)
            smtp.say("QUIT", b"221")
        trace.until("closed")
        with Pop3Line(hub, here) as pop3:
            pop3.log_in(mailbox)
            assert b"private words" in pop3.retrieve(1)
            pop3.say("QUIT")
        deliver(hub, message(), mailbox)  # of another client
        trace.until("QUIT")
        trace.until("closed")
        texts = trace.texts()
    assert texts[1].startswith("S: 220 ")
    assert f"C: RCPT TO:<{address(mailbox)}>" in texts
    assert any(text.startswith("C: [a message of ") for text in texts)
    assert any(text.startswith("S: [a message of ") for text in texts)
    assert "C: PASS [hidden]" in texts
    assert "private words" not in "".join(texts)
    assert PASSWORD not in "".join(texts)
    assert {one["client"] for one in trace.seen} == {here}
    assert len({one["session"] for one in trace.seen}) == 2


def test_an_address_is_followed_from_the_line_that_names_it_with_what_came_before(hub, boxes):
    wanted, other = next(boxes), next(boxes)
    with tracing(hub, address(wanted)) as trace:
        deliver(hub, message(), other)
        deliver(hub, message(), wanted)
        trace.until("closed")
        with Pop3Line(hub) as pop3:
            pop3.log_in(wanted)
            pop3.say("QUIT")
        trace.until("closed")
    texts = trace.texts()
    assert address(other) not in "".join(texts)
    assert texts[0].startswith("-: followed since its begin")
    assert texts[1].startswith("S: 220 ")
    assert f"C: RCPT TO:<{address(wanted)}>" in texts
    assert f"C: USER {address(wanted)}" in texts


def test_an_open_session_is_followed_between_two_commands(hub, mailbox):
    here = stranger()
    with SmtpLine(hub, source=here) as smtp, Pop3Line(hub, here) as pop3:
        pop3.log_in(mailbox)
        smtp.say("MAIL FROM:<>")
        smtp.say(f"RCPT TO:<{address(mailbox)}>")
        smtp.say("DATA", b"354")
        with tracing(hub, here) as trace:
            pop3.say("NOOP")
            trace.until("NOOP", "C")
            smtp.send(b"within a message\r\n.\r\n")
            smtp.reply(b"250")
            # Followed a moment later: when it is, the next command shows.
            while not any(one["text"].startswith("RSET") for one in trace.seen):
                signal.sigtimedwait([], 0.02)
                smtp.say("RSET")
                pop3.say("NOOP")
                trace.until("NOOP", "C")
        assert "within a message" not in "".join(trace.texts())
        smtp.say("NOOP")  # continues without the tap
        pop3.say("NOOP")


def test_the_dialog_under_tls_is_followed_too(hub_with_tls):
    hub = hub_with_tls
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tracing(hub, "127.0.0.1") as trace:
        with SmtpLine(hub) as smtp:
            smtp.say("STARTTLS", b"220")
            secure = context.wrap_socket(smtp.socket)
            secure.sendall(b"EHLO under.tls.test\r\n")
            secure.recv(4096)
            secure.sendall(b"QUIT\r\n")
            secure.recv(4096)
            secure.close()
        trace.until("closed")
    texts = trace.texts()
    assert "C: STARTTLS" in texts
    assert any(text.startswith("-: secured: TLS_") for text in texts)
    assert "C: EHLO under.tls.test" in texts


@pytest.fixture(scope="module")
def hub_with_tls():
    with Hub(["alice"]) as made:
        made.stop()
        made.run("tls", "self-signed", "hub.example.test")
        text = made.config.read_text()
        made.config.write_text(
            text.replace('protocol = "smtp"', 'protocol = "smtp"\ntls = "starttls"', 1)
        )
        made.start()
        yield made


def test_two_traces_at_once_each_have_their_own(hub, boxes):
    one, two = next(boxes), next(boxes)
    with tracing(hub, address(one)) as first, tracing(hub, address(two)) as second:
        deliver(hub, message(), one)
        deliver(hub, message(), two)
        first.until("closed")
        second.until("closed")
        assert address(two) not in "".join(first.texts())
        assert address(one) not in "".join(second.texts())


def test_it_ends_by_itself_at_its_limit(hub, mailbox):
    with tracing(hub, "127.0.0.1", "--lines", "3") as trace:
        deliver(hub, message(), mailbox)
        trace.process.wait(DEADLINE)
        assert trace.process.stdout.read().count(b"\n") == 3
    done = hub.run("trace", "192.0.2.1", "--seconds", "0.2")
    assert done.stdout == ""


def test_a_worker_that_starts_later_is_followed_too():
    with LiveHub() as live, tracing(live, "127.0.0.1") as trace:
        old = set(live.worker_pids())
        live.reload()
        live.until(lambda facts: not {one["pid"] for one in facts["workers"]} & old, "new workers")
        out = trace.process.stdout
        while out is not None and not select.select([out], [], [], 0.1)[0]:
            with SmtpLine(live) as smtp:
                smtp.say("QUIT", b"221")
        trace.until("closed")
        assert not {int(one["session"].partition("-")[0]) for one in trace.seen} & old


def test_nonsense_is_refused(hub):
    assert hub.run("trace", " ", check=False).returncode == EX_USAGE
    with LiveHub() as live:
        live.stop()
        assert live.run("trace", "192.0.2.1", check=False).returncode == EX_UNAVAILABLE
