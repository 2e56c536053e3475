"""The protocol between systemd and a service: sd_notify(3) and sd_listen_fds(3).

Rules of this file:

* No library is needed: a datagram of KEY=value lines, and named descriptors from 3 on.
* A notification that cannot be sent is dropped: it never blocks and is never an error.
* The socket is opened once, before a chroot could put it out of reach.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import NamedTuple

FIRST_FD = 3
# Beside these, from our own nanny: its release.
NANNY_VERSION = "METAD_NANNY_VERSION"
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Passed(NamedTuple):
    """A socket passed by systemd, with its FileDescriptorName."""

    name: str
    sock: socket.socket


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> list[Passed]:
    """The sockets passed to this process.  It removes the variables, so call it once.

    Raises ValueError if one is not a stream socket.
    """
    pid, count, names = (environ.pop(key, "") for key in _LISTEN)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    given = names.split(":") if names else []
    found: list[Passed] = []
    for number in range(int(count)):
        name = given[number] if number < len(given) else "unknown"
        try:
            os.set_inheritable(FIRST_FD + number, False)
            sock = socket.socket(fileno=FIRST_FD + number)
        except OSError as error:
            raise ValueError(f"descriptor {FIRST_FD + number} ({name}): {error.strerror}") from None
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"descriptor {FIRST_FD + number} ({name}): not a stream socket")
        sock.setblocking(False)
        found.append(Passed(name, sock))
    return found


def passed_count(environ: Mapping[str, str] = os.environ) -> int:
    """How many descriptors from 3 on were passed to this process."""
    count = environ.get("LISTEN_FDS", "")
    return int(count) if are_passed(environ) and count.isdecimal() else 0


def are_passed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether sockets were passed to this process."""
    return environ.get("LISTEN_PID") == str(os.getpid()) and "LISTEN_FDS" in environ


def to_journal(fd: int = 2, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to `fd` goes to systemd's journal (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(text: str) -> str:
    """The journal's mark in front of a line that is more than information, else nothing."""
    if text.startswith("warning:"):
        return "<4>"
    return "<3>" if text.startswith("fatal:") else ""


class Notifier:
    """Reports to the service manager.  Without one, every method does nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ, nanny: int = 0) -> None:
        """`nanny` is the pid of the nanny above, 0 without: it is the one that systemd watches."""
        self._sock = _connect(environ.get("NOTIFY_SOCKET", ""))
        self._every = _watchdog_seconds(environ, {os.getpid(), nanny})
        self._next = 0.0

    @property
    def present(self) -> bool:
        return self._sock is not None

    def ready(self, status: str, first: int) -> None:
        """`first`: the pid of the hub's first process, which outlives the others."""
        self._send(f"READY=1\nMAINPID={first}\nSTATUS={status}")

    def reloading(self) -> None:
        """Type=notify-reload waits for these two and then for READY."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def extend(self, seconds: float) -> None:
        """Extend the timeout of a start or stop to `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self, now: float) -> None:
        """Report that the loop is running, as often as required.  `now`: monotonic seconds."""
        if self._every and now >= self._next:
            self._next = now + self._every
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, text: str) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.send(text.encode())


def _connect(path: str) -> socket.socket | None:
    """The manager's socket; an abstract one begins with @."""
    if path[:1] not in ("/", "@"):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.setblocking(False)
    except OSError:
        sock.close()
        return None
    return sock


def _watchdog_seconds(environ: Mapping[str, str], pids: set[int]) -> float:
    """Half of the watchdog's interval; 0 without a watchdog."""
    wanted, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or (pid and pid not in map(str, pids)):
        return 0.0
    return int(wanted) / 2e6
