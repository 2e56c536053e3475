"""The alignment of writes to a log: no write may touch a block that holds acknowledged mail.

The kernel writes whole blocks.  A write of 512 bytes and an fdatasync put 4,096 bytes on the
device, and a power cut may destroy the block being written, including its previous contents.

Rule of this file: never below 4,096 unless a setting says so, and never so large that a header
cannot be found.
"""

from __future__ import annotations

from metad.system.osio import Osio

# Where the last header of a log may begin, counted from its end; smaller ones first.
ALIGNS = (512, 4096, 8192, 16384, 32768, 65536)
DEFAULT_ALIGN = 4096


def alignment(osio: Osio, directory: str, setting: int | None = None) -> int:
    """The alignment of new logs in `directory`: the setting, else the larger of the file system's
    block and the disk's physical sector, at least 4,096.  Raises OSError."""
    if setting is not None:
        return setting
    wanted = max(osio.block_size(directory), osio.sector_size(directory), DEFAULT_ALIGN)
    return next((align for align in ALIGNS if align >= wanted), ALIGNS[-1])
