"""The log as messages of syslog, facility mail: a datagram for each line (RFC 3164, as syslog(3)).

    <22>Nov 23 21:14:02 metad/smtp[4711]: 0006…: client=192.0.2.1, …

Rules of this file:

* The socket is connected before a hub drops its privileges, and becomes standard error, so that
  tracebacks reach the daemon too.  A restarted daemon is found again at the same path, but not from
  inside a chroot.
* A daemon that does not read blocks nothing: the caller counts lines that do not fit at once.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

DEVICE = "/dev/log"
_MAIL = 2 << 3
_WARNING, _INFO = _MAIL | 4, _MAIL | 6
_WORDS = {b"warning:": _WARNING, b"fatal:": _MAIL | 3}
_GONE = {errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET}


def connect(path: Path) -> int:
    """A descriptor connected to the daemon at `path`.  Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(path))
        return sock.detach()


def is_syslog(fd: int) -> bool:
    """Whether the descriptor is such a socket.  The journal's is a stream socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM
    finally:
        sock.detach()


def stamp(now: float) -> str:
    """The time in the protocol's format; names of months are English in every locale."""
    found = time.localtime(now)
    month = "JanFebMarAprMayJunJulAugSepOctNovDec"[3 * found.tm_mon - 3 : 3 * found.tm_mon]
    return f"{month} {found.tm_mday:2d} {found.tm_hour:02d}:{found.tm_min:02d}:{found.tm_sec:02d} "


def message(line: bytes) -> bytes:
    """A log line with its priority prepended; JSON also gets the missing tag."""
    if line.startswith(b"{"):
        is_warning = b'"text": "warning:' in line
        return b"<%d>metad: %s" % (_WARNING if is_warning else _INFO, line)
    _, _, text = line.partition(b": ")
    priority = _INFO
    for word, its in _WORDS.items():
        if text.startswith(word):
            priority = its
    return b"<%d>%s" % (priority, line)


class SyslogSocket:
    """Sends lines.  `fd` stays its owner's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._path = DEVICE
        sock = socket.socket(fileno=fd)
        with suppress(OSError):
            self._path = sock.getpeername() or DEVICE
        sock.detach()

    def write(self, data: bytes) -> int:
        """The octets of `data`, whole lines, that were sent.  Raises OSError."""
        written = 0
        sock = socket.socket(fileno=self._fd)
        try:
            for line in data.splitlines(keepends=True):
                self._send(sock, message(line.rstrip(b"\n")))
                written += len(line)
        except BlockingIOError:
            pass
        finally:
            sock.detach()
        return written

    def _send(self, sock: socket.socket, octets: bytes) -> None:
        try:
            sock.send(octets, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # Another daemon may be running by now.
            sock.connect(self._path)
            sock.send(octets, socket.MSG_DONTWAIT)
