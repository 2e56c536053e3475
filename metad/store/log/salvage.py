"""Reading past places that the disk cannot read.

Rules of this file:

* An unreadable block costs what lies in it.  Its bytes come as 0xFF: they are no padding and verify
  nowhere, so a scan reports them as damage and goes on behind them.
* Only EIO is read past.  Anything else is an error of the whole file.
"""

from __future__ import annotations

import errno

from metad.system.osio import Osio

BLOCK = 4096
_TRIES = 2  # an error that passes costs nothing
_UNREADABLE = b"\xff"


def read_past(osio: Osio, fd: int, count: int, offset: int, lost: list[int] | None = None) -> bytes:
    """As `pread`; what cannot be read comes as 0xFF, and where it lies goes into `lost`.

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
