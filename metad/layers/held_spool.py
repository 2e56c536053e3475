"""A spool that does without the disk: for mail that others can store, or that lies elsewhere.

Rule of this file: if this node's disk is full or broken, the rest of the message stays in memory as
far as the budget allows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from metad.budget import Budget
from metad.layers.spool import Spool, read_parts
from metad.limits import CHUNK_MEMORY
from metad.system.osio import Buffer, Osio


class HeldSpool(Spool):
    """`holds`: the disk has failed it."""

    __slots__ = ("_may_hold", "_rest", "_rest_size", "holds")

    def __init__(
        self, osio: Osio, directory: str, budget: Budget, may_hold: Callable[[], bool]
    ) -> None:
        """`may_hold`: whether it is worth the memory."""
        super().__init__(osio, directory, budget)
        self._may_hold = may_hold
        self._rest: list[bytes] = []  # what follows the octets in the file
        self._rest_size = 0
        self.holds = False

    def _write_where_it_fits(self, chunk: bytes, size: int, used: int) -> None:
        if not self.holds:
            try:
                super()._write_where_it_fits(chunk, size, used)
                return
            except OSError:
                if not self._may_hold():
                    raise
                self.holds = True
        self._hold(chunk)

    def _hold(self, chunk: bytes) -> None:
        budget = self._budget
        used = budget.used + len(chunk) + CHUNK_MEMORY
        if used > budget.half:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        budget.used = used
        if self.in_memory:
            self.parts.append(chunk)
        else:
            self._rest.append(chunk)
            self._rest_size += len(chunk)
        self.size += len(chunk)

    def read(self, at: int, most: int) -> bytes:
        if not self._rest:
            return super().read(at, most)
        in_file = max(self.size - self._rest_size - at, 0)
        data = self._osio.pread(self._fd, min(most, in_file), at) if in_file else b""
        if len(data) != min(most, in_file):
            raise OSError("the spool is shorter than what was written")
        start = max(at - (self.size - self._rest_size), 0)
        return data + read_parts(self._rest, start, most - len(data))

    def pieces(self) -> Iterator[Buffer]:
        if not self._rest:
            yield from super().pieces()
            return
        at = 0
        while at < self.size:
            piece = self.read(at, 1 << 20)
            yield piece
            at += len(piece)

    def close(self) -> None:
        if self._rest:
            self._budget.used -= self._rest_size + CHUNK_MEMORY * len(self._rest)
            self.size -= self._rest_size
            self._rest, self._rest_size = [], 0
        super().close()
