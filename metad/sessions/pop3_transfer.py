"""Sends a message to a POP3 client that is not in memory, or too large for it.

A thread reads some pieces at a time; the next ones are read when the client has taken the last.
The layer decides what is verified and which log is held.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

from metad import limits
from metad.protocol.pop3.machine import Pop3
from metad.system.osio import Buffer


class Pieces(NamedTuple):
    """Octets of a message, and whether they are the last."""

    chunks: list[bytes]
    last: bool


class Transfer:
    """One message: RETR, or TOP with `top`."""

    __slots__ = ("_begun", "_pieces", "number", "top")

    def __init__(self, pieces: Iterator[Buffer], number: int, *, top: bool) -> None:
        self.number = number
        self.top = top
        self._pieces = pieces
        self._begun = False

    @property
    def has_begun(self) -> bool:
        """Octets were sent: only closing the connection can tell the client of a failure."""
        return self._begun

    def read(self) -> Pieces:
        """The next octets.  Called in a thread.  Raises RefusedError, OSError."""
        chunks: list[bytes] = []
        octets = 0
        for piece in self._pieces:
            chunks.append(bytes(piece))
            octets += len(piece)
            if octets >= limits.PIECE_GIVEN:
                return Pieces(chunks, last=False)
        return Pieces(chunks, last=True)

    def give(self, machine: Pop3, pieces: Pieces) -> bool:
        """Pass octets to the machine.  True: the answer is complete."""
        if self.top:
            self._begun = True
            machine.top(pieces.chunks)
            return machine.top_done
        if not self._begun:
            self._begun = True
            machine.message_begin()
        for chunk in pieces.chunks:
            machine.message_chunk(chunk)
        if pieces.last:
            machine.message_end()
        return pieces.last

    def close(self) -> None:
        """Release the layer's resources for this message."""
        if isinstance(self._pieces, Generator):
            self._pieces.close()
