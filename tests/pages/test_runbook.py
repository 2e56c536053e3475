"""docs/runbook.md: each symptom is brought about, seen as the page says, and cured as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import (
    HEADER,
    Pop3Line,
    SmtpLine,
    deliver,
    fetch,
    message,
    stranger,
    unique_ids,
)
from tests.support.hub import Hub, address
from tests.support.pages import PAGES, ROOT
from tests.support.wide_hub import log_lines, wait_for_lines

# Symptoms that need a broken disk, a dead process or another clock have their tests elsewhere.
ELSEWHERE = {
    1: ("tests/e2e/test_disk_full.py", "test_mail_that_fills_the_disk_is_deferred_in_time"),
    2: ("tests/fault/test_faults.py", "test_a_failed_sync_is_the_last_of_its_file"),
    14: ("tests/processes/test_deaths.py", "def test_"),
    17: ("tests/e2e/test_monitor.py", "test_an_expired_certificate_degrades_with_a_remedy"),
    19: ("tests/system/test_log_output.py", "test_what_is_not_read_is_written_in_part"),
    20: ("tests/e2e/test_doctor.py", "test_a_store_of_another_machine_is_warned_of"),
}
TEXT = PAGES["runbook.md"].read_text("utf-8")
SETTINGS = """
[quota]
size = "64KiB"
"""


def symptom(number: int) -> str:
    """The page's words on it: headline, what to see and what to do."""
    found = re.search(rf"^\*\*{number}\. .*?(?=^\*\*|^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, number
    return " ".join(found[0].split())


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(["ann", "bob", "eve"], SETTINGS) as hub:
        yield hub


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    with Hub(["ann"], log_size="1MiB") as hub:
        yield hub


def test_every_symptom_is_tried() -> None:
    numbers = [int(one) for one in re.findall(r"^\*\*(\d+)\. ", TEXT, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 15
    own = Path(__file__).read_text("utf-8")
    here = {int(one) for one in re.findall(r"^def test_(\d+)_", own, re.MULTILINE)}
    assert here | set(ELSEWHERE) == set(numbers)
    for path, name in ELSEWHERE.values():
        assert name in (ROOT / path).read_text()


def rcpt(hub: Hub, to: str, reply: str) -> None:
    """The reply to RCPT is the one of the page."""
    with SmtpLine(hub, source=stranger()) as smtp:
        smtp.say("MAIL FROM:<sender@example.net>")
        assert reply in smtp.say(f"RCPT TO:<{to}>", reply[:3].encode()).decode()


def quoted(number: int) -> str:
    """The reply that the headline quotes."""
    found = re.search(r"`(\d{3}[^`]*)`", symptom(number))
    assert found is not None
    return found[1]


def test_3_a_user_who_is_unknown(hub: Hub) -> None:
    rcpt(hub, address("dora"), quoted(3))
    assert hub.run("user", "show", address("dora"), check=False).returncode == 67
    hub.add("dora")
    rcpt(hub, address("dora"), "250 ")
    assert json.loads(hub.run("status", "--json").stdout)["data"] == str(hub.data)


def test_4_a_domain_without_a_user(hub: Hub) -> None:
    rcpt(hub, "ann@other.example", quoted(4))
    hub.run("user", "add", "ann@other.example", "--password-stdin", given="secret\n")
    rcpt(hub, "ann@other.example", "250 ")


def test_5_a_full_mailbox(hub: Hub) -> None:
    deliver(hub, message(b"x" * 900 + b"\r\n" + b"y" * 60 + b"\r\n"), "eve")
    with SmtpLine(hub) as smtp:
        while True:
            smtp.say("MAIL FROM:<sender@example.net> SIZE=20000")
            smtp.send(f"RCPT TO:<{address('eve')}>\r\n".encode())
            reply = smtp.line().decode()
            if not reply.startswith("250"):
                break
            smtp.say("DATA", b"354")
            smtp.send(HEADER % 5 + (b"z" * 70 + b"\r\n") * 270 + b".\r\n")
            smtp.reply()
    assert reply.startswith(quoted(5))
    assert "64" in hub.run("user", "show", address("eve")).stdout
    hub.run("user", "set", address("eve"), "--quota", "5GiB")
    rcpt(hub, address("eve"), "250 ")


def test_6_a_client_with_bare_line_ends(hub: Hub) -> None:
    def reply() -> str:
        with SmtpLine(hub, source="127.0.0.7") as smtp:
            smtp.say("MAIL FROM:<sender@example.net>")
            smtp.say(f"RCPT TO:<{address('bob')}>")
            smtp.say("DATA", b"354")
            smtp.send(b"Subject: bare\n\ntext\n\r\n.\r\n")
            return smtp.line().decode()

    assert reply().startswith(quoted(6))
    reconfigured(hub, '[smtp]\nrepair_networks = ["127.0.0.7/32"]\n')
    assert reply().startswith("250 ")


def reconfigured(hub: Hub, more: str) -> None:
    hub.config.write_text(hub.config.read_text() + more)
    hub.run("reload")


def test_7_too_many_connections(own_hub: Hub) -> None:
    reconfigured(own_hub, "[limits]\nnetwork_connections = 2\n")
    with SmtpLine(own_hub), SmtpLine(own_hub):
        with SmtpLine(own_hub, greet=False) as third:
            assert third.line().startswith(quoted(7).encode())
        wait_for_lines(own_hub, "too many connections")
        open_now = sum(one["smtp_open"] for one in own_hub.status()["workers"])
        assert open_now >= 2
        text = own_hub.config.read_text()
        own_hub.config.write_text(
            text.replace("network_connections = 2", "network_connections = 9")
        )
        own_hub.run("reload")
        with SmtpLine(own_hub):
            pass


def test_8_a_login_that_fails(hub: Hub) -> None:
    def log_in(name: str, password: str, answer: bytes = b"-ERR [AUTH]") -> None:
        with Pop3Line(hub, stranger()) as pop:
            pop.log_in(name, password, answer)
            pop.say("QUIT")

    log_in("bob", "a wrong one")
    log_in("somebody", "secret")
    hub.run("user", "set", address("bob"), "--disable")
    log_in("bob", "secret")
    for reason in ("wrong password", "unknown", "disabled"):
        wait_for_lines(hub, reason)
    hub.run("user", "set", address("bob"), "--enable")
    hub.run("user", "passwd", address("bob"), "--password-stdin", given="another\n")
    log_in("bob", "another", b"+OK")
    hub.run("user", "passwd", address("bob"), "--password-stdin", given="secret\n")


def test_9_a_server_without_a_way_to_log_in(own_hub: Hub) -> None:
    text = own_hub.config.read_text()
    public = own_hub.home / "public.toml"
    public.write_text(text.replace(f"127.0.0.1:{own_hub.pop3_port}", "0.0.0.0:0"))
    done = own_hub.run("config", "check", check=False)
    assert "SCRAM" not in done.stdout + done.stderr
    own_hub.config, kept = public, own_hub.config
    try:
        done = own_hub.run("config", "check", check=False)
    finally:
        own_hub.config = kept
    assert "SCRAM" in done.stdout + done.stderr


def test_10_a_mailbox_in_use(own_hub: Hub) -> None:
    with Pop3Line(own_hub) as first:
        first.log_in("ann")
        with Pop3Line(own_hub) as second:
            assert second.log_in("ann", answer=b"-ERR").startswith(b"-ERR [IN-USE]")
        first.say("QUIT")
    assert fetch(own_hub, "ann") == []


def test_11_mail_that_is_missing(own_hub: Hub) -> None:
    identity = deliver(own_hub, message(), "ann").split()[-1].decode()
    fetch(own_hub, "ann", delete=True)
    stored, deleted = wait_for_lines(own_hub, identity, 2)
    assert f"to=<{address('ann')}>" in stored
    assert "deleted: " in deleted
    deliver(own_hub, message(), "ann")
    own_hub.run("user", "remove", address("ann"))
    own_hub.add("ann")
    assert fetch(own_hub, "ann") == []


def test_12_unique_ids_outlive_the_index(own_hub: Hub) -> None:
    for _ in range(3):
        deliver(own_hub, message(), "ann")
    before = unique_ids(own_hub, "ann")
    own_hub.stop()
    own_hub.run("store", "rebuild")
    own_hub.start()
    assert unique_ids(own_hub, "ann") == before


def test_13_a_hub_that_does_not_start(own_hub: Hub) -> None:
    done = own_hub.run("start", check=False)
    assert done.returncode == 69
    assert f"already running, pid {own_hub.process.pid}" in done.stderr  # type: ignore[union-attr]
    own_hub.config.write_text(own_hub.config.read_text() + "nonsense = 1\n")
    done = own_hub.run("config", "check", check=False)
    assert done.returncode == 78
    assert "nonsense" in done.stderr


def test_15_an_index_that_is_lost(own_hub: Hub) -> None:
    deliver(own_hub, message(), "ann")
    own_hub.stop()
    shutil.rmtree(own_hub.data / "index")
    os.mkdir(own_hub.data / "index", 0o700)
    owner = own_hub.data.stat()
    os.chown(own_hub.data / "index", owner.st_uid, owner.st_gid)
    own_hub.start()
    assert log_lines(own_hub, "rebuilding it from the logs")
    assert len(fetch(own_hub, "ann")) == 1


def test_16_damaged_records(own_hub: Hub) -> None:
    deliver(own_hub, message(b"to be damaged\r\n"), "ann")
    deliver(own_hub, message(b"stays\r\n"), "ann")
    backup = own_hub.home / "backup"
    own_hub.run("store", "backup", str(backup))
    own_hub.stop()
    (log,) = [
        one for one in (own_hub.data / "logs").iterdir() if b"to be damaged" in one.read_bytes()
    ]
    octets = log.read_bytes()
    log.write_bytes(octets.replace(b"to be damaged", b"to be dAmaged"))
    done = own_hub.run("fsck", check=False)
    assert done.returncode == 65
    assert re.search(rf"log {int(log.stem)}: bytes \d+ to \d+ do not verify", done.stdout)
    new = own_hub.home / "new"
    own_hub.run("store", "restore", str(backup), "--data", str(new))
    own_hub.run("fsck", "--repair", check=False)
    assert any((own_hub.data / "quarantine").iterdir())
    own_hub.start()
    with Pop3Line(own_hub) as pop:
        pop.log_in("ann")
        pop.say("RETR 1", b"-ERR [SYS/PERM]")  # named to its owner too, and never served wrong
        assert b"stays" in pop.retrieve(2)
        pop.say("QUIT")
    own_hub.stop()
    own_hub.run("store", "rebuild", "--data", str(new))
    out = own_hub.home / "out"
    own_hub.run("mail", "export", address("ann"), "--to", f"mbox:{out}", "--data", str(new))
    assert b"to be damaged" in out.read_bytes()


def test_18_a_disk_full_of_deleted_mail(own_hub: Hub) -> None:
    for _ in range(16):
        deliver(own_hub, message((b"x" * 900 + b"\r\n") * 220), "ann")
    fetch(own_hub, "ann", delete=True)

    def without_live_mail() -> int:
        logs = json.loads(own_hub.run("store", "logs", "--json").stdout)["logs"]
        return len([one for one in logs if one["state"] == "sealed" and one["live"] == 0])

    before = without_live_mail()
    own_hub.run("gc", "--full")
    assert without_live_mail() < before
