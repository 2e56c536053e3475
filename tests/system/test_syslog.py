"""The log by syslog: a datagram for each line, and a daemon that restarts or does not read."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.errors import CannotCreateError
from metad.loglines import LogLines
from metad.system import syslog
from metad.system.log_file import LogFile
from metad.system.log_output import LogOutput

MAIL = 2


class Daemon:
    """What listens at the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen()

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(10)

    def read(self) -> bytes:
        return self.socket.recv(65536)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path / "log")
    yield one
    one.socket.close()


@pytest.fixture
def fd(daemon: Daemon) -> Iterator[int]:
    found = syslog.connect(daemon.path)
    yield found
    os.close(found)


def facility(octets: bytes) -> tuple[int, int]:
    found = re.match(rb"<(\d+)>", octets)
    assert found
    return divmod(int(found[1]), 8)


@pytest.mark.parametrize(
    ("text", "severity"), [("client=192.0.2.1", 6), ("warning: full", 4), ("fatal: no", 3)]
)
def test_a_line_has_its_facility_severity_time_and_tag(daemon, fd, text, severity):
    LogLines(fd).line("smtp", text)
    octets = daemon.read()
    assert facility(octets) == (MAIL, severity)
    wanted = rf"<\d+>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d metad/smtp\[{os.getpid()}\]: {text}"
    assert re.fullmatch(wanted, octets.decode())


def test_the_days_and_months_are_those_of_the_protocol():
    days = [(2026, month, 3, 4, 5, 6, 0, 0, -1) for month in range(1, 13)]
    stamps = [syslog.stamp(time.mktime(day)) for day in days]
    assert stamps[0] == "Jan  3 04:05:06 "
    assert [one[:3] for one in stamps] == [time.strftime("%b", day) for day in days]


@pytest.mark.parametrize(("text", "severity"), [("ready", 6), ("warning: full", 4)])
def test_json_lines_have_a_tag(daemon, fd, text, severity):
    LogLines(fd, as_json=True).line("smtp", text)
    octets = daemon.read()
    assert facility(octets) == (MAIL, severity)
    assert octets.partition(b">")[2].startswith(b'metad: {"time": ')


def test_lines_of_one_turn_are_a_message_each(daemon, fd):
    assert LogOutput(fd).write(b"metad/a[1]: x\nmetad/b[1]: y\n") == 28
    assert [daemon.read(), daemon.read()] == [b"<22>metad/a[1]: x", b"<22>metad/b[1]: y"]


@pytest.mark.slow
def test_a_daemon_that_does_not_read_costs_the_lines_that_do_not_fit(daemon, fd):
    lines = LogLines(fd)
    for number in range(5000):
        lines.line("smtp", f"{number}")
    assert 0 < lines.dropped < 5000
    daemon.socket.setblocking(False)
    got = 0
    with pytest.raises(BlockingIOError):
        while True:
            daemon.read()
            got += 1
    assert got == 5000 - lines.dropped
    lines.tick()
    assert f"{lines.dropped} log lines were dropped unread".encode() in daemon.read()


def test_a_daemon_that_was_restarted_is_found_again(daemon, fd):
    lines = LogLines(fd)
    daemon.socket.close()
    lines.line("smtp", "lost")
    assert lines.dropped == 1
    daemon.listen()
    lines.line("smtp", "back")
    assert b"1 log lines were dropped unread" in daemon.read()
    assert daemon.read().endswith(b": back")


def test_a_path_without_a_daemon_is_refused_at_the_start(daemon):
    daemon.socket.close()
    with pytest.raises(CannotCreateError, match="Connection refused"):
        LogFile(daemon.path).take()


def test_a_stream_and_a_file_are_no_syslog(tmp_path):
    one, other = socket.socketpair()
    with one, other, (tmp_path / "log").open("wb") as file:
        assert not syslog.is_syslog(one.fileno())
        assert not syslog.is_syslog(file.fileno())
    assert not syslog.is_syslog(-1)
