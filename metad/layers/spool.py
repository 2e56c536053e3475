"""A message while it arrives: in memory, or in an unlinked file if it is large.

So a slow client never holds a log, and many large messages at once cost disk, not memory: one
message holds at most `MESSAGE_MEMORY` octets, and all messages of a worker together hold at most
their budget.

Rules of this file:

* Every octet in memory counts, from the first one, and so does Python's overhead for a chunk: a
  client may send its message in pieces of two octets.
* A message for which the budget has no room is spilled at once, however small it is.
* Large messages may use half of the budget: messages in files are committed one by one, and a few
hundred clients that hold half a message each must not force all others into files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from metad.budget import Budget
from metad.errors import NoSpaceError, RefusedError
from metad.layers.base import Done, Incoming
from metad.limits import CHUNK_MEMORY, MESSAGE_MEMORY, SMALL_MESSAGE
from metad.system.osio import LEFT_FREE, Buffer, Osio

PIECE = 1 << 20


class Spool:
    """Collects chunks, which become its body.  Raises OSError if the disk is nearly full."""

    __slots__ = ("_budget", "_directory", "_fd", "_osio", "parts", "size")

    def __init__(self, osio: Osio, directory: str, budget: Budget) -> None:
        self._osio = osio
        self._directory = directory
        self._budget = budget
        self._fd = -1
        self.parts: list[bytes] = []  # overhead of a chunk, charged besides its size
        self.size = 0

    @property
    def in_memory(self) -> bool:
        return self._fd < 0

    def write(self, chunk: bytes) -> None:
        budget = self._budget
        length = len(chunk)
        size = self.size + length
        used = budget.used + length + CHUNK_MEMORY
        if used > budget.half or size > SMALL_MESSAGE or self._fd >= 0:
            self._write_where_it_fits(chunk, size, used)
        else:
            budget.used = used
            self.parts.append(chunk)
            self.size = size

    def _write_where_it_fits(self, chunk: bytes, size: int, used: int) -> None:
        """`size` and `used` include this chunk, if it stays in memory."""
        budget = self._budget
        most = budget.limit if size <= SMALL_MESSAGE else budget.half
        if self._fd < 0 and size <= MESSAGE_MEMORY and used <= most:
            budget.used = used
            self.parts.append(chunk)
            self.size = size
        else:
            if self._fd < 0:
                self._spill()
            self._append(chunk)

    def _spill(self) -> None:
        """If it fails, what is in memory stays there."""
        self._leave_room(self.size)
        fd = self._osio.open(self._directory, os.O_RDWR | os.O_TMPFILE)
        at = 0
        try:
            for part in self.parts:
                self._write(fd, part, at)
                at += len(part)
        except OSError:
            self._osio.close(fd)
            raise
        self._give_back()
        self._fd = fd

    def _give_back(self) -> None:
        """Release the parts and their memory."""
        self._budget.used -= self.size + CHUNK_MEMORY * len(self.parts)
        self.parts = []

    def _leave_room(self, size: int) -> None:
        """The last blocks of the disk are the index's."""
        if self._osio.free_space(self._directory) < size + LEFT_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, chunk: bytes) -> None:
        self._leave_room(len(chunk))
        self._write(self._fd, chunk, self.size)
        self.size += len(chunk)

    def _write(self, fd: int, chunk: bytes, at: int) -> None:
        if self._osio.pwrite(fd, chunk, at) != len(chunk):
            raise OSError("short write to the spool")

    def close(self) -> None:
        """Give back the memory or the file.  Idempotent."""
        if self._fd >= 0:
            self._osio.close(self._fd)
            self._fd = -1
        if self.parts:
            self._give_back()

    def chunks(self) -> Iterator[Buffer]:
        """All octets, from the start at each call."""
        return iter(self.parts) if self._fd < 0 else self.pieces()

    def read(self, at: int, most: int) -> bytes:
        """Octets from `at` on, `most` of them if there are so many."""
        most = min(most, self.size - at)
        if self._fd < 0:
            return read_parts(self.parts, at, most)
        data = self._osio.pread(self._fd, most, at)
        if len(data) != most:
            raise OSError("the spool is shorter than what was written")
        return data

    def pieces(self) -> Iterator[Buffer]:
        """The octets of a spilled message, from the start at each call."""
        at = 0
        while at < self.size:
            piece = self._osio.pread(self._fd, min(PIECE, self.size - at), at)
            if not piece:
                raise OSError("the spool is shorter than what was written")
            yield piece
            at += len(piece)


def read_parts(parts: Sequence[Buffer], at: int, most: int) -> bytes:
    """`most` octets from `at` on."""
    found: list[Buffer] = []
    for part in parts:
        if most <= 0:
            break
        if at < len(part):
            piece = part[at : at + most]
            found.append(piece)
            most -= len(piece)
            at = 0
        else:
            at -= len(part)
    return b"".join(found)


class SpooledIncoming(Spool, Incoming):
    """A message that is spooled until it is complete, and until its layer has stored it.

    The layer implements `commit`, and passes `self.finished(done)` on instead of `done`.
    """

    __slots__ = ()

    def write(self, chunk: bytes) -> None:
        try:
            super().write(chunk)
        except OSError as error:
            raise NoSpaceError(f"spool: {error}") from error

    def finished(self, done: Done) -> Done:
        """What to call instead of `done`: it releases the message first."""

        def finish(error: RefusedError | None) -> None:
            self.close()
            done(error)

        return finish

    def abort(self) -> None:
        self.close()


class SpooledBody:
    """A spilled message as the commit reads it: the trace, then the file."""

    def __init__(self, trace: bytes, spool: Spool) -> None:
        self._trace = trace
        self._spool = spool

    def chunks(self) -> Iterator[Buffer]:
        yield self._trace
        yield from self._spool.pieces()
