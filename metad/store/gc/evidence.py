"""Proof that a record in a victim may be dropped: records that were read and verified.

Rules of this file:

* The index only shows where to look.  A mailbox's message is dead only if a deletion record, or the
  footer of a sealed log that lists one, says so; both are verified under their log's own header.
* A copy elsewhere is live only if it verifies and its log's own header does not say "free".
* A deletion record is judged by the row of each message that it deletes.  The row must exist and
  note this record, and everything else that it names must be found there.  A row that is missing,
  or changed by a flipped bit, proves nothing: the index is suspect.
* Unreadable data proves nothing.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from metad.store.gc.contents import Contents, Record, RecordReader
from metad.store.identity import Store
from metad.store.index.relocation import Looked, Row
from metad.store.index.rows import Deleted, DisagreementError
from metad.store.log import footer, header, record
from metad.store.log.place import Place
from metad.store.log.scan import find_seal
from metad.system.osio import Osio

OPEN_LOGS = 32
MOST_RECORDS = 4096  # deletion records remembered


class _Log(NamedTuple):
    fd: int
    log: header.LogHeader
    reader: RecordReader


class Evidence:
    """Looks for proofs for one collection; call `close` at the end."""

    def __init__(self, osio: Osio, store: Store, number: int, contents: Contents) -> None:
        self._osio = osio
        self._store = store
        self._logs: OrderedDict[int, _Log | None] = OrderedDict()
        self._records: dict[tuple[int, int], frozenset[bytes]] = {}
        self._footers: dict[int, frozenset[bytes]] = {}
        deletions = [item for item in contents.items if item.kind == record.DELETION]
        self._footers[number] = frozenset(key for item in deletions for key in item.entry_keys())
        self._number = number
        self._contents = contents
        self._copies: set[tuple[bytes, int]] | None = None
        self._may_drop: dict[bytes, bool] = {}

    def close(self) -> None:
        for log in self._logs.values():
            if log is not None:
                self._osio.close(log.fd)
        self._logs.clear()

    # -- deletions

    def unproven(self, message: Looked) -> list[int]:
        """Mailboxes that lack a message of which they are recipients, without any record to explain
        it."""
        return [mailbox for mailbox in sorted(message.gone()) if not self._gone(message, mailbox)]

    def _gone(self, message: Looked, mailbox: int) -> bool:
        hints = [deleted for deleted in message.deleted if deleted.mailbox == mailbox]
        if any(self._is_proven(hint, message.item.id) for hint in hints):
            return True
        return any(mailbox in self.living(place, message.item.id) for place in message.elsewhere)

    def _is_proven(self, hint: Deleted, message_id: bytes) -> bool:
        key = hint.mailbox.to_bytes(4, "big") + message_id
        known = self._footers.get(hint.log, frozenset())
        return key in known or key in self._deleted_by(hint) or key in self._footer(hint.log)

    def _deleted_by(self, hint: Deleted) -> frozenset[bytes]:
        """Mailbox and id of each message that the record at that place deletes."""
        at = hint.log, hint.offset
        if at not in self._records:
            if len(self._records) >= MOST_RECORDS:
                self._records.clear()
            self._records[at] = self._read_deletion(hint)
        return self._records[at]

    def _read_deletion(self, hint: Deleted) -> frozenset[bytes]:
        found = self._read(hint.log, hint.offset)
        if found is None or found.header.kind != record.DELETION:
            return frozenset()
        deletion = record.unpack_deletion(found.envelope, found.body)
        mailbox = deletion.mailbox.to_bytes(4, "big")
        return frozenset(mailbox + each for each in deletion.each())

    def _footer(self, number: int) -> frozenset[bytes]:
        """The deletions that the footer of a sealed log lists, for damaged deletion records."""
        if number not in self._footers:
            self._footers[number] = self._read_footer(self._log(number))
        return self._footers[number]

    def _read_footer(self, log: _Log | None) -> frozenset[bytes]:
        if log is None:
            return frozenset()
        try:
            seal = find_seal(self._osio, log.fd, log.log)
        except (OSError, ValueError):
            return frozenset()
        entries = footer.ENTRY.iter_unpack(seal.entries) if seal else ()
        return frozenset(
            mailbox.to_bytes(4, "big") + message_id
            for mailbox, message_id, *_, kind in entries
            if kind == record.DELETION
        )

    # -- deletion records

    def may_drop(self, deleted: Deleted, message_id: bytes, row: Row | None) -> bool:
        """Whether no copy of a message is left outside the victim, which contains `deleted`.

        Raises DisagreementError.
        """
        if row is None or deleted not in row.deleted:
            raise DisagreementError(
                f"log {deleted.log} deletes message {message_id.hex()} at {deleted.offset}, "
                "and the index does not say so"
            )
        if message_id not in self._may_drop:
            self._may_drop[message_id] = self._is_alone(message_id, row)
        return self._may_drop[message_id]

    def _is_alone(self, message_id: bytes, row: Row) -> bool:
        """Whether all copies are in the victim, and the other items of the row are deletion
        records."""
        if any(place.log != self._number for place in row.places):
            return False
        if not all(self._is_here(message_id, place) for place in row.places):
            return False
        others = [one for one in row.deleted if one.log != self._number]
        return all(self._is_proven(one, message_id) for one in others)

    def _is_here(self, message_id: bytes, place: Place) -> bool:
        if self._copies is None:
            messages = [item for item in self._contents.items if item.kind == record.MESSAGE]
            self._copies = {(item.id, item.offset) for item in messages}
        return (message_id, place.offset) in self._copies

    # -- copies

    def living(self, place: Place, message_id: bytes) -> frozenset[int]:
        """The mailboxes named by a good copy of the message at that place; none if there is no such
        copy."""
        found = self._read(place.log, place.offset)
        if found is None or found.header.kind != record.MESSAGE or found.header.id != message_id:
            return frozenset()
        recipients = record.unpack_envelope(found.envelope).recipients
        return frozenset(recipient.mailbox for recipient in recipients)

    # -- logs

    def is_final(self, number: int) -> bool:
        """Whether everything in a log counts, whatever will be readable at the next start.  The
        last group of survivors in an unsealed log does not."""
        log = self._log(number)
        return log is not None and (log.log.generation == 0 or log.log.seal_offset > 0)

    def _read(self, number: int, offset: int) -> Record | None:
        log = self._log(number)
        if log is None:
            return None
        try:
            return log.reader.read_at(offset)
        except (OSError, ValueError):
            return None

    def _log(self, number: int) -> _Log | None:
        """A log that is in use according to its own header."""
        if number in self._logs:
            self._logs.move_to_end(number)
        else:
            self._logs[number] = self._open(number)
            if len(self._logs) > OPEN_LOGS:
                _, oldest = self._logs.popitem(last=False)
                if oldest is not None:
                    self._osio.close(oldest.fd)
        return self._logs[number]

    def _open(self, number: int) -> _Log | None:
        try:
            fd = self._osio.open(header.log_path(self._store.logs, number), os.O_RDONLY)
        except OSError:
            return None
        try:
            log = header.read(self._osio, fd, self._store.secret)
        except OSError:
            log = None
        if log is None or log.number != number or log.state == header.FREE:
            self._osio.close(fd)
            return None
        return _Log(fd, log, RecordReader(self._osio, fd, self._store, number, log.life))
