"""What the collector reads from the index and changes in it: owners, moves, drops.

Rules of this file:

* Every function is one short transaction; with `Index.lock` held where it writes.
* A message is moved only if some mailbox still has it; otherwise it is never entered again.
* The first of a message's places is a copy that names every mailbox that has it, the youngest of
  such copies when it was entered, if there is one; the live counts are those of its log.  Copies of
  the collector name fewer mailboxes, never others; those of another node may name others, so in a
  cluster any copy may be the first: the reader and the collector ask what a record names.
* The place in the old log stays, after the new one, until the old log is free on disk: places say
  where octets are, not where they should be.  The same holds for the notes of deletion records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import lmdb

from metad.store.index.change import Change
from metad.store.index.index import Index, Publish
from metad.store.index.rows import (
    UNFOUNDED,
    Batch,
    Deleted,
    LogCounts,
    entry_rows,
    pack_places,
    unpack_row,
)
from metad.store.log import record
from metad.store.log.footer import ENTRY_SIZE
from metad.store.log.place import Message, Place

_KEY_SIZE = 20
_SCAN_ROWS = 5000


class Item(NamedTuple):
    """One record of a log by its footer entries: a message, or a deletion record."""

    kind: int
    offset: int
    size: int
    entries: bytes

    @property
    def id(self) -> bytes:
        """The id of a message."""
        return self.entries[4:_KEY_SIZE]

    @property
    def mailbox(self) -> int:
        """The mailbox of a deletion record."""
        return int.from_bytes(self.entries[:4], "big")

    def entry_keys(self) -> list[bytes]:
        """Mailbox and id of each entry."""
        entries = self.entries
        if len(entries) == ENTRY_SIZE:  # of one mailbox, as most mail is
            return [entries[:_KEY_SIZE]]
        return [entries[at : at + _KEY_SIZE] for at in range(0, len(entries), ENTRY_SIZE)]

    @property
    def ids(self) -> list[bytes]:
        """The ids that a deletion record deletes."""
        return [key[4:] for key in self.entry_keys()]


class Looked(NamedTuple):
    """What the index knows about a message in a log: the mailboxes that have it, its places in
    other logs, and the places of the records that delete it."""

    item: Item
    mailboxes: frozenset[int]
    elsewhere: tuple[Place, ...]
    deleted: tuple[Deleted, ...] = ()

    def gone(self) -> set[int]:
        """The mailboxes that the record names and that no longer have it."""
        if len(self.mailboxes) * ENTRY_SIZE == len(self.item.entries):
            return set()
        keys = self.item.entry_keys()
        return {int.from_bytes(key[:4], "big") for key in keys} - self.mailboxes


class Row(NamedTuple):
    """A message's row of places."""

    references: int
    places: list[Place]
    deleted: list[Deleted]

    def is_in(self, number: int) -> bool:
        """Whether it names a copy or a deletion record in that log."""
        return any(one.log == number for one in self.places) or any(
            one.log == number for one in self.deleted
        )


def look(index: Index, number: int, items: Iterable[Item]) -> list[Looked]:
    """What the index says about the messages `items` of log `number`."""
    found: list[Looked] = []
    with index.reading() as txn:
        view = _Moving(index, txn)
        for item in items:
            keys = [key for key in item.entry_keys() if view.has_entry(key)]
            mailboxes = frozenset([int.from_bytes(key[:4], "big") for key in keys])
            row = view.row_of(item.id) or Row(0, [], [])
            elsewhere = tuple([place for place in row.places if place.log != number])
            found.append(Looked(item, mailboxes, elsewhere, tuple(row.deleted)))
    return found


def rows_of(index: Index, ids: Iterable[bytes]) -> list[Row | None]:
    """The rows of some messages, in their order."""
    with index.reading() as txn:
        view = _Moving(index, txn)
        return [view.row_of(each) for each in ids]


def move(index: Index, batch: Batch, publish: Publish | None = None) -> None:
    """Give each message of `batch` its new place, in addition to the present one.

    A message with a place but no mailbox gets only the place.  A message without any place is
    entered as new, except for the mailboxes that deleted it.  Deletion records are noted at their
    new place.  Repeating it changes nothing.
    """
    with index.writing() as txn:
        change = _Moving(index, txn)
        change.note_life(batch.log, batch.life)
        for message in batch.messages:
            change.move(message)
        for deletion in batch.deletions:
            change.delete(deletion, batch.log, is_moved=True)
        rows = change.write_counts(batch)
        if publish is not None:
            publish(rows)


def merge(index: Index, batch: Batch, publish: Publish | None = None) -> None:
    """As `move`, and enter what mailboxes lack and have not deleted: for a recovery.

    Copies of one message may name different recipients: all of them count, once.
    """
    with index.writing() as txn:
        change = _Moving(index, txn)
        change.note_life(batch.log, batch.life)
        for message in batch.messages:
            change.merge(message)
        rows = change.write_counts(batch)
        if publish is not None:
            publish(rows)


def forget(index: Index, lost: Sequence[Looked], publish: Publish | None = None) -> None:
    """Remove messages whose octets are damaged and quarantined from their mailboxes."""
    with index.writing() as txn:
        change = _Moving(index, txn)
        for message in lost:
            for mailbox in message.mailboxes:
                change.delete(record.Deletion(mailbox, message.item.id), 0)
        rows = change.write_rows()
        if publish is not None:
            publish(rows)


def drop_places(
    index: Index, number: int, life: int, ids: Iterable[bytes], publish: Publish | None = None,
    end: int = 0,
) -> None:  # fmt: skip
    """Drop the places of `ids` in this life of log `number`: all if it is free on disk, or those
    from its `end` on."""
    with index.writing() as txn:
        change = _Moving(index, txn)
        if not change.is_in_life(number, life):
            return
        for message_id in ids:
            change.drop_place(message_id, number, end)
        rows = change.write_rows()
        if publish is not None:
            publish(rows)


def drop_log(index: Index, number: int, life: int, publish: Publish | None = None) -> None:
    """Drop this life of the log itself, once no place refers to it."""
    with index.writing() as txn:
        change = _Moving(index, txn)
        if not change.is_in_life(number, life):
            return
        change.drop_row(number)
        if publish is not None:
            publish({number: LogCounts()})


def ids_in(index: Index, number: int, start: bytes) -> tuple[list[bytes], bytes | None]:
    """Ids from `start` on with a place or a note in log `number`, out of some thousand rows.

    Also returns where to continue, or None at the end.  Reads the whole table of places over time,
    so use it only for a log that does not show its own former contents.
    """
    found: list[bytes] = []
    with index.reading() as txn:
        for count, (key, row) in enumerate(_Moving(index, txn).rows_from(start), 1):
            if row.is_in(number):
                found.append(key)
            if count == _SCAN_ROWS:
                return found, key + b"\0"
    return found, None


class _Moving(Change):
    """A transaction of the collector; also used for reading, in a read transaction."""

    def __init__(self, index: Index, txn: lmdb.Transaction) -> None:
        super().__init__(index.tables, txn)
        self._lives: dict[int, int] = {}

    # -- looking

    def has_entry(self, key: bytes) -> bool:
        return self._levels.has(self._txn, key)

    def row_of(self, message_id: bytes) -> Row | None:
        """The row of a message; None if it has none."""
        value = self._txn.get(message_id, db=self._places)
        return None if value is None else Row._make(unpack_row(bytes(value)))

    def rows_from(self, start: bytes) -> Iterator[tuple[bytes, Row]]:
        """Ids from `start` on with their rows."""
        with self._txn.cursor(self._places) as cursor:
            if cursor.set_range(start):
                for key, value in cursor:
                    yield bytes(key), Row._make(unpack_row(bytes(value)))

    # -- changing

    def note_life(self, number: int, life: int) -> None:
        """The life of a log whose row is about to be written."""
        self._lives[number] = life

    def move(self, message: Message) -> None:
        row = self.row_of(message.id)
        if row is None or not (row.places or row.references):
            self.merge(message)
        elif message.place not in row.places:
            places = [message.place, *row.places]
            self._put_places(message.id, row, row.references, places)

    def merge(self, message: Message) -> None:
        row = self.row_of(message.id)
        message = self._without_dead(message) if self._tombstones is not None else message
        if row is not None:
            row = row._replace(deleted=[one for one in row.deleted if one != UNFOUNDED])
        references, places, deleted = row or Row(0, [], [])
        if message.place in places:
            return
        entered, living = self._enter_missing(message.entries, {one.mailbox for one in deleted})
        references += entered
        names_all = living == references
        if not places or (names_all and (entered or self._is_younger(message.place, places[0]))):
            places = [message.place, *places]
        else:
            places = [*places, message.place]
        self._put_places(message.id, row, references, places)

    def _is_younger(self, place: Place, other: Place) -> bool:
        return self._life(place.log) > self._life(other.log)

    def _life(self, number: int) -> int:
        life = self._lives.get(number)
        if life is None:
            life = self._lives[number] = self._row(number).life
        return life

    def _enter_missing(self, entries: bytes, gone: set[int]) -> tuple[int, int]:
        """Enter those of a message's entries that are not there nor deleted.

        Their number, and that of all that are not deleted.
        """
        rows = entry_rows(entries)
        living = [row for row in rows if int.from_bytes(row[0][:4], "big") not in gone]
        missing = [row for row in living if not self.has_entry(row[0])]
        if missing:
            self._levels.add(self._txn, missing)
        return len(missing), len(living)

    def drop_place(self, message_id: bytes, number: int, end: int = 0) -> None:
        """Drop the places and notes in log `number` from `end` on; with the last of them the row
        goes."""

        def stays(one: Place | Deleted) -> bool:
            return one.log != number or one.offset < end

        row = self.row_of(message_id)
        if row is not None:
            left = list(filter(stays, row.places))
            if row.deleted:  # their records left the log: they were moved, or nothing needs them
                row = row._replace(deleted=list(filter(stays, row.deleted)))
            self._put_places(message_id, row, row.references, left)

    def is_in_life(self, number: int, life: int) -> bool:
        """False: the file was reused, and the index has its next life."""
        return self._row(number).life == life

    def drop_row(self, number: int) -> None:
        self._txn.delete(number.to_bytes(4, "big"), db=self._logs)

    def _put_places(
        self,
        message_id: bytes,
        row: Row | None,
        references: int,
        places: list[Place],
    ) -> None:
        """Replace a row; the live counts go with the first place."""
        old_references, old_places, deleted = row or Row(0, [], [])
        first = old_places[0] if old_references and old_places else None
        fresh = places[0] if references and places else None
        if first != fresh:
            if first is not None:
                self._count(first, -1)
            if fresh is not None:
                self._count(fresh, 1)
        if references or places or deleted:
            self._txn.put(message_id, pack_places(references, places, deleted), db=self._places)
        else:
            self._txn.delete(message_id, db=self._places)
