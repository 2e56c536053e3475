"""The rows of the index: their contents and packing, and the input of a transaction.

All numbers are big-endian; a change of a row raises `index.state.LAYOUT`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from metad.errors import MetadError
from metad.store.log import record
from metad.store.log.place import Message, Place

REFERENCES = struct.Struct(">I")
PLACE = struct.Struct(">III")
ONE_PLACE = struct.Struct(">IIII")  # a row of `places` with one copy
DELETED = 1 << 31  # in the log number of a row's item: the place of a deletion record
_ENTRY_ROW = struct.Struct("20s8x4s4x")  # of a footer entry: mailbox and id; bytes
_LOG = struct.Struct(">QQQQ")
# Makes a NamedTuple from a complete tuple: half the cost of calling its class.
_new = tuple.__new__


class DisagreementError(MetadError):
    """The index is in an impossible state: it is suspect, and must be rebuilt."""


class Deleted(NamedTuple):
    """The place of the record by which `mailbox` deleted a message."""

    log: int
    offset: int
    mailbox: int


# Noted in a row that was made for a deletion record: whether copies exist is unknown.
UNFOUNDED = Deleted(0, 0, (1 << 32) - 1)


class LogCounts(NamedTuple):
    """What the index knows about one log.  `watermark`: indexed up to this offset of this life."""

    life: int = 0
    watermark: int = 0
    live_messages: int = 0
    live_octets: int = 0


class Batch(NamedTuple):
    """The input of one transaction: records of one log, in order, and its new watermark."""

    log: int
    life: int
    watermark: int
    messages: list[Message]
    deletions: list[record.Deletion]


def entry_rows(entries: bytes) -> list[tuple[bytes, bytes]]:
    """The rows of messages' footer entries."""
    return list(_ENTRY_ROW.iter_unpack(entries))


def unpack_places(value: bytes) -> list[Place]:
    """The copies of a message, from its row of places."""
    items = PLACE.iter_unpack(value[REFERENCES.size :])
    return [_new(Place, fields) for fields in items if fields[0] < DELETED]


def unpack_deleted(value: bytes) -> list[Deleted]:
    """Where the records lie that delete a message, from its row of places."""
    items = PLACE.iter_unpack(value[REFERENCES.size :])
    return [Deleted(log - DELETED, *rest) for log, *rest in items if log >= DELETED]


def unpack_row(value: bytes) -> tuple[int, list[Place], list[Deleted]]:
    """References, copies and deletion records of a row of places, in one pass: the collector
    unpacks four rows for each message."""
    references: int = REFERENCES.unpack_from(value)[0]
    places: list[Place] = []
    deleted: list[Deleted] = []
    for item in PLACE.iter_unpack(value[REFERENCES.size :]):
        if item[0] < DELETED:
            places.append(_new(Place, item))
        else:
            deleted.append(_new(Deleted, (item[0] - DELETED, item[1], item[2])))
    return references, places, deleted


def pack_deleted(deleted: Deleted) -> bytes:
    """One item of a row of places."""
    log, offset, mailbox = deleted
    return PLACE.pack(DELETED | log, offset, mailbox)


def unpack_log(value: bytes | memoryview | None) -> LogCounts:
    """What the index knows about a log; empty if it has no row."""
    return LogCounts(*_LOG.unpack(value)) if value else LogCounts()


def pack_log(counts: LogCounts) -> bytes:
    return _LOG.pack(*counts)


def unpack_references(value: bytes) -> int:
    """How many mailboxes refer to a message, from its row of places."""
    references: int = REFERENCES.unpack_from(value)[0]
    return references


def pack_places(references: int, places: Iterable[Place], deleted: Iterable[Deleted] = ()) -> bytes:
    items = [REFERENCES.pack(references), *[PLACE.pack(*place) for place in places]]
    if deleted:
        items += map(pack_deleted, deleted)
    return b"".join(items)
