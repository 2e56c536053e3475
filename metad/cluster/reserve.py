"""Space for the small files of a node of a cluster, kept for the time when its disk is full.

    DATA/cluster/reserve    takes up space; each replacement on a full disk gets a part of it

Such a node still takes mail, for other members to store (layers.cluster).  For that it needs its
links, and neither a view nor a mark is relied upon before it is durable.

Rules of this file:

* A replacement that finds no space is done once more after a part of the reserve is given back.
* The reserve is filled again when there is space.  Without one, a full disk is an error as ever.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from metad.system.osio import Osio, write_file

NAME = "reserve"
SIZE = 1 << 20
# The largest file is a view of 64 KiB.
PART = 1 << 17
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """That of one node, as one process uses it."""

    def __init__(self, osio: Osio, cluster: str) -> None:
        """`cluster`: the directory."""
        self._osio = osio
        self._path = os.path.join(cluster, NAME)

    def replace(self, path: str, data: bytes) -> None:
        """As `write_file`.  Raises OSError."""
        try:
            write_file(self._osio, path, data)
        except OSError as error:
            # A short write has no number: the disk became full within it.
            if error.errno not in (*_FULL, None) or not self._give_back():
                raise
            write_file(self._osio, path, data)

    def fill(self) -> None:
        """Take the space that is missing, if there is as much."""
        with suppress(OSError):
            fd = self._osio.open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                if self._osio.fstat(fd).st_size < SIZE:
                    self._osio.allocate(fd, SIZE)
            finally:
                self._osio.close(fd)

    def _give_back(self) -> bool:
        """Whether there was a part left."""
        try:
            fd = self._osio.open(self._path, os.O_RDWR)
        except OSError:
            return False
        try:
            size = self._osio.fstat(fd).st_size
            self._osio.truncate(fd, max(size - PART, 0))
        except OSError:
            return False
        finally:
            self._osio.close(fd)
        return size > 0
