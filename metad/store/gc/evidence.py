"""What proves that a record in a victim may go: records that were read and verified.

Rules of this file:

* The index only says where to look.  A mailbox's message is dead by a deletion record, or
  by the footer of a sealed log that lists one; both are verified under their log's own header.
* A copy elsewhere is a living one only if it verifies and its log's own header does not say "free".
* A deletion record goes by the row of each message that it deletes.  The row must be there and note
  this record; whatever else it names was found where it says.  A row that is missing, or that a
  flipped bit has made another one, is no proof: the index is suspect.
* What cannot be read proves nothing.
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
    """Looks for proofs on behalf of one collection; `close` it."""

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
        """Mailboxes that lack a message that its record gives them, and nothing says why."""
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
        """Mailbox and id of each message that the record there deletes."""
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
        """The deletions that the footer of a sealed log lists: where the record is damaged."""
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
        """Whether no copy of a message is left outside the victim, in which `deleted` lies.

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
        """Whether all copies lie in the victim, and the rest of the row are deletion records."""
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
        """The mailboxes that a good copy of the message there names; none if there is no such."""
        found = self._read(place.log, place.offset)
        if found is None or found.header.kind != record.MESSAGE or found.header.id != message_id:
            return frozenset()
        recipients = record.unpack_envelope(found.envelope).recipients
        return frozenset(recipient.mailbox for recipient in recipients)

    # -- logs

    def is_final(self, number: int) -> bool:
        """Whether all that lies in a log counts, whatever can be read at the next start: not the
        last group of survivors in a log without a seal."""
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
        """A log that is in use by its own header."""
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
