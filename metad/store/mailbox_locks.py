"""One POP3 session per mailbox: a set within the worker, an OFD byte lock between workers.

Plain fcntl locks belong to the process, and closing any descriptor of the file drops them; an OFD
lock belongs to the open description, so each lock file is opened once per worker and kept.  The
kernel releases it when the worker dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from metad.system.osio import Osio

FILES = 256
_FLOCK = struct.Struct("hhqqi4x")


class MailboxLocks:
    """The locks of one process, in 256 files below `directory`; the offset is the mailbox."""

    def __init__(self, osio: Osio, directory: str) -> None:
        self._osio = osio
        self._directory = directory
        self._files: dict[int, int] = {}
        self._held: set[int] = set()

    def acquire(self, mailbox: int) -> bool:
        """Take the lock without waiting.  False: another session has the mailbox."""
        if mailbox in self._held:
            return False
        if not self._lock(mailbox, fcntl.F_WRLCK):
            return False
        self._held.add(mailbox)
        return True

    def release(self, mailbox: int) -> None:
        self._held.discard(mailbox)
        self._lock(mailbox, fcntl.F_UNLCK)

    def close(self) -> None:
        for fd in self._files.values():
            self._osio.close(fd)
        self._files.clear()
        self._held.clear()

    def _lock(self, mailbox: int, kind: int) -> bool:
        request = _FLOCK.pack(kind, os.SEEK_SET, mailbox, 1, 0)
        try:
            fcntl.fcntl(self._file(mailbox % FILES), fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _file(self, number: int) -> int:
        fd = self._files.get(number)
        if fd is None:
            path = os.path.join(self._directory, f"{number:02x}")
            fd = self._files[number] = self._osio.open(path, os.O_RDWR | os.O_CREAT)
        return fd
