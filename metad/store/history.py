"""What the logs still show about messages that mailboxes no longer have.

Rules of this file:

* It only reads, and only logs in use: the records of a free log have been collected.
* A message counts only if the index has a place for it: records beyond the end of a log, and
  refused ones, were never acknowledged.
* A log that cannot be read is reported and left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from metad.store.fsck.log_check import log_numbers
from metad.store.gc.contents import RecordReader, read_contents
from metad.store.identity import Store
from metad.store.ids import ID_SIZE, time_of
from metad.store.index.index import LISTING_ENTRY, Index
from metad.store.index.relocation import Item
from metad.store.log import header, record
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.place import Place
from metad.system.osio import Osio

Report = Callable[[str], None]
# Called with the number of logs read so far, and that of all.
Reached = Callable[[int, int], None]


def _ignore(_done: int, _total: int) -> None:
    pass


_MAILBOX_SIZE = 4
# The collector makes ids without the life of a log (metad.workers.collector).
_LIFE = slice(10, 12)
_NO_LIFE = bytes(2)


class Kept(NamedTuple):
    """A record of a log, by its footer entries."""

    log: LogHeader
    item: Item


class Deletion(NamedTuple):
    """The deletion of a message by `mailbox`, with its time in microseconds of hub time; 0 if the
    record does not verify.  `expired`: the collector deleted it, because of its age or because the
    user was removed."""

    id: bytes
    mailbox: int
    time_us: int
    expired: bool
    log: int


def kept_items(
    osio: Osio, store: Store, report: Report, reached: Reached = _ignore
) -> Iterator[Kept]:
    """Every record of every log that is in use."""
    numbers = log_numbers(osio, store)
    for done, number in enumerate(numbers):
        reached(done, len(numbers))
        try:
            yield from _items(osio, store, number)
        except FileNotFoundError:
            continue  # it was unlinked meanwhile
        except (OSError, ValueError) as error:
            report(f"log {number} is left out: {getattr(error, 'strerror', None) or error}")


def _items(osio: Osio, store: Store, number: int) -> Iterator[Kept]:
    fd = osio.open(log_path(store.logs, number), os.O_RDONLY)
    try:
        log = header.read(osio, fd, store.secret)
        if log is None:
            raise ValueError("both headers are damaged")
        if log.state != FREE:
            for item in read_contents(osio, fd, log, None).items:
                yield Kept(log, item)
    finally:
        osio.close(fd)


class History:
    """Looks into the logs of one store."""

    def __init__(
        self, osio: Osio, store: Store, index: Index, report: Report,
        reached: Reached = _ignore,
    ) -> None:  # fmt: skip
        self._osio = osio
        self._store = store
        self._index = index
        self._report = report
        self._reached = reached

    def _kept(self) -> Iterator[Kept]:
        return kept_items(self._osio, self._store, self._report, self._reached)

    def deleted_by(self, mailbox: int) -> list[Deletion]:
        """Deleted messages of the mailbox that are still readable, in the order of their ids."""
        listed = {one for one, _ in LISTING_ENTRY.iter_unpack(self._index.listing(mailbox))}
        key = mailbox.to_bytes(_MAILBOX_SIZE, "big")
        found: dict[bytes, Deletion] = {}
        for log, item in self._kept():
            if item.kind == record.DELETION and item.entries[:_MAILBOX_SIZE] == key:
                left = [one for one in item.ids if one not in listed and one not in found]
                left = [one for one in left if self._index.places(one)]
                if left:
                    found |= {one.id: one for one in self._deletions(log, item, left)}
        return [found[one] for one in sorted(found)]

    def of(self, message_id: bytes) -> tuple[list[Place], list[Deletion], set[int]]:
        """The places of a message, the mailboxes that deleted it, and those that its records
        name."""
        places = self._index.places(message_id)
        deletions: dict[int, Deletion] = {}
        named: set[int] = set()
        for log, item in self._kept():
            if message_id not in item.entries:  # faster than unpacking every item
                continue
            if item.kind == record.DELETION and message_id in item.ids:
                [one] = self._deletions(log, item, [message_id])
                deletions.setdefault(one.mailbox, one)
            elif item.kind == record.MESSAGE and item.id == message_id:
                named |= {int.from_bytes(each[:_MAILBOX_SIZE], "big") for each in item.entry_keys()}
        return places, list(deletions.values()), named

    def messages(self) -> Iterator[bytes]:
        """The ids of all messages with a place, each once."""
        seen: set[bytes] = set()
        for log, item in kept_items(self._osio, self._store, self._report):
            if item.kind != record.MESSAGE or item.id in seen:
                continue
            if any(place.log == log.number for place in self._index.places(item.id)):
                seen.add(item.id)
                yield item.id

    def _deletions(self, log: LogHeader, item: Item, ids: list[bytes]) -> list[Deletion]:
        mailbox = int.from_bytes(item.entries[:_MAILBOX_SIZE], "big")
        its = self._id_of_record(log, item)
        expired = its[_LIFE] == _NO_LIFE
        return [Deletion(one, mailbox, time_of(its), expired, log.number) for one in ids]

    def _id_of_record(self, log: LogHeader, item: Item) -> bytes:
        """The id of a deletion record, which shows when and by which process it was made."""
        try:
            fd = self._osio.open(log_path(self._store.logs, log.number), os.O_RDONLY)
        except OSError:
            return bytes(ID_SIZE)
        try:
            reader = RecordReader(self._osio, fd, self._store, log.number, log.life)
            found = reader.read(item.offset, item.size)
        except OSError:
            found = None
        finally:
            self._osio.close(fd)
        return found.header.id if found is not None else bytes(ID_SIZE)
