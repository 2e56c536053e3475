"""The PID file, for those who start services by hand or by a script.

It is opened before privileges go, written when the hub is ready, and emptied at its end; removed
too, if that is still allowed.  What tells whether a hub runs is DATA/lock, never this file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from metad.errors import CannotCreateError


class PidFile:
    """Raises CannotCreateError if it cannot be written to.  Without a path it does nothing.

    `fd`: somebody opened it for us, at a place that is not ours to remove it from.
    """

    def __init__(self, path: Path | None = None, fd: int = -1) -> None:
        self._path = path
        self._fd = fd
        self._mine = False  # else it may speak of a hub that lives: that one is left alone
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                self._fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                self._mine = True
            except FileExistsError:
                self._fd = os.open(path, flags)
        except OSError as error:
            raise CannotCreateError(f"{path}: {error.strerror}") from None

    def fileno(self) -> int:
        """-1 if there is none."""
        return self._fd

    def write(self, pid: int) -> None:
        """`pid` is the hub's first process."""
        self._mine = True
        self._replace(f"{pid}\n".encode())

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
