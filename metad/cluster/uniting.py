"""The union of what members have of a mailbox, without what any of them knows as deleted.

Rules of this file:

* The lists are in the order of their ids, so the union is made a piece at a time: a mailbox of
  400,000 messages takes a second in all, in which a worker has other sessions and its links.
* Where all lists have the same bytes and nothing was deleted, their bytes are taken as they are.
* A list in another order is an error: the union would lack messages.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import islice
from operator import lt

from metad.cluster.listed import ENTRY_SIZE, ID_SIZE, Listed
from metad.errors import ClusterError

# Entries of each list in one step: some hundred microseconds.
PIECE = 500
_LAST = b"\xff" * (ID_SIZE + 1)  # after every id
_SIZE = struct.Struct(f">{ID_SIZE}xI")


class Union:
    """`entries`: id and 4 bytes of size each, in order.  `octets`: their sizes.  `holders`: the
    members that have a message which `own` lacks."""

    __slots__ = ("_dead", "_others", "_own", "entries", "holders", "octets", "uids")

    def __init__(self, own: Listed, others: Mapping[int, Listed]) -> None:
        """`others`: by the members' numbers."""
        self._own = _Rest(own.entries, ENTRY_SIZE)
        self._others = {number: _Rest(each.entries, ENTRY_SIZE) for number, each in others.items()}
        self._dead = [_Rest(each.tombstones, ID_SIZE) for each in (own, *others.values())]
        self.entries = bytearray()
        self.octets = 0
        self.holders: dict[bytes, list[int]] = {}
        self.uids: dict[bytes, str] = {}
        for each in (own, *others.values()):
            self.uids |= each.uids

    def steps(self) -> Iterator[None]:
        """Make it.  Raises ClusterError if a list is not in order."""
        lists = [self._own, *self._others.values(), *self._dead]
        until = b""
        while True:
            before, until = until, min([one.until() for one in lists])
            if until <= before:
                raise _not_in_order()
            self._add(until)
            if until == _LAST:
                return
            yield

    def _add(self, until: bytes) -> None:
        """All up to this id."""
        own = self._own.take(until)
        others = {number: rest.take(until) for number, rest in self._others.items()}
        dead = [rest.take(until) for rest in self._dead]
        if any(dead) or any(one != own for one in others.values()):
            own = self._unite(own, others, dead)
        self.entries += own
        self.octets += sum([size for (size,) in _SIZE.iter_unpack(own)])

    def _unite(self, own: bytes, others: dict[int, bytes], dead: list[bytes]) -> bytes:
        gone = {one for each in dead for one in _ids(each, ID_SIZE)}
        here = _by_id(own)
        found = dict(here)
        for number, packed in others.items():
            for message_id, entry in _by_id(packed).items():
                if message_id not in here and message_id not in gone:
                    found[message_id] = entry
                    self.holders.setdefault(message_id, []).append(number)
        return b"".join([found[one] for one in sorted(found.keys() - gone)])


class _Rest:
    """What is left of one packed list."""

    __slots__ = ("_at", "_last", "_packed", "_size")

    def __init__(self, packed: bytes, size: int) -> None:
        """`size`: bytes of an entry, which begins with its id."""
        self._packed = packed
        self._size = size
        self._at = 0
        self._last = b""  # the id of what was taken last

    def until(self) -> bytes:
        """The id up to which the next step may take it."""
        end = self._at + PIECE * self._size
        return self._id(end - self._size) if end < len(self._packed) else _LAST

    def take(self, until: bytes) -> bytes:
        """The entries up to this id.  Raises ClusterError."""
        size, at = self._size, self._at
        end = min(at + PIECE * size, len(self._packed))
        end = at + size * bisect_right(range(at, end, size), until, key=self._id)
        if end > at:
            if self._id(at) <= self._last:
                raise _not_in_order()
            self._last = self._id(end - size)
            self._at = end
        return self._packed[at:end]

    def _id(self, at: int) -> bytes:
        return self._packed[at : at + ID_SIZE]


def _ids(packed: bytes, size: int) -> list[bytes]:
    """Raises ClusterError."""
    ids = [packed[at : at + ID_SIZE] for at in range(0, len(packed), size)]
    if not all(map(lt, ids, islice(ids, 1, None))):
        raise _not_in_order()
    return ids


def _by_id(packed: bytes) -> dict[bytes, bytes]:
    """The entries.  Raises ClusterError."""
    entries = [packed[at : at + ENTRY_SIZE] for at in range(0, len(packed), ENTRY_SIZE)]
    return dict(zip(_ids(packed, ENTRY_SIZE), entries, strict=True))


def _not_in_order() -> ClusterError:
    return ClusterError("a list of messages is not in the order of their ids")
