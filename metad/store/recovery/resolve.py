"""Decides which messages survive in an index being rebuilt, from footer entries.

Rules of this file:

* All entries about a message are here together: its copies, recipients and deletions.  The result
  does not depend on the order in which the logs were read.
* A copy counts as a place as long as it lies in a log; so does a deletion record, even without a
  copy.  The first place is the youngest copy that names every mailbox that has the message
  (metad.store.index.relocation).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from metad.store.index.bulk_load import Row
from metad.store.index.rows import DELETED, Deleted, pack_places
from metad.store.log.place import Place
from metad.store.log.record import DELETION, MESSAGE

_FIELDS = struct.Struct(">4s16s8s4sB3x")
_PLACE_ROW = struct.Struct(">16sII8s12s")
_PLACE = struct.Struct(">II")
_FIRST = struct.Struct(">I8s")
_KEPT = bytes(12)  # in place of a deletion record
# Id, kind (messages sort before deletions), mailbox, log, place (offset and size), octets.
Fields = tuple[bytes, int, bytes, int, bytes, bytes]


def fields_of(number: int, entries: bytes) -> Iterator[Fields]:
    """The footer entries of log `number` that speak of mail, for a `Resolution`, unsorted."""
    for mailbox, message_id, place, octets, kind in _FIELDS.iter_unpack(entries):
        if kind <= DELETION:
            yield message_id, kind, mailbox, number, place, octets


class Resolution:
    """For some messages: rows of places, surviving entries, live messages and octets per log."""

    def __init__(self, lives: Mapping[int, int]) -> None:
        self._lives = lives
        self.places: list[bytes] = []
        self.odd: list[Row] = []
        self.survivors: list[bytes] = []
        self.live: dict[int, list[int]] = {}

    def run(self, rows: list[Fields]) -> None:
        """`rows` are sorted."""
        at, count = 0, len(rows)
        while at < count:
            message_id, kind, mailbox, number, place, octets = rows[at]
            stop = at + 1
            while stop < count and rows[stop][0] == message_id:
                stop += 1
            # The most common case by far: one copy and one recipient, which has it or has deleted
            # it.
            if kind == MESSAGE and stop == at + 2 and rows[at + 1][1:3] == (DELETION, mailbox):
                record = _deleted(*rows[at + 1])
                self.places.append(_PLACE_ROW.pack(message_id, 0, number, place, record))
            elif stop > at + 1:
                self._several(message_id, rows[at:stop])
            elif kind == MESSAGE:
                self.places.append(_PLACE_ROW.pack(message_id, 1, number, place, _KEPT))
                self.survivors.append(mailbox + message_id + octets)
                self._count(number, int.from_bytes(place[4:], "big"))
            else:
                note = _deleted(*rows[at])
                self.places.append(_PLACE_ROW.pack(message_id, 0, *_FIRST.unpack(note), _KEPT))
            at = stop

    def _several(self, message_id: bytes, rows: list[Fields]) -> None:
        """Copies, recipients and deletions of one message."""
        deleted = [_unpack_deleted(row) for row in rows if row[1] != MESSAGE]
        gone = {row[2] for row in rows if row[1] != MESSAGE}
        copies = {row[3:5] for row in rows if row[1] == MESSAGE}
        named = {row[2]: row[5] for row in rows if row[1] == MESSAGE and row[2] not in gone}
        if not copies:
            self.odd.append((message_id, pack_places(0, [], dict.fromkeys(deleted))))
            return
        if len(copies) == 1 and not gone:
            number, place = copies.pop()
            self.places.append(_PLACE_ROW.pack(message_id, len(named), number, place, _KEPT))
        else:
            places = self._ordered(rows, named)
            packed = pack_places(len(named), places, dict.fromkeys(deleted))
            self.odd.append((message_id, packed))
            number, place = places[0].log, _PLACE.pack(places[0].offset, places[0].size)
        self.survivors += [mailbox + message_id + octets for mailbox, octets in named.items()]
        if named:
            self._count(number, int.from_bytes(place[4:], "big"))

    def _ordered(self, rows: list[Fields], named: dict[bytes, bytes]) -> list[Place]:
        """The places of a message in order.

        First the youngest copy that names all mailboxes with it (metad.store.index.relocation).
        """
        names: dict[tuple[int, bytes], int] = {}
        for _, kind, mailbox, number, place, _ in rows:
            if kind == MESSAGE:
                names[number, place] = names.get((number, place), 0) + (mailbox in named)
        ordered = sorted(names, key=lambda p: (names[p], self._lives[p[0]], p[1]), reverse=True)
        return [Place(number, *_PLACE.unpack(place)) for number, place in ordered]

    def _count(self, number: int, size: int) -> None:
        live = self.live.get(number)
        if live is None:
            live = self.live[number] = [0, 0]
        live[0] += 1
        live[1] += size


def _deleted(_id: bytes, _kind: int, mailbox: bytes, log: int, place: bytes, _: bytes) -> bytes:
    return (DELETED | log).to_bytes(4, "big") + place[:4] + mailbox


def _unpack_deleted(row: Fields) -> Deleted:
    return Deleted(row[3], int.from_bytes(row[4][:4], "big"), int.from_bytes(row[2], "big"))
