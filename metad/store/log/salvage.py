"""Reading past unreadable places on a disk.

Rules of this file:

* An unreadable block loses only its own data.  Its bytes are returned as 0xFF: they are not padding
  and never verify, so a scan reports them as damage and continues after them.
* Only EIO is skipped.  Any other error concerns the whole file.
"""

from __future__ import annotations

import errno

from metad.system.osio import Osio

BLOCK = 4096
_TRIES = 2  # a transient error costs nothing
_UNREADABLE = b"\xff"


def read_past(osio: Osio, fd: int, count: int, offset: int, lost: list[int] | None = None) -> bytes:
    """Like `pread`; unreadable bytes are returned as 0xFF, and their positions are added to `lost`.

    Raises OSError, but not EIO.
    """
    for _ in range(_TRIES):
        try:
            return osio.pread(fd, count, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
    stop = min(offset + count, osio.fstat(fd).st_size)
    if offset // BLOCK == (stop - 1) // BLOCK:
        if lost is not None:
            lost.append(offset)
        return _UNREADABLE * max(stop - offset, 0)
    middle = (offset + stop) // 2 // BLOCK * BLOCK
    if middle <= offset:
        middle = (offset // BLOCK + 1) * BLOCK
    first = read_past(osio, fd, middle - offset, offset, lost)
    return first + read_past(osio, fd, stop - middle, middle, lost)
