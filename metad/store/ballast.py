"""Blocks kept in reserve for a full disk.

A start writes a few small files (the name of the shared memory, the state of the index), and a
deletion needs pages in the index.  On a disk without a single free block neither would work, and no
space could ever be freed.

    DATA/spool/ballast      a file of up to 16 MiB, at most a 64th of the disk

Rules of this file:

* It is removed at a start with less than its size free, and in a running hub when the disk is
  almost full.
* It is recreated only when the disk has room for both new mail and the ballast.
"""

from __future__ import annotations

import os
from contextlib import suppress

from metad.store.identity import Store
from metad.store.log_space import needed_space
from metad.system.osio import LEFT_FREE, Osio

MOST = 16 << 20
SHARE = 64
# With less than this free, no log can be begun, and an index transaction may fail soon.
CRITICAL = 2 * LEFT_FREE


class Ballast:
    """The ballast of one store.  Several processes may look after it."""

    def __init__(self, osio: Osio, store: Store, log_size: int) -> None:
        self._osio = osio
        self._directory = store.spool
        self._path = os.path.join(store.spool, "ballast")
        self._size = min(MOST, osio.total_space(store.spool) // SHARE)
        self._needed = needed_space(osio, store.spool, log_size)

    def release_at_start(self) -> None:
        """Call this before anything is written."""
        if self._osio.free_space(self._directory) < self._size:
            self._release()

    def look(self) -> None:
        """Remove or recreate it, depending on free space.  May block."""
        free = self._osio.free_space(self._directory)
        if free < CRITICAL:
            self._release()
        elif free > self._needed + self._size:
            self._hold()

    def _release(self) -> None:
        with suppress(OSError):
            self._osio.unlink(self._path)

    def _hold(self) -> None:
        """Make it if it is missing."""
        try:
            fd = self._osio.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError:  # it usually exists
            return
        try:
            self._osio.allocate(fd, self._size)
        except OSError:
            self._release()
        finally:
            self._osio.close(fd)
