"""The entries of all mailboxes: one table cut by age into levels, the youngest small, the oldest
large (a log-structured merge tree with a rolling merge: O'Neil and others, 1996).

Each level is a database of its own, with the same rows:

    mailbox (4) + id (16)  -> octets (4)                one per entry
    mailbox (4)            -> octets (8), messages (4)  usage by the entries of this level alone

New entries go to the youngest level.  Beyond its bound, those who add some move more than that to
the next level, in the order of the keys, from where the last sweep stopped, and round again.  Why: mail comes to mailboxes in no order, so in one large tree every message changes
a leaf of its own, which LMDB copies whole.  A small tree's leaves stay in the caches, and are
changed many times before they reach the disk; a sweep brings a leaf of the large tree many
entries at once.

Rules of this file:

* An entry is in exactly one level.  A mailbox's listing and usage are those of all levels together;
  nobody else knows of levels, except who reads or loads whole tables.
* Usage changes in the same transaction as its entries; a level has no row of usage without entries.
* Where a sweep stopped is a hint: whatever it says, the next sweep moves what it finds.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

import lmdb

from metad.store.ids import ID_SIZE

# Rows of each level but the last.  Twice as many entries pass between two visits of a sweep to the
# same leaf, which then takes several: docs/performance.md, "Growth".
BOUNDS = (500_000,)
# Entries that a process adds before it looks at the bounds: not every transaction has to.
LOOK_EVERY = 64
# A sweep moves so many rows per entry added since: one may bring a row of usage too, and the level
# has to shrink.  For 64 entries it takes about half a millisecond.
_ROWS_PER_ENTRY = 4
_SWEPT = b"swept"  # in the environment's main database, of each level: where its sweep goes on
_MAILBOX = 4
_KEY = _MAILBOX + ID_SIZE
_USAGE = struct.Struct(">QI")

Row = tuple[bytes, bytes]


class Usage(NamedTuple):
    octets: int = 0
    messages: int = 0


def pack_usage(octets: int, messages: int) -> bytes:
    return _USAGE.pack(octets, messages)


class Levels:
    """The tables, youngest first.  Each method works in the caller's transaction."""

    def __init__(self, env: lmdb.Environment, bounds: Sequence[int] = BOUNDS) -> None:
        self.tables = [env.open_db(name) for name in names(len(bounds) + 1)]
        self._bounds = bounds
        self._look_every = min([LOOK_EVERY, *bounds])
        self._unswept = 0  # entries that this process added since it looked at the bounds

    # -- changing

    def add(self, txn: lmdb.Transaction, rows: list[Row]) -> None:
        """Enter new entries, and move on what is then too much."""
        with txn.cursor(self.tables[0]) as cursor:
            _add(cursor, rows)
        self._unswept += len(rows)
        if self._unswept >= self._look_every:
            for at, bound in enumerate(self._bounds):
                if txn.stat(self.tables[at])["entries"] > bound:
                    self._sweep(txn, at, _ROWS_PER_ENTRY * self._unswept)
            self._unswept = 0

    def remove(self, txn: lmdb.Transaction, mailbox: bytes, ids: Iterable[bytes]) -> list[bytes]:
        """Take entries out of a mailbox; the ids of those that were there."""
        left = list(ids)
        removed: list[bytes] = []
        for table in self.tables:
            with txn.cursor(table) as cursor:
                found = _remove(cursor, mailbox, left)
            if found:
                removed += found
                left = [each for each in left if each not in found]
        return removed

    def _sweep(self, txn: lmdb.Transaction, at: int, most: int) -> None:
        """Move about `most` rows, in order, from level `at` to the next."""
        place = _SWEPT + bytes([at])
        with txn.cursor(self.tables[at]) as cursor:
            if not cursor.set_range(txn.get(place) or b"\0"):
                cursor.first()
            rows = list(islice(cursor, most))
            follows = _cut(cursor, rows)
        txn.put(place, follows)
        with txn.cursor(self.tables[at + 1]) as cursor:
            _add(cursor, [row for row in rows if len(row[0]) == _KEY])

    # -- looking

    def has(self, txn: lmdb.Transaction, key: bytes) -> bool:
        """Whether there is an entry of this mailbox and id."""
        return any(txn.get(key, db=table) is not None for table in self.tables)

    def listing(self, txn: lmdb.Transaction, mailbox: bytes) -> bytes:
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

    def usage(self, txn: lmdb.Transaction, mailbox: bytes) -> Usage:
        values = [txn.get(mailbox, db=table) for table in self.tables]
        return _total(values)

    def rows(self, txn: lmdb.Transaction) -> int:
        """Number of rows, those of usage included."""
        return sum(txn.stat(table)["entries"] for table in self.tables)

    def usages(self, txn: lmdb.Transaction, start: bytes) -> Iterator[tuple[bytes, Usage]]:
        """Mailboxes with mail from `start` on, and their usage."""
        rows = heapq.merge(*(_usages(txn, table, start) for table in self.tables))
        for mailbox, same in groupby(rows, itemgetter(0)):
            yield mailbox, _total(value for _, value in same)


def names(count: int) -> list[bytes]:
    """The databases of so many levels, youngest first."""
    return [b"mailboxes%d" % at for at in range(count)]


def _total(values: Iterable[bytes | None]) -> Usage:
    octets = messages = 0
    for value in values:
        if value:
            more = _USAGE.unpack(value)
            octets += more[0]
            messages += more[1]
    return Usage(octets, messages)


def _sums(rows: list[Row]) -> dict[bytes, list[int]]:
    """What entries add to the usage of their mailboxes."""
    sums: dict[bytes, list[int]] = {}
    for key, octets in rows:
        mailbox = key[:_MAILBOX]
        if mailbox in sums:
            its = sums[mailbox]
            its[0] += int.from_bytes(octets, "big")
            its[1] += 1
        else:
            sums[mailbox] = [int.from_bytes(octets, "big"), 1]
    return sums


def _add(cursor: lmdb.Cursor, rows: list[Row]) -> None:
    """Enter entries that are not there, and their usage, on one way through the tree."""
    sums = _sums(rows)
    for mailbox, value in cursor.getmulti(sorted(sums)):
        its = sums[mailbox]
        octets, messages = _USAGE.unpack(value)
        its[0] += octets
        its[1] += messages
    usage = [(mailbox, _USAGE.pack(*its)) for mailbox, its in sums.items()]
    cursor.putmulti(sorted(rows + usage))


def _remove(cursor: lmdb.Cursor, mailbox: bytes, ids: list[bytes]) -> set[bytes]:
    """Take those entries of a mailbox that are in this level; their ids."""
    removed: set[bytes] = set()
    usage = cursor.get(mailbox)
    if usage is None:
        return removed
    octets, messages = _USAGE.unpack(usage)
    for each in ids:
        value = cursor.pop(mailbox + each)
        if value is not None:
            octets -= int.from_bytes(value, "big")
            messages -= 1
            removed.add(each)
    if removed:
        _set_usage(cursor, mailbox, octets, messages)
    return removed


def _set_usage(cursor: lmdb.Cursor, mailbox: bytes, octets: int, messages: int) -> None:
    if messages:
        cursor.put(mailbox, _USAGE.pack(octets, messages))
    else:
        cursor.pop(mailbox)


def _cut(cursor: lmdb.Cursor, rows: list[Row]) -> bytes:
    """Delete `rows`, which follow each other; the mailbox that follows them, nothing at the end.

    It may be the last of theirs, of which they are the first entries: it keeps the usage of the
    others.
    """
    cursor.set_key(rows[0][0])
    for _ in rows:
        cursor.delete()
    follows: bytes = cursor.key()[:_MAILBOX]
    if follows == rows[-1][0][:_MAILBOX]:
        usage = next(value for key, value in reversed(rows) if key == follows)
        octets, messages = _USAGE.unpack(usage)
        gone = [value for key, value in rows if len(key) == _KEY and key[:_MAILBOX] == follows]
        gone_octets = sum(int.from_bytes(value, "big") for value in gone)
        _set_usage(cursor, follows, octets - gone_octets, messages - len(gone))
    return follows


def _list(cursor: lmdb.Cursor, mailbox: bytes) -> list[bytes]:
    found: list[bytes] = []
    if cursor.set_range(mailbox + b"\0"):
        last = mailbox + b"\xff" * (ID_SIZE + 1)
        for key, value in cursor:
            if key > last:
                break
            found.append(key[_MAILBOX:] + value)
    return found


def _usages(txn: lmdb.Transaction, table: Any, start: bytes) -> Iterator[Row]:
    with txn.cursor(table) as cursor:
        more = cursor.set_range(start)
        while more:
            key, value = cursor.item()
            mailbox = key[:_MAILBOX]
            if len(key) == _MAILBOX:
                yield mailbox, value
            more = cursor.set_range(mailbox + b"\xff" * (ID_SIZE + 1))
