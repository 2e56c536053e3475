"""A log file is rotated by rename and SIGHUP, while mail comes: every line is in one of the files,
and no process of the hub keeps the old one open."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import time
from pathlib import Path

from tests.support.clients import deliver, in_time, message
from tests.support.hub import DEADLINE, USER, Hub
from tests.support.live import LiveHub


def log_directory(hub: Hub) -> Path:
    """A directory in which the hub's user may create files, like /var/log/metad."""
    directory = hub.home / "logs"
    directory.mkdir(mode=0o755)
    if os.geteuid() == 0:
        shutil.chown(directory, USER)
    return directory


def holders(hub: Hub, path: Path) -> list[int]:
    """Processes of the hub that have this file open."""
    found = []
    for pid in hub.pids():
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                same = os.path.samestat(link.stat(), path.stat())
            except OSError:
                continue
            if same:
                found.append(pid)
    return found


def wait_released(hub: Hub, path: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while holders(hub, path):
        assert time.monotonic() < deadline, holders(hub, path)
        select.select([], [], [], 0.05)


def test_after_a_rename_and_sighup_the_hub_goes_on_in_a_new_file() -> None:
    hub = LiveHub()
    log = log_directory(hub) / "metad.log"
    hub.options = ["--log-file", str(log)]
    with hub:
        for _ in range(5):
            deliver(hub, message(), "alice")
        old = log.rename(log.with_name("metad.log.1"))
        deliver(hub, message(), "alice")  # still to the old one
        os.kill(hub.process.pid, signal.SIGHUP)
        wait_released(hub, old)
        for _ in range(5):
            deliver(hub, message(), "alice")

        def counts() -> list[int]:
            return [path.read_text().count("status=stored") for path in (old, log)]

        # A line may be written just after the reply.
        assert in_time(lambda: counts() == [6, 5]), counts()
        assert log.stat().st_mode & 0o777 == 0o640


def read_all(daemon: socket.socket, until: bytes) -> bytes:
    """What a syslog daemon gets, up to the message with this text."""
    daemon.settimeout(DEADLINE)
    got = b""
    while until not in got:
        got += daemon.recv(65536) + b"\n"
    return got


def listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    daemon.bind(str(path))
    path.chmod(0o666)
    return daemon


def test_a_hub_logs_to_syslog_and_finds_a_daemon_that_was_restarted() -> None:
    hub = LiveHub()
    path = log_directory(hub) / "log"
    daemon = listening(path)
    hub.options = ["--log-file", str(path)]
    with hub:
        deliver(hub, message(), "alice")
        got = read_all(daemon, b"status=stored")
        assert re.search(rb"^<22>\w{3} [ \d]\d \S+ metad/smtp\[\d+\]: \w{32}: client=", got, re.M)
        assert hub.status()["log"] == str(path)
        daemon.close()
        deliver(hub, message(), "alice")  # its line is lost, its mail is not
        daemon = listening(path)
        deliver(hub, message(), "alice")
        read_all(daemon, b"status=stored")
    with daemon:
        read_all(daemon, b"stopped")
