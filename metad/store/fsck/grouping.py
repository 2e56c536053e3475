"""Rows about messages, grouped by message id in bounded memory, for fsck to compare.

Rules of this file:

* A row is a tag, a message id and some octets.  All rows of one id are in one part.  Parts are read
  whole, one after another.
* Parts are unlinked files: nothing is left behind, however the process ends.
* A forked child may add rows too, as long as its parent does not.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator

ROWS_PER_PART = 200_000
MOST_PARTS = 256
_FLUSH = 1 << 16
_HEAD = struct.Struct("<B16sI")

Grouped = dict[bytes, list[tuple[int, bytes]]]


class Rows:
    """Collects rows; iterate over it when all have been added."""

    def __init__(self, expected: int) -> None:
        """`expected`: the approximate number of rows."""
        self._count = min(expected // ROWS_PER_PART + 1, MOST_PARTS)
        self._files = [tempfile.TemporaryFile(buffering=0) for _ in range(self._count)]
        self._buffers = [bytearray() for _ in range(self._count)]

    def __len__(self) -> int:
        """The number of parts."""
        return self._count

    def close(self) -> None:
        for file in self._files:
            file.close()

    def add(self, tag: int, message_id: bytes, octets: bytes) -> None:
        """Raises OSError (a full disk)."""
        part = (message_id[15] | message_id[14] << 8) % self._count
        buffer = self._buffers[part]
        buffer += _HEAD.pack(tag, message_id, len(octets)) + octets
        if len(buffer) >= _FLUSH:
            self._write(part)

    def flush(self) -> None:
        for part in range(self._count):
            self._write(part)

    def _write(self, part: int) -> None:
        left = memoryview(bytes(self._buffers[part]))
        self._buffers[part].clear()
        fd = self._files[part].fileno()
        while left:
            left = left[os.write(fd, left) :]

    def __iter__(self) -> Iterator[Grouped]:
        self.flush()
        for file in self._files:
            file.seek(0)
            yield _grouped(file.read())


def _grouped(data: bytes) -> Grouped:
    found: Grouped = {}
    at = 0
    while at < len(data):
        tag, message_id, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        found.setdefault(message_id, []).append((tag, data[at : at + size]))
        at += size
    return found
