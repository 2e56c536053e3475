"""Writing to a log that may not be read: writes as much as fits at once, and never waits.

Standard error is often shared with other programs, so its flags are not ours to change
(O_NONBLOCK belongs to the open file, not to the descriptor).

    socket (the journal)   send with MSG_DONTWAIT
    socket of datagrams    a message of syslog for each line (`syslog`)
    pipe                   pwritev2 with RWF_NOWAIT (Linux 6.4 and later); on older kernels one
                           write of at most PIPE_BUF octets whenever poll finds room
    terminal               opened again, without blocking, before the hub starts (`own_terminal`)
    regular file           write: the page cache takes it

Rule of this file: the caller counts what was not written; nothing is raised.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from contextlib import suppress

from metad.system import syslog

# Octets for which poll() promises room in a pipe (pipe(7)).
PIPE_BUF = select.PIPE_BUF
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE, errno.ENOSYS}


def own_terminal(fd: int = 2) -> None:
    """If `fd` is a terminal, replace it by a descriptor of our own that never blocks."""
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        own = os.open(os.ttyname(fd), flags)
        os.dup2(own, fd)
        os.close(own)


class LogOutput:
    """A descriptor that log lines go to."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._write = self._write_polling
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            return
        if syslog.is_syslog(fd):
            self._write = syslog.SyslogSocket(fd).write
        elif stat.S_ISSOCK(mode):
            self._write = self._write_socket
        elif stat.S_ISREG(mode) or not os.get_blocking(fd):
            self._write = self._write_file
        elif stat.S_ISFIFO(mode):
            self._write = self._write_pipe

    def write(self, data: bytes) -> int:
        """The octets of `data` that were written."""
        try:
            return self._write(data)
        except OSError:
            return 0

    def _write_file(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def _write_socket(self, data: bytes) -> int:
        sock = socket.socket(fileno=self._fd)
        try:
            return sock.send(data, socket.MSG_DONTWAIT)
        finally:
            sock.detach()

    def _write_pipe(self, data: bytes) -> int:
        try:
            return os.pwritev(self._fd, [data], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        self._write = self._write_polling
        return self._write_polling(data)

    def _write_polling(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(data) and poll.poll(0):
            count = os.write(self._fd, data[written : written + PIPE_BUF])
            written += count
            if count <= 0:
                break
        return written
