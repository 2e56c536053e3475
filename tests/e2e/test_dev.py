"""`metad start --dev`, `metad mail tail` and `metad mail wait`, as used by a developer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from metad.cli import dev
from metad.system.held_signals import ENDING
from tests.support.clients import deliver, message
from tests.support.commands import metad
from tests.support.hub import DEADLINE, METAD, Hub, address, lines_of


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A command that runs until it is interrupted, and the lines that it prints."""
    with subprocess.Popen(
        [METAD, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process, lines_of(process.stdout.fileno(), DEADLINE)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)


def send(port: int, to: str, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE) as client:
        client.sendmail("app@sender.test", [to], f"Subject: {subject}\r\nFrom: app\r\n\r\nx\r\n")


def test_one_command_is_a_test_inbox_that_prints_mail_and_leaves_nothing():
    with running("start", "--dev") as (process, lines):
        found = re.fullmatch(r"SMTP  127\.0\.0\.1:(\d+)", next(lines))
        assert found
        assert "any user, any password" in next(lines)
        assert "Ctrl-C" in next(lines)
        send(int(found[1]), "ann@example.test", "hello")
        send(int(found[1]), "bob@other.test", "again")
        printed = {next(lines).partition(" ")[2].split(" (")[0] for _ in range(2)}
        assert printed == {"ann@example.test 1", "bob@other.test 1"}
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("end", ENDING)
@pytest.mark.parametrize("being_started", [0, 1], ids=["the hub", "metad mail tail"])
def test_a_signal_while_a_process_is_being_started_leaves_none(
    monkeypatch: pytest.MonkeyPatch, end: signal.Signals, being_started: int
) -> None:
    started = list[subprocess.Popen[bytes]]()

    class Popen(subprocess.Popen[bytes]):
        """The signal comes when the process runs, and nothing refers to it yet; then once more."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)
            if len(started) > being_started:
                signal.raise_signal(end)
                signal.raise_signal(end)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        assert dev.run((), 0, 0, None) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(started) == 1 + being_started
    assert [one for one in started if one.returncode is None] == []


@pytest.mark.parametrize("end", ENDING)
def test_the_end_of_its_terminal_or_session_stops_it_too(end: signal.Signals) -> None:
    with running("start", "--dev") as (process, lines):
        port = int(next(lines).rpartition(":")[2])
        assert "Ctrl-C" in [next(lines), next(lines)][1]
        process.send_signal(end)
        assert process.wait(DEADLINE) == 0
    with pytest.raises(ConnectionRefusedError):
        send(port, "ann@example.test", "hello")


def test_dev_takes_only_what_it_is_told_to():
    with running("start", "--dev", "--accept", "*@mine.test") as (_, lines):
        port = int(next(lines).rpartition(":")[2])
        send(port, "x@mine.test", "hello")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(port, "x@other.test", "hello")


def test_options_of_dev_belong_to_it():
    done = subprocess.run([METAD, "start", "--accept", "*@x"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 64
    assert "belong to --dev" in done.stderr


def test_a_hub_that_does_not_start_gives_its_own_error():
    done = subprocess.run(
        [METAD, "start", "--dev", "--accept", ""], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert re.fullmatch(
        r"metad: fatal: \S+metad\.toml:\d+: dev\.accept: must be .*\(metad\.toml\(5\) .*\)\n",
        done.stderr,
    )
    assert "\\n" not in done.stderr


@pytest.fixture(scope="module")
def hub():
    with Hub(["ann", "bob"]) as made:
        yield made


def test_tail_prints_mail_as_it_arrives_and_not_what_was_there(hub):
    deliver(hub, message(), "ann")
    printed = threading.Event()

    def sender() -> None:
        """There is no notice when a tail has begun, so mail is sent until it prints some."""
        while not printed.is_set():
            deliver(hub, message(), "bob")
            deliver(hub, message(), "ann")

    with running("mail", "tail", address("ann"), "--json", "--config", str(hub.config)) as (_, out):
        thread = threading.Thread(target=sender)
        thread.start()
        try:
            facts = json.loads(next(out))
        finally:
            printed.set()
            thread.join()
    assert facts["to"] == address("ann")
    assert facts["number"] > 1
    assert facts["bytes"] > 0


def test_wait_ends_when_the_mail_is_there_or_the_time_is_up(hub):
    deliver(hub, message(), "bob")
    assert metad(hub, "mail", "wait", address("bob"), "--count", "1").returncode == 0
    done = metad(hub, "mail", "wait", address("bob"), "--count", "99", "--timeout", "0.2",
                 check=False)  # fmt: skip
    assert done.returncode == 75
    assert "not 99" in done.stderr
    assert metad(hub, "mail", "wait", address("eve"), check=False).returncode == 67
    assert os.path.exists(hub.config)
