"""One write transaction of the index: messages entered, entries deleted, the logs' counts kept.

Rules of this file:

* Entering a message again changes nothing: putting its place shows that it exists.  A copy for
  other mailboxes is entered for those that lack it and have not deleted it.
* A row of places also notes the place of each record that deletes the message: the collector reads
  it there before it drops a copy.  A row with only notes stays until those records are gone,
  because a missing row proves nothing.
* A deletion may arrive before its message.  Its row is marked until the message arrives, or until a
  rebuild, which reads all logs; meanwhile the record stays.
* In a clustered store each deletion also makes a tombstone.  While it exists, no copy brings the
  message back: neither one that arrives late nor one that recovery finds.
* An impossible state (fewer references than entries, a count below zero) aborts the transaction.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import lmdb

from metad.store.ids import is_imported
from metad.store.index.lsm import Lsm
from metad.store.index.rows import (
    DELETED,
    ONE_PLACE,
    PLACE,
    REFERENCES,
    UNFOUNDED,
    Batch,
    Deleted,
    DisagreementError,
    LogCounts,
    entry_rows,
    pack_deleted,
    pack_log,
    pack_places,
    unpack_deleted,
    unpack_log,
    unpack_places,
    unpack_references,
)
from metad.store.index.tombstone_rows import TombstoneRows
from metad.store.log import record
from metad.store.log.footer import ENTRY_SIZE
from metad.store.log.place import Message, Place, joined_entries

_MAILBOX = struct.Struct(">I")
_KEY = 20  # of a footer entry: mailbox and id


class Tables(NamedTuple):
    """The databases of an environment.  `levels`: those of the mailboxes."""

    levels: Lsm
    places: Any
    logs: Any
    uids: Any
    tombstones: Any = None  # in a clustered store

    @property
    def mailboxes(self) -> list[Any]:
        """LMDB's handles of the levels, youngest first."""
        return self.levels.tables


class Change:
    """The working state of one transaction.  metad.store.index.relocation has the collector's."""

    def __init__(self, tables: Tables, txn: lmdb.Transaction) -> None:
        self._txn = txn
        self._levels, self._places, self._logs, self._uids, tombstones = tables
        self._tombstones = None if tombstones is None else TombstoneRows(txn, tombstones)
        self._counts: dict[int, list[int]] = {}

    def add_messages(self, messages: list[Message], life: int = 0) -> None:
        """Enter messages that lie in one log in this life of it."""
        if not messages:
            return
        if self._tombstones is not None:
            messages = [self._without_dead(each) for each in messages]
        places: list[tuple[bytes, bytes]] = []
        live_messages = live_octets = 0
        for message_id, (log, offset, size), entries, uid in messages:
            if uid:
                self._txn.put(message_id, uid.encode(), db=self._uids)
            references = len(entries) // ENTRY_SIZE
            places.append((message_id, ONE_PLACE.pack(references, log, offset, size)))
            if references:
                live_messages += 1
                live_octets += size
        with self._txn.cursor(self._places) as cursor:
            _, added = cursor.putmulti(places, overwrite=False)
        if added < len(places):
            self._add_again(messages, life)
            return
        live = self._live(messages[0].place.log)
        live[0] += live_messages
        live[1] += live_octets
        self._levels.add(self._txn, entry_rows(joined_entries(messages)))

    def _add_again(self, messages: list[Message], life: int) -> None:
        """Some of these existed before.  All have a row now; the new ones have no entries yet."""
        for message in messages:
            value = bytes(self._txn.get(message.id, b"", db=self._places))
            references = unpack_references(value)
            places = unpack_places(value)
            deleted = [one for one in unpack_deleted(value) if one != UNFOUNDED]
            gone = {one.mailbox.to_bytes(4, "big") for one in deleted}
            living = [row for row in entry_rows(message.entries) if row[0][:4] not in gone]
            missing = [row for row in living if not self._levels.has(self._txn, row[0])]
            is_new = len(missing) == references and places == [message.place]
            if message.place in places and not is_new:
                continue
            self._levels.add(self._txn, missing)
            if is_new and references:
                self._count(message.place, 1)
            elif not is_new:
                total = references + len(missing)
                names_all = len(living) == total
                is_first = not places or (
                    names_all and (missing or life > self._row(places[0].log).life)
                )
                if places and references:
                    self._count(places[0], -1)
                places = [message.place, *places] if is_first else [*places, message.place]
                self._txn.put(message.id, pack_places(total, places, deleted), db=self._places)
                if total:
                    self._count(places[0], 1)

    def _count(self, place: Place, sign: int) -> None:
        """`place` is, or is no longer, the first of a message that some mailbox has."""
        live = self._live(place.log)
        live[0] += sign
        live[1] += sign * place.size

    def delete(self, deletion: record.Deletion, log: int, *, is_moved: bool = False) -> None:
        """Remove entries of one mailbox, and note the record in `log` that deletes them.

        `is_moved`: the record was elsewhere before, and its tombstones may be forgotten by now.
        For an id that the mailbox does not have, only the note is entered.
        """
        mailbox = _MAILBOX.pack(deletion.mailbox)
        ids = deletion.each()
        removed = self._levels.remove(self._txn, mailbox, ids)
        note = Deleted(log, deletion.offset, deletion.mailbox) if deletion.offset else None
        for message_id in removed:
            self._drop_reference(message_id, note)
            if is_imported(message_id):
                self._txn.delete(message_id, db=self._uids)
        if note is not None and len(removed) < len(ids):
            for message_id in set(ids).difference(removed):
                self._note_deleted(message_id, note)
        if self._tombstones is not None and note is not None and not is_moved:
            self._tombstones.bury(deletion.mailbox, ids, deletion.told)

    def _without_dead(self, message: Message) -> Message:
        """A message without the mailboxes that have a tombstone for it."""
        rows, entries = self._tombstones, message.entries
        if rows is None or not any(rows.stands(key) for key, _ in entry_rows(entries)):
            return message
        pieces = [entries[at : at + ENTRY_SIZE] for at in range(0, len(entries), ENTRY_SIZE)]
        living = [one for one in pieces if not rows.stands(one[:_KEY])]
        return message._replace(entries=b"".join(living))

    def _drop_reference(self, message_id: bytes, note: Deleted | None) -> None:
        value = bytes(self._txn.get(message_id, b"", db=self._places))
        references = unpack_references(value) - 1 if value else -1
        if references < 0:
            raise DisagreementError(f"message {message_id.hex()} has fewer references than entries")
        items = value[REFERENCES.size :] + (pack_deleted(note) if note else b"")
        if references or items:
            self._txn.put(message_id, REFERENCES.pack(references) + items, db=self._places)
        else:
            self._txn.delete(message_id, db=self._places)
        first = Place(*PLACE.unpack_from(items)) if items else None
        if references == 0 and first is not None and first.log < DELETED:
            self._count(first, -1)

    def _note_deleted(self, message_id: bytes, note: Deleted) -> None:
        """A record deletes a message that is already deleted, or has not arrived yet."""
        value = bytes(self._txn.get(message_id, b"", db=self._places))
        if not value:
            self._txn.put(message_id, pack_places(0, [], [UNFOUNDED, note]), db=self._places)
        elif note not in unpack_deleted(value):
            self._txn.put(message_id, value + pack_deleted(note), db=self._places)

    def _live(self, log: int) -> list[int]:
        """Changes of live messages and octets of `log` in this transaction."""
        return self._counts.setdefault(log, [0, 0])

    def write_counts(self, batch: Batch) -> dict[int, LogCounts]:
        """Update the logs' counts and set the batch's watermark.  Returns the new absolute rows."""
        self._live(batch.log)
        row = self._row(batch.log)
        if row.life != batch.life:
            row = LogCounts()
        known = LogCounts(batch.life, batch.watermark, row.live_messages, row.live_octets)
        return self.write_rows({batch.log: known})

    def write_rows(self, known: dict[int, LogCounts] | None = None) -> dict[int, LogCounts]:
        """Add the changes of this transaction to the logs' rows (`known`: their values before it).
        Returns the new absolute rows."""
        rows = dict(known or {})
        for number, (more, more_octets) in self._counts.items():
            life, watermark, messages, octets = rows.get(number) or self._row(number)
            row = LogCounts(life, watermark, messages + more, octets + more_octets)
            if row.live_messages < 0 or row.live_octets < 0:
                raise DisagreementError(f"the live counts of log {number} are below zero")
            self._txn.put(number.to_bytes(4, "big"), pack_log(row), db=self._logs)
            rows[number] = row
        return rows

    def _row(self, number: int) -> LogCounts:
        value = self._txn.get(number.to_bytes(4, "big"), db=self._logs)
        return unpack_log(value)
