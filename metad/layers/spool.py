"""A message while it arrives: in memory, and a large one in a file without a name.

So a slow client never holds a log, and many large messages at once cost disk, not memory: one
message holds at most `MESSAGE_MEMORY` octets, all of a worker together at most `WORKER_MEMORY`
and a buffer each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from metad.osio import Buffer, Osio

MESSAGE_MEMORY = 512 * 1024
WORKER_MEMORY = 64 << 20
SMALL = 64 * 1024
PIECE = 1 << 20


class Budget:
    """Octets of bodies that a worker holds in memory."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Spool:
    """Takes chunks; afterwards they are its body.  Raises OSError if the disk is full."""

    __slots__ = ("_budget", "_directory", "_fd", "_osio", "parts", "size")

    def __init__(self, osio: Osio, directory: str, budget: Budget) -> None:
        self._osio = osio
        self._directory = directory
        self._budget = budget
        self._fd = -1
        self.parts: list[bytes] = []
        self.size = 0

    @property
    def in_memory(self) -> bool:
        return self._fd < 0

    def write(self, chunk: bytes) -> None:
        size = len(chunk)
        if self._fd >= 0:
            self._append(chunk)
            return
        held = self.size + size
        if held > MESSAGE_MEMORY or (self._budget.used + size > WORKER_MEMORY and held > SMALL):
            self._spill()
            self._append(chunk)
            return
        self._budget.used += size
        self.parts.append(chunk)
        self.size = held

    def _spill(self) -> None:
        self._fd = self._osio.open(self._directory, os.O_RDWR | os.O_TMPFILE)
        parts, held = self.parts, self.size
        self.parts, self.size = [], 0
        self._budget.used -= held
        for part in parts:
            self._append(part)

    def _append(self, chunk: bytes) -> None:
        if self._osio.pwrite(self._fd, chunk, self.size) != len(chunk):
            raise OSError("short write to the spool")
        self.size += len(chunk)

    def close(self) -> None:
        """Give back the memory or the file.  Idempotent."""
        if self._fd >= 0:
            self._osio.close(self._fd)
            self._fd = -1
        elif self.parts:
            self._budget.used -= self.size
        self.parts = []

    def pieces(self) -> Iterator[Buffer]:
        """The octets of a spilled message, again from the start at each call."""
        at = 0
        while at < self.size:
            piece = self._osio.pread(self._fd, min(PIECE, self.size - at), at)
            if not piece:
                raise OSError("the spool is shorter than what was written")
            yield piece
            at += len(piece)


class SpooledBody:
    """A spilled message as the commit sees it: the trace, then the file."""

    def __init__(self, trace: bytes, spool: Spool) -> None:
        self._trace = trace
        self._spool = spool
        self.size = len(trace) + spool.size

    def chunks(self) -> Iterator[Buffer]:
        yield self._trace
        yield from self._spool.pieces()
