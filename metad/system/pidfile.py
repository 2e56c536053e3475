"""The PID file, for services that are started by hand or by a script.

It is opened before privileges are dropped, written when the hub is ready, and emptied when it ends;
then it is removed, if that is still permitted.  Whether a hub is running is decided by DATA/lock,
never by this file.

Rule of this file: root truncates what it opens here, so no link is followed, and a file with a
second name is refused.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from metad.errors import CannotCreateError


class PidFile:
    """Raises CannotCreateError if it cannot be written to.  Without a path it does nothing.

    `fd`: the caller has opened it, in a place where we cannot remove it.
    """

    def __init__(self, path: Path | None = None, fd: int = -1) -> None:
        self._path = path
        self._fd = fd
        self._mine = False  # otherwise it may name a running hub, and is left alone
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                self._fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                self._mine = True
            except FileExistsError:
                self._fd = os.open(path, flags | os.O_NONBLOCK)
        except OSError as error:
            raise CannotCreateError.of(error, path) from None
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(self._fd)
            raise CannotCreateError(
                f"{path}: not a plain file with a single name", remedy="give another path"
            )

    def fileno(self) -> int:
        """-1 if there is none."""
        return self._fd

    def write(self, pid: int) -> None:
        """`pid` is the hub's first process."""
        self._mine = True
        self._replace(f"{pid}\n".encode())

    def leave(self) -> None:
        """Leave the file as it is: the process goes on as another program."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Idempotent."""
        if self._fd < 0:
            return
        if self._mine:
            self._replace(b"")
            with suppress(OSError):
                if self._path is not None:
                    self._path.unlink()
        os.close(self._fd)
        self._fd = -1

    def _replace(self, content: bytes) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, content, 0)
