"""A message while it arrives: in memory, and a large one in a file without a name.

So a slow client never holds a log, and many large messages at once cost disk, not memory: one
message holds at most `MESSAGE_MEMORY` octets, all of a worker together at most `WORKER_MEMORY`
besides the first `SMALL` of each.
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
    """Octets of bodies beyond the small ones that a worker holds in memory."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Spool:
    """Takes chunks; afterwards they are its body.  Raises OSError if the disk is full."""

    __slots__ = ("_budget", "_directory", "_fd", "_held", "_osio", "parts", "size")

    def __init__(self, osio: Osio, directory: str, budget: Budget) -> None:
        self._osio = osio
        self._directory = directory
        self._budget = budget
        self._fd = -1
        self._held = 0  # octets of the budget that this one has
        self.parts: list[bytes] = []
        self.size = 0

    @property
    def in_memory(self) -> bool:
        return self._fd < 0

    def write(self, chunk: bytes) -> None:
        size = self.size + len(chunk)
        if size > SMALL:
            self._write_large(chunk)
        else:
            self.parts.append(chunk)
            self.size = size

    def _write_large(self, chunk: bytes) -> None:
        """Beyond the first octets, which every connection may hold, there is a budget."""
        size = self.size + len(chunk)
        more = size - self._held
        if self._fd < 0 and size <= MESSAGE_MEMORY and self._budget.used + more <= WORKER_MEMORY:
            self._budget.used += more
            self._held = size
            self.parts.append(chunk)
            self.size = size
            return
        if self._fd < 0:
            self._spill()
        self._append(chunk)

    def _spill(self) -> None:
        self._fd = self._osio.open(self._directory, os.O_RDWR | os.O_TMPFILE)
        parts = self.parts
        self.parts, self.size = [], 0
        self._give_back()
        for part in parts:
            self._append(part)

    def _give_back(self) -> None:
        self._budget.used -= self._held
        self._held = 0

    def _append(self, chunk: bytes) -> None:
        if self._osio.pwrite(self._fd, chunk, self.size) != len(chunk):
            raise OSError("short write to the spool")
        self.size += len(chunk)

    def close(self) -> None:
        """Give back the memory or the file.  Idempotent."""
        if self._fd >= 0:
            self._osio.close(self._fd)
            self._fd = -1
        if self._held:
            self._give_back()
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
