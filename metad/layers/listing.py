"""The listing of a mailbox as of login, made when needed, piece by piece.

    login       messages and octets from the usage row, and the newest id: microseconds, however
                many messages there are; STAT and QUIT need no more
    first need  the entries up to that id, some thousand per step, each a transaction of its own

Between the two, nothing disappears: the mailbox lock keeps other sessions and expiry out.  Messages
may be added, even with smaller ids, if another worker committed later what it had numbered earlier.
As many of the latest messages before the newest as arrived after the login are left for the next
session.

Rule of this file: the entries are authoritative; the usage row is derived from them.  If they
disagree in any other way, the entries count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from metad.store.ids import ID_SIZE
from metad.store.index.index import LISTING_ENTRY, Index

# Entries in one step: about a millisecond.
STEP = 2000
# Seconds before the newest id within which another worker may have numbered a message.
LATE_SECONDS = 60
MOST_LATE = 1000
_ENTRY = LISTING_ENTRY.size
_OCTETS = struct.Struct(">I")


class Listing:
    """`is_complete`: the entries have been read."""

    __slots__ = ("_index", "_mailbox", "_newest", "_packed", "is_complete", "messages", "octets")

    def __init__(self, index: Index, mailbox: int) -> None:
        """Raises lmdb.Error."""
        usage, self._newest = index.opening(mailbox)
        self._index = index
        self._mailbox = mailbox
        self._packed: bytes | bytearray = b""
        self.messages = usage.messages
        self.octets = usage.octets
        self.is_complete = not usage.messages

    def steps(self) -> Iterator[None]:
        """Make the listing; each step takes about a millisecond.  Raises lmdb.Error."""
        packed = bytearray()
        octets = 0
        last = b""
        while piece := self._index.listing_piece(self._mailbox, last, STEP):
            last = piece[-1][:ID_SIZE]
            if last > self._newest:
                piece = [one for one in piece if one[:ID_SIZE] <= self._newest]
            packed += b"".join(piece)
            octets += sum(map(_octets, piece))
            if last >= self._newest:
                break
            yield
        self._settle(packed, octets)
        self.is_complete = True

    def _settle(self, packed: bytearray, octets: int) -> None:
        """Leave out messages that arrived after the login, and count the rest."""
        late = len(packed) // _ENTRY - self.messages
        for at in self._came_late(packed, late, octets - self.octets) if late > 0 else ():
            octets -= _octets(packed[at : at + _ENTRY])
            del packed[at : at + _ENTRY]
        self._packed = packed
        self.messages = len(packed) // _ENTRY
        self.octets = octets

    def _came_late(self, packed: bytearray, late: int, octets: int) -> list[int]:
        """The positions of `late` entries that may have arrived after the login, the last first.

        The newest was there at the login.  None if the last minute has fewer others: then the
        usage row was wrong.
        """
        time_us = int.from_bytes(self._newest[:8], "big") - LATE_SECONDS * 1_000_000
        since = max(time_us, 0).to_bytes(8, "big")
        first = max(len(packed) - MOST_LATE * _ENTRY, 0)
        places = range(len(packed) - _ENTRY, first - 1, -_ENTRY)
        recent = [
            at
            for at in places
            if packed[at : at + 8] >= since and packed[at : at + ID_SIZE] != self._newest
        ]
        if len(recent) < late:
            return []
        if late == 1:
            exact = [at for at in recent if _octets(packed[at : at + _ENTRY]) == octets]
            return exact[:1] or recent[:1]
        return recent[:late]

    @property
    def packed(self) -> bytes | bytearray:
        """The entries, once it is complete: ids, each with four bytes of its size."""
        return self._packed

    def size(self, number: int) -> int:
        octets: int = _OCTETS.unpack_from(self._packed, number * _ENTRY - 4)[0]
        return octets

    def id(self, number: int) -> bytes:
        at = (number - 1) * _ENTRY
        return bytes(self._packed[at : at + ID_SIZE])


class WholeListing(Listing):
    """The listing for a member of the cluster, which unites it with others.

    What arrives meanwhile may be in it: a copy may have any id, so that which entries came late
    cannot be told by their ids, and nothing that was acknowledged before may be missing.
    """

    __slots__ = ()

    def _settle(self, packed: bytearray, octets: int) -> None:
        self._packed = packed
        self.messages = len(packed) // _ENTRY
        self.octets = octets


def _octets(entry: bytes | bytearray) -> int:
    return int.from_bytes(entry[ID_SIZE:], "big")
