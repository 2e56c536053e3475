"""The lock that keeps logs from being freed while a backup reads them.

It is on the file DATA/run/backup: backups share it, and the collector takes it exclusively for the
moment in which it frees a log.  The kernel releases it when its holder dies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from metad.store.identity import Store
from metad.system.osio import Osio


def _open(osio: Osio, store: Store) -> int:
    return osio.open(os.path.join(store.data, "run", "backup"), os.O_RDWR | os.O_CREAT)


@contextmanager
def pinned(osio: Osio, store: Store) -> Iterator[None]:
    """For a backup: no log is freed while this lasts.  Waits a few milliseconds at most."""
    fd = _open(osio, store)
    try:
        osio.lock_shared(fd)
        yield
    finally:
        osio.close(fd)


class FreeLock:
    """The collector's side: held while a log is being freed."""

    def __init__(self, osio: Osio, store: Store) -> None:
        self._osio = osio
        self._fd = _open(osio, store)

    def acquire(self) -> bool:
        """False: a backup is reading the logs."""
        return self._osio.try_lock(self._fd)

    def release(self) -> None:
        self._osio.unlock(self._fd)

    def close(self) -> None:
        self._osio.close(self._fd)
