"""The users database across the nodes of a cluster: sending and receiving copies.

    directory: the node that takes changes          changes, page
    mirror: every other                              apply, replacing

Rules of this file:

* A mirror is at a revision of its source, or still at the previous one: never in between.
* Until a mirror has its first copy, its database counts as lost: unknown users get 451, not 550.
* Missing is not removed: a user missing from a new copy leaves no tombstone, so no mail is deleted.
* A node that goes on alone gives numbers of a block of its own: the other one may have given some,
  and may give more, of which this one has not heard.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from metad.users import journal
from metad.users.account import MAX_ID
from metad.users.database import UserDatabase
from metad.users.journal import REVISION, Lineage
from metad.users.lmdb_env import ID, LOST

# Approximate octets of one answer.
MOST = 200_000
# Addresses that are gone which are named; the others are counted.
NAMED = 5
ADDRESSES = 1  # among the numbered tables
# Numbers of mailboxes: more than a node gives of which the other one has not heard.
BLOCK = 1 << 20
Row = tuple[int, bytes, bytes]


class Position(NamedTuple):
    """The table and row after which a copy continues."""

    table: int = 0
    key: bytes = b""
    value: bytes = b""


class Gone(NamedTuple):
    """How many addresses, and some of them."""

    number: int = 0
    some: tuple[str, ...] = ()


class UserMirror:
    """What a cluster needs from an open users database."""

    def __init__(self, users: UserDatabase) -> None:
        self._users = users
        self._env = users.env
        self._tables = users.numbered_tables

    # -- the role of this database

    def lineage(self) -> tuple[Lineage, int]:
        """Its lineage, and the node of which it is a copy; 0 if changes are made here."""
        with self._users.translated, self._env.begin() as txn:
            meta = self._tables[0]
            return journal.lineage(txn, meta), journal.source(txn, meta)

    def lead(self, epoch: int) -> None:
        """Accept changes here, from this epoch of the view on."""
        with self._changing() as txn:
            self._lead(txn, epoch)

    def go_on_alone(self, epoch: int, place: int, count: int) -> None:
        """The same, though another node may go on, too.  `place`: of this one among so many, from
        0: the next new user gets the first number of a block that none of the others uses."""
        with self._changing() as txn:
            self._lead(txn, epoch)
            meta = self._tables[0]
            block = self._users.raise_numbers(_next(txn, meta)) // BLOCK + 1
            number = (block + (place - block) % count) * BLOCK
            if number <= MAX_ID:
                self._users.raise_numbers(number)
                txn.put(b"next", ID.pack(number), db=meta)

    def _lead(self, txn: Any, epoch: int) -> None:
        journal.put_source(txn, self._tables[0], 0)
        journal.put_lineage(txn, self._tables[0], Lineage(epoch, 0))
        txn.drop(self._users.changes_table, delete=False)

    def follow(self, node: int, *, empty: bool = False) -> None:
        """Become a copy of that node's users.  `empty`: there has been no user here."""
        with self._changing() as txn:
            journal.put_source(txn, self._tables[0], node)
            if empty:
                journal.put_lineage(txn, self._tables[0], Lineage())
                txn.put(LOST, b"%d" % time.time(), db=self._tables[0])

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        self._users.keep_changes()
        with self._users.translated, self._env.begin(write=True) as txn:
            yield txn

    # -- sending

    def changes(self, revision: int) -> list[tuple[int, bytes]] | None:
        """Some revisions after `after`, in order; None if not all of them are kept."""
        found: list[tuple[int, bytes]] = []
        size = 0
        with self._users.translated, self._env.begin(self._users.changes_table) as txn:
            last = journal.lineage(txn, self._tables[0]).revision
            with txn.cursor() as cursor:
                there = cursor.set_range(REVISION.pack(revision + 1))
                while there and size < MOST:
                    found.append((REVISION.unpack(cursor.key())[0], bytes(cursor.value())))
                    size += len(found[-1][1])
                    there = cursor.next()
        first = found[0][0] if found else last + 1
        return found if first == revision + 1 else None

    def page(self, position: Position) -> tuple[Lineage, list[Row], Position | None]:
        """The present lineage, some rows after `position`, and where to continue; None: no more
        rows."""
        rows: list[Row] = []
        size = 0
        with self._users.translated, self._env.begin() as txn:
            here = journal.lineage(txn, self._tables[0])
            for number in sorted(self._tables):
                if number < position.table:
                    continue
                behind = position if number == position.table else Position(number)
                for key, value in _behind(txn, self._tables[number], behind):
                    rows.append((number, key, value))
                    size += len(key) + len(value)
                    if size >= MOST:
                        return here, rows, Position(number, key, value)
        return here, rows, None

    # -- taken over

    def apply(self, changes: Iterable[tuple[int, bytes]]) -> None:
        """Apply changes of the source: those after the last applied one."""
        with self._changing() as txn:
            meta = self._tables[0]
            epoch, last = journal.lineage(txn, meta)
            for revision, packed in changes:
                if revision == last + 1:
                    journal.carry_out(txn, self._tables, packed)
                    last = revision
            journal.put_lineage(txn, meta, Lineage(epoch, last))
        self._raise_numbers()

    @contextmanager
    def replacing(self, node: int) -> Iterator[Replacement]:
        """Receive a whole copy: `add` rows, then `finish`; without `finish` nothing changes.  If
        changes were made here, `gone` of it has the addresses that only this node had.

        Raises MetadError."""
        self._users.keep_changes()
        with self._users.translated:
            txn = self._env.begin(write=True)
            try:
                led = not journal.source(txn, self._tables[0])
                for table in self._tables.values():
                    txn.drop(table, delete=False)
                txn.drop(self._users.changes_table, delete=False)
                replacement = Replacement(txn, self._users, node)
                yield replacement
                if replacement.is_whole:
                    gone = Gone()
                    if led:
                        with self._env.begin() as before:
                            gone = _gone(before, txn, self._tables[ADDRESSES])
                    txn.commit()
                    replacement.gone = gone
                    self._raise_numbers()
            finally:
                txn.abort()  # nothing, once it is committed

    def _raise_numbers(self) -> None:
        """If this node accepts changes one day, it must not reassign the source's numbers."""
        with self._users.translated, self._env.begin(self._tables[0]) as txn:
            self._users.raise_numbers(_next(txn, self._tables[0]))


class Replacement:
    """A copy being received."""

    def __init__(self, txn: Any, users: UserDatabase, node: int) -> None:
        self._txn = txn
        self._tables = users.numbered_tables
        self._translated = users.translated
        self._node = node
        self.is_whole = False
        self.gone = Gone()

    def add(self, rows: Iterable[Row]) -> None:
        """Raises MetadError."""
        with self._translated:
            for number, key, value in rows:
                self._txn.put(key, value, db=self._tables[number])

    def finish(self, first: Lineage, changes: Iterable[tuple[int, bytes]]) -> None:
        """`first`: the source's lineage when the copy began; `changes` since then.

        Raises MetadError.
        """
        meta, revision = self._tables[0], first.revision
        with self._translated:
            for revision, packed in changes:  # noqa: B007 - the last one is needed
                journal.carry_out(self._txn, self._tables, packed)
            journal.put_source(self._txn, meta, self._node)
            journal.put_lineage(self._txn, meta, Lineage(first.epoch, revision))
        self.is_whole = True


def _gone(before: Any, after: Any, table: Any) -> Gone:
    count, some = 0, []
    with before.cursor(table) as cursor:
        for key in cursor.iternext(values=False):
            if after.get(key, db=table) is None:
                count += 1
                if count <= NAMED:
                    some.append(bytes(key).decode())
    return Gone(count, tuple(some))


def _next(txn: Any, meta: Any) -> int:
    """The number of the next new user, as the database has it."""
    return int(ID.unpack(txn.get(b"next", ID.pack(0), db=meta))[0])


def _behind(txn: Any, table: Any, position: Position) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor(table) as cursor:
        if position.key:
            if not cursor.set_range(position.key):
                return
            there = _skip(cursor, position) if bytes(cursor.key()) == position.key else True
        else:
            there = cursor.first()
        while there:
            yield bytes(cursor.key()), bytes(cursor.value())
            there = cursor.next()


def _skip(cursor: Any, position: Position) -> bool:
    """Continue after a row that still exists; in a table of pairs, after the pair."""
    while bytes(cursor.key()) == position.key:
        if bytes(cursor.value()) > position.value:
            return True
        if not cursor.next():
            return False
    return True
