"""The rows of tombstones: what mailboxes deleted that the other members of a cluster must learn of.

One table, `tombstones`, which only the index of a clustered store has.  The first byte of a key
says what the row is:

    t  mailbox (4) + id (16)      -> 18 bytes for each origin that told of it: origin, sequence (8)
    o  origin (10) + sequence (8) -> mailbox + id
    v  origin                     -> sequence up to which this store has that origin's (8)
    m                             -> this store's own origin, and the last sequence that it gave

An origin is a node number (2) and an incarnation (8): a rebuild numbers everything again, so
it takes another incarnation.  All numbers are big-endian.

Rules of this file:

* Each method works in the caller's transaction: a tombstone stands from the moment on in which its
  deletion is entered.
* A tombstone that stands gets no second number of this store's own.  What another origin tells is
  noted under that origin too: a member that has an origin up to a number has all its tombstones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from metad.store.ids import ID_SIZE

TABLE = b"tombstones"
TOLD_SIZE = 18
_TOLD = struct.Struct(">HQQ")
_ORIGIN = struct.Struct(">HQ")
_SEQUENCE = struct.Struct(">Q")
_DEAD, _BY_ORIGIN, _VECTOR, _MINE = b"t", b"o", b"v", b"m"
_MAILBOX = 4
_KEY = _MAILBOX + ID_SIZE

# LMDB's stubs say of these bytes or memoryview; without `buffers` it is bytes.
Txn = Any


class Origin(NamedTuple):
    """Who numbered a tombstone: a node, in one life of its index."""

    number: int
    incarnation: int


class TombstoneSums:
    """Compares the two kinds of rows that each tombstone has, without keeping them."""

    def __init__(self) -> None:
        self._difference = 0

    def take(self, key: bytes, value: bytes) -> bytes:
        """A row of the table.  Mailbox and id, if it is a tombstone's.

        Raises ValueError for one that cannot be.
        """
        kind, sizes = key[:1], (len(key), len(value))
        if kind == _DEAD and len(key) == 1 + _KEY and value and not len(value) % TOLD_SIZE:
            for at in range(0, len(value), TOLD_SIZE):
                self._difference += int.from_bytes(value[at : at + TOLD_SIZE] + key[1:], "big")
            return key[1:]
        if kind == _BY_ORIGIN and sizes == (1 + TOLD_SIZE, _KEY):
            self._difference -= int.from_bytes(key[1:] + value, "big")
        elif (kind, *sizes) not in ((_VECTOR, 11, 8), (_MINE, 1, TOLD_SIZE)):
            raise ValueError(f"a row of tombstones is damaged: {key.hex()}")
        return b""

    @property
    def agree(self) -> bool:
        """Whether each tombstone is under its origins, and nothing else is."""
        return not self._difference


class Tombstone(NamedTuple):
    """A mailbox deleted a message, as an origin told it."""

    mailbox: int
    id: bytes
    origin: Origin
    sequence: int

    @property
    def key(self) -> bytes:
        return self.mailbox.to_bytes(_MAILBOX, "big") + self.id


def pack_told(told: Iterable[tuple[Origin, int]]) -> bytes:
    """Origin and sequence of each id of a deletion, for `record.Deletion.told`."""
    return b"".join([_TOLD.pack(*origin, sequence) for origin, sequence in told])


def unpack_told(value: bytes) -> list[tuple[Origin, int]]:
    return [(Origin(number, life), at) for number, life, at in _TOLD.iter_unpack(value)]


class TombstoneRows:
    """The table, in one transaction."""

    def __init__(self, txn: Txn, table: Any) -> None:
        self._txn = txn
        self._table = table

    # -- looking

    def mine(self) -> tuple[Origin, int]:
        """This store's origin, and the last number that it gave."""
        return unpack_told(self._txn.get(_MINE, db=self._table))[0]

    def stands(self, key: bytes) -> bool:
        """`key`: mailbox and id."""
        return self._txn.get(_DEAD + key, db=self._table) is not None

    def told(self, key: bytes) -> list[tuple[Origin, int]]:
        """Who told of a tombstone; nothing if it does not stand."""
        return unpack_told(self._txn.get(_DEAD + key, b"", db=self._table))

    def of_mailbox(self, mailbox: int, after: bytes, most: int) -> list[bytes]:
        """The first ids that a mailbox deleted, greater than `after`, in order."""
        start = _DEAD + mailbox.to_bytes(_MAILBOX, "big")
        return [key[-ID_SIZE:] for key, _ in islice(self._from(start, after + b"\0"), most)]

    def since(self, origin: Origin, sequence: int, most: int) -> list[Tombstone]:
        """The first tombstones of an origin with greater numbers, in order."""
        start = _BY_ORIGIN + _ORIGIN.pack(*origin)
        rows = islice(self._from(start, _SEQUENCE.pack(sequence) + b"\0"), most)
        return [
            Tombstone(
                int.from_bytes(key[:_MAILBOX], "big"),
                key[_MAILBOX:],
                origin,
                int.from_bytes(by[-_SEQUENCE.size :], "big"),
            )
            for by, key in rows
        ]

    def vector(self) -> dict[Origin, int]:
        """Of each origin, the number up to which this store has its tombstones."""
        mine, last = self.mine()
        rows = self._from(_VECTOR, b"")
        heard = {
            Origin(*_ORIGIN.unpack(key[1:])): int.from_bytes(value, "big") for key, value in rows
        }
        return heard | {mine: last}

    def keys(self) -> Iterator[bytes]:
        """Mailbox and id of every tombstone, in order."""
        return (key[1:] for key, _ in self._from(_DEAD, b""))

    def _from(self, start: bytes, after: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows whose keys begin with `start`, from `start + after` on."""
        with self._txn.cursor(self._table) as cursor:
            if cursor.set_range(start + after):
                for key, value in cursor:
                    if not key.startswith(start):
                        return
                    yield key, value

    # -- changing

    def begin(self, origin: Origin) -> None:
        """Number from now on as that origin, unless this node has one in this table."""
        value = self._txn.get(_MINE, db=self._table)
        if value is None:
            self._put(_MINE, _TOLD.pack(*origin, 0))
        elif unpack_told(value)[0][0].number != origin.number:
            mine, last = unpack_told(value)[0]
            self._put(_VECTOR + _ORIGIN.pack(*mine), _SEQUENCE.pack(last))
            self._put(_MINE, _TOLD.pack(*origin, 0))

    def bury(self, mailbox: int, ids: Iterable[bytes], told: bytes) -> None:
        """Messages of a mailbox are deleted: `told` by others, if not empty, else by this node."""
        start = mailbox.to_bytes(_MAILBOX, "big")
        if told:
            for at, one in enumerate(ids):
                self.note(start + one, told[at * TOLD_SIZE : (at + 1) * TOLD_SIZE])
        else:
            self.number([start + one for one in ids])

    def number(self, keys: Iterable[bytes]) -> None:
        """Give these the next numbers of this node, but for those that stand."""
        mine, last = self.mine()
        before = last
        for key in keys:
            if not self.stands(key):
                last += 1
                self.note(key, _TOLD.pack(*mine, last))
        if last > before:
            self._put(_MINE, _TOLD.pack(*mine, last))

    def note(self, key: bytes, told: bytes) -> None:
        """A tombstone stands, as one origin told it."""
        before = self._txn.get(_DEAD + key, b"", db=self._table)
        if told not in [before[at : at + TOLD_SIZE] for at in range(0, len(before), TOLD_SIZE)]:
            self._put(_DEAD + key, before + told)
            self._put(_BY_ORIGIN + told, key)

    def advance(self, origin: Origin, sequence: int) -> None:
        """This store has an origin's tombstones up to a number.  It never goes back."""
        key = _VECTOR + _ORIGIN.pack(*origin)
        known = int.from_bytes(self._txn.get(key, b"", db=self._table), "big")
        if sequence > known and origin != self.mine()[0]:
            self._put(key, _SEQUENCE.pack(sequence))

    def forget(self, key: bytes) -> None:
        """A tombstone stands no more."""
        value = self._txn.pop(_DEAD + key, db=self._table) or b""
        for at in range(0, len(value), TOLD_SIZE):
            self._txn.delete(_BY_ORIGIN + value[at : at + TOLD_SIZE], db=self._table)

    def _put(self, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._table)
