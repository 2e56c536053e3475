"""The entries of all mailboxes: one table cut by age into levels, the youngest small, the oldest
large (a log-structured merge tree with a rolling merge: O'Neil and others, 1996).

Each level is a database of its own, with the same rows:

    mailbox (4) + id (16)  -> octets (4)                one per entry
    mailbox (4)            -> octets (8), messages (4)  usage by the entries of this level alone

New entries go to the youngest level.  When it exceeds its bound, each addition also moves somewhat
more entries than it adds to the next level, in key order, from where the last sweep stopped,
cyclically.  The reason: mail arrives for mailboxes in random order, so in one large tree every
message changes a different leaf, which LMDB copies whole.  A small tree's leaves stay in the caches
and change many times before they reach the disk; a sweep brings a leaf of the large tree several
entries at once.

Rules of this file:

* An entry is in exactly one level.  A mailbox's listing and usage combine all levels; only readers
  and loaders of whole tables know about levels.
* Usage changes in the same transaction as its entries; a level has no row of usage without entries.
* The position where a sweep stopped is only a hint: the next sweep moves whatever it finds.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

import lmdb

from metad.store.ids import ID_SIZE
from metad.store.usage import Usage

# Rows of each level but the last.  Between two visits of a sweep to the same key, twice a level's
# entries pass through, so that a leaf of the next level receives several: docs/performance.md,
# "Growth".
BOUNDS = (500_000,)
# Entries that a process adds between checks of the bounds: not every transaction has to check.
LOOK_EVERY = 64
# Rows that a sweep moves per entry added since: an entry may add a row of usage too, and the level
# must shrink.  For 64 entries it takes about half a millisecond.
_ROWS_PER_ENTRY = 4
_SWEPT = b"swept"  # in the environment's main database, of each level: where its sweep goes on
_MAILBOX = 4
_KEY = _MAILBOX + ID_SIZE
_USAGE = struct.Struct(">QI")
_ONE_MESSAGE = (1).to_bytes(4, "big")
_ENTRY = struct.Struct(">4s16xI")  # of an entry, key and value: mailbox, octets

Row = tuple[bytes, bytes]
# LMDB's stubs declare bytes or memoryview here; without `buffers` it is always bytes.
Txn = Any
Cursor = Any


class Lsm:
    """The tables, youngest first.  Each method works in the caller's transaction."""

    def __init__(
        self, env: lmdb.Environment, bounds: Sequence[int] = BOUNDS, *, create: bool = True
    ) -> None:
        self.tables = [env.open_db(name, create=create) for name in names(len(bounds) + 1)]
        self._bounds = bounds
        self._look_every = min([LOOK_EVERY, *(bound // 8 + 1 for bound in bounds)])
        self._unswept = 0  # entries that this process added since it looked at the bounds

    # -- changing

    def add(self, txn: Txn, rows: list[Row]) -> None:
        """Enter new entries, and move any excess to the next level."""
        with txn.cursor(self.tables[0]) as cursor:
            _add(cursor, rows, _sums(rows))
        self._unswept += len(rows)
        if self._unswept >= self._look_every:
            for at, bound in enumerate(self._bounds):
                if txn.stat(self.tables[at])["entries"] > bound:
                    self._sweep(txn, at, _ROWS_PER_ENTRY * self._unswept)
            self._unswept = 0

    def remove(self, txn: Txn, mailbox: bytes, ids: Iterable[bytes]) -> list[bytes]:
        """Remove entries from a mailbox.  Returns the ids of those that existed."""
        left = list(ids)
        removed: list[bytes] = []
        for table in self.tables:
            with txn.cursor(table) as cursor:
                found = _remove(cursor, mailbox, left)
            if found:
                removed += found
                left = [each for each in left if each not in found]
        return removed

    def _sweep(self, txn: Txn, at: int, most: int) -> None:
        """Move about `most` rows, in order, from level `at` to the next."""
        place = _SWEPT + bytes([at])
        with txn.cursor(self.tables[at]) as cursor:
            if not cursor.set_range(txn.get(place) or b"\0"):
                cursor.first()
            rows = list(islice(cursor, most))
            follows = _cut(cursor, rows)
            entries = [row for row in rows if len(row[0]) == _KEY]
            usage = {key: _number(value) for key, value in rows if len(key) == _MAILBOX}
            if follows in usage:  # a mailbox that keeps some entries, and their usage
                part = _sums(entries).get(follows, 0)
                cursor.put(follows, _packed(usage[follows] - part))
                usage[follows] = part
        txn.put(place, follows)
        with txn.cursor(self.tables[at + 1]) as cursor:
            _add(cursor, entries, usage)

    # -- reading

    def has(self, txn: Txn, key: bytes) -> bool:
        """Whether there is an entry of this mailbox and id."""
        return any(txn.get(key, db=table) is not None for table in self.tables)

    def listing(self, txn: Txn, mailbox: bytes) -> bytes:
        """Id and octets of each entry of a mailbox, packed, in the order of the ids."""
        found: list[bytes] = []
        parts = 0
        for table in reversed(self.tables):
            with txn.cursor(table) as cursor:
                some = _list(cursor, mailbox)
            if some:
                found += some
                parts += 1
        if parts > 1:
            found.sort()
        return b"".join(found)

    def listing_piece(self, txn: Txn, mailbox: bytes, after: bytes, most: int) -> list[bytes]:
        """The first `most` entries of a mailbox with ids greater than `after`, as `listing`."""
        found: list[bytes] = []
        for table in self.tables:
            with txn.cursor(table) as cursor:
                found += islice(_entries(cursor, mailbox, after), most)
        found.sort()
        return found[:most]

    def newest(self, txn: Txn, mailbox: bytes) -> bytes:
        """The greatest id of a mailbox; empty without entries."""
        greatest = b""
        for table in self.tables:
            with txn.cursor(table) as cursor:
                behind = cursor.set_range(mailbox + b"\xff" * (ID_SIZE + 1))
                if cursor.prev() if behind else cursor.last():
                    key = cursor.key()
                    if key[:_MAILBOX] == mailbox:
                        greatest = max(greatest, key[_MAILBOX:])
        return greatest

    def oldest(self, txn: Txn, mailbox: bytes, most: int) -> list[bytes]:
        """The first ids of a mailbox, in order, `most` of them."""
        found: list[bytes] = []
        for table in self.tables:
            with txn.cursor(table) as cursor:
                found += islice(_ids(cursor, mailbox), most)
        return sorted(found)[:most]

    def greatest_mailbox(self, txn: Txn) -> bytes:
        """The last mailbox that has mail; empty if none has."""
        last = b""
        for table in self.tables:
            with txn.cursor(table) as cursor:
                if cursor.last():
                    last = max(last, cursor.key()[:_MAILBOX])
        return last

    def usage(self, txn: Txn, mailbox: bytes) -> Usage:
        total = 0
        for table in self.tables:
            value = txn.get(mailbox, db=table)
            if value is not None:
                total += _number(value)
        return _usage(total)

    def rows(self, txn: Txn) -> int:
        """Number of rows, those of usage included."""
        return sum(txn.stat(table)["entries"] for table in self.tables)

    def usages(self, txn: Txn, start: bytes) -> Iterator[tuple[bytes, Usage]]:
        """Mailboxes with mail from `start` on, and their usage."""
        rows = heapq.merge(*(_usages(txn, table, start) for table in self.tables))
        for mailbox, same in groupby(rows, itemgetter(0)):
            yield mailbox, _usage(sum(_number(value) for _, value in same))


def names(count: int) -> list[bytes]:
    """The databases of so many levels, youngest first."""
    return [b"mailboxes%d" % at for at in range(count)]


def pack_usage(octets: int, messages: int) -> bytes:
    return _USAGE.pack(octets, messages)


def unpack_usage(value: bytes) -> Usage:
    return Usage(*_USAGE.unpack(value))


# Usage as one number: one addition updates both sums, and zero means no usage.


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _usage(number: int) -> Usage:
    return Usage(number >> 32, number & 0xFFFFFFFF)


def _packed(usage: int) -> bytes:
    return usage.to_bytes(_USAGE.size, "big")


def _sums(entries: list[Row]) -> dict[bytes, int]:
    """What entries add to the usage of their mailboxes."""
    sums: dict[bytes, int] = {}
    for mailbox, octets in _ENTRY.iter_unpack(b"".join(chain.from_iterable(entries))):
        sums[mailbox] = sums.get(mailbox, 0) + (octets << 32) + 1
    return sums


def _add(cursor: Cursor, entries: list[Row], usage: dict[bytes, int]) -> None:
    """Enter new entries, and what they add to usage, in one pass through the tree."""
    for mailbox, value in cursor.getmulti(sorted(usage)):
        usage[mailbox] += _number(value)
    rows = [(mailbox, _packed(its)) for mailbox, its in usage.items() if its]
    cursor.putmulti(sorted(entries + rows))


def _remove(cursor: Cursor, mailbox: bytes, ids: list[bytes]) -> set[bytes]:
    """Remove those entries of a mailbox that are in this level.  Returns their ids."""
    removed: set[bytes] = set()
    value = cursor.get(mailbox)
    if value is None:
        return removed
    usage = _number(value)
    for each in ids:
        octets = cursor.pop(mailbox + each)
        if octets is not None:
            usage -= int.from_bytes(octets + _ONE_MESSAGE, "big")
            removed.add(each)
    if removed and usage:
        cursor.put(mailbox, _packed(usage))
    elif removed:
        cursor.pop(mailbox)
    return removed


def _cut(cursor: Cursor, rows: list[Row]) -> bytes:
    """Delete consecutive `rows`.  Returns the mailbox that then follows; empty at the end."""
    cursor.set_key(rows[0][0])
    for _ in rows:
        cursor.delete()
    follows: bytes = cursor.key()[:_MAILBOX]
    return follows


def _list(cursor: Cursor, mailbox: bytes) -> list[bytes]:
    found: list[bytes] = []
    if cursor.set_range(mailbox + b"\0"):
        last = mailbox + b"\xff" * (ID_SIZE + 1)
        for key, value in cursor:
            if key > last:
                break
            found.append(key[_MAILBOX:] + value)
    return found


def _entries(cursor: Cursor, mailbox: bytes, after: bytes) -> Iterator[bytes]:
    if cursor.set_range(mailbox + after + b"\0"):
        for key, value in cursor:
            if key[:_MAILBOX] != mailbox:
                return
            yield key[_MAILBOX:] + value


def _ids(cursor: Cursor, mailbox: bytes) -> Iterator[bytes]:
    if cursor.set_range(mailbox + b"\0"):
        for key in cursor.iternext(values=False):
            if key[:_MAILBOX] != mailbox:
                return
            yield key[_MAILBOX:]


def _usages(txn: Txn, table: Any, start: bytes) -> Iterator[Row]:
    with txn.cursor(table) as cursor:
        more = cursor.set_range(start)
        while more:
            key, value = cursor.item()
            mailbox = key[:_MAILBOX]
            if len(key) == _MAILBOX:
                yield mailbox, value
            more = cursor.set_range(mailbox + b"\xff" * (ID_SIZE + 1))
