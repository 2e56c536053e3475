"""Blocks that are kept for the day on which the disk is full.

A start writes a few small files (the name of the shared memory, the state of the index), and a
deletion needs pages in the index.  On a disk without a single free block neither would work, and
nothing would ever become free again.

    DATA/spool/ballast      a file of up to 16 MiB, at most a 64th of the disk

Rules of this file:

* It is given up at a start that finds less than its size free, and in a running hub when almost
  nothing is free.
* It is made again only when there is room for new mail and for the ballast too.
"""

from __future__ import annotations

import os
from contextlib import suppress

from metad.store.identity import Store
from metad.store.log_space import needed_space
from metad.system.osio import Osio

MOST = 16 << 20
SHARE = 64
# With less than this free, an index transaction may fail.
CRITICAL = 256 << 10


class Ballast:
    """The ballast of one store.  Several processes may look after it."""

    def __init__(self, osio: Osio, store: Store, log_size: int) -> None:
        self._osio = osio
        self._directory = store.spool
        self._path = os.path.join(store.spool, "ballast")
        self._size = min(MOST, osio.total_space(store.spool) // SHARE)
        self._needed = needed_space(osio, store.spool, log_size)

    def release_at_start(self) -> None:
        """Before anything is written."""
        if self._osio.free_space(self._directory) < self._size:
            self._release()

    def look(self) -> None:
        """Give it up or make it again, as the disk is now.  May block."""
        free = self._osio.free_space(self._directory)
        if free < CRITICAL:
            self._release()
        elif free > self._needed + self._size:
            self._hold()

    def _release(self) -> None:
        with suppress(OSError):
            self._osio.unlink(self._path)

    def _hold(self) -> None:
        """Make it if it is not there."""
        try:
            fd = self._osio.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError:  # it is there, mostly
            return
        try:
            self._osio.allocate(fd, self._size)
        except OSError:
            self._release()
        finally:
            self._osio.close(fd)
