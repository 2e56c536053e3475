"""The PID file, for those who start services by hand or by a script.

It is opened before privileges go, written when the hub is ready, and emptied at its end; removed
too, if that is still allowed.  What tells whether a hub runs is DATA/lock, never this file.

The nanny uses it too: standard library and `metad.errors` only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from metad.errors import CannotCreateError


class PidFile:
    """Raises CannotCreateError if it cannot be written to.  Without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CannotCreateError(f"{path}: {error.strerror}") from None

    def write(self) -> None:
        """This process is the hub's first."""
        self._replace(f"{os.getpid()}\n".encode())

    def remove(self) -> None:
        """Idempotent."""
        if self._path is None or self._fd < 0:
            return
        self._replace(b"")
        with suppress(OSError):
            self._path.unlink()
        os.close(self._fd)
        self._fd = -1

    def _replace(self, content: bytes) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, content, 0)
