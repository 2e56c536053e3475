"""The contents of a sealed log: its records by footer entries, and its octets, verified.

Rules of this file:

* The footer is trusted (it has its own checksum); records are verified when they are read.
* Where there is no footer (a seal over a tail only, a damaged seal, a poisoned log), the log is
  scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from metad.store.identity import Store
from metad.store.index.relocation import Item
from metad.store.log import footer, record
from metad.store.log.header import LogHeader
from metad.store.log.scan import Damage, Found, Scanner, find_seal
from metad.system.osio import Osio

_PIECE = 4096
_STEP = 1 << 20


class Contents(NamedTuple):
    """`complete`: `items` are all records that were ever in the log; otherwise damage hides
    some."""

    items: list[Item]
    end: int
    complete: bool
    damage: list[Damage]


class Record(NamedTuple):
    """One verified record."""

    header: record.Header
    envelope: bytes
    body: memoryview


def read_contents(osio: Osio, fd: int, log: LogHeader, stop: int | None) -> Contents:
    """Everything in the log open at `fd`; `stop`: where it ends, according to its successor.

    Raises OSError, and ValueError for a record written by another version.
    """
    seal = find_seal(osio, fd, log) if stop is None else None
    if seal is None:
        return _scanned(Scanner(osio, fd, log, 0, stop), log)
    items = list(_of_entries(seal.entries))
    if seal.covers_from == log.align:
        return Contents(items, seal.end, True, [])
    before = _scanned(Scanner(osio, fd, log, 0, seal.covers_from), log)
    return before._replace(items=before.items + items, end=seal.end)


def must_be_readable(osio: Osio, fd: int, damage: Damage) -> None:
    """Raises OSError if the disk cannot read a damaged range: it may be readable later."""
    for at in range(damage.start, damage.end, _STEP):
        osio.pread(fd, min(_STEP, damage.end - at), at)


def _scanned(scanner: Scanner, log: LogHeader) -> Contents:
    items: list[Item] = []
    damage: list[Damage] = []
    for found in scanner:
        if isinstance(found, Damage):
            damage.append(found)
        else:
            items.append(_item(found))
    # Consecutive sequence numbers prove that no record is missing.
    complete = not damage and len(items) == scanner.sequence
    return Contents(items, scanner.end, complete, damage)


def _item(found: Found) -> Item:
    head, offset = found.header, found.offset
    if head.kind == record.MESSAGE:
        recipients = record.unpack_envelope(found.envelope).recipients
        entries = footer.message_entries(head.id, offset, head.size, recipients)
    elif head.kind == record.DELETION:
        deletion = record.unpack_deletion(found.envelope, found.body)
        entries = footer.deletion_entries(deletion, offset, head.size)
    else:
        entries = footer.other_entry(head.id, offset, head.size, head.kind)
    return Item(head.kind, offset, head.size, entries)


def _of_entries(entries: bytes) -> Iterator[Item]:
    """Footer entries, grouped by record: they are in the order of the records."""
    step = footer.ENTRY_SIZE
    at = 0
    while at < len(entries):
        _, _, offset, size, _, kind = footer.ENTRY.unpack_from(entries, at)
        place = entries[at + 20 : at + 28]
        stop = at + step
        while entries[stop + 20 : stop + 28] == place:
            stop += step
        yield Item(kind, offset, size, entries[at:stop])
        at = stop


class RecordReader:
    """Reads records of one log, verified under its life."""

    def __init__(self, osio: Osio, fd: int, store: Store, number: int, life: int) -> None:
        self._osio = osio
        self._fd = fd
        self._life = life
        self._seed = record.seed_of(store.secret, number, life)

    def read(self, offset: int, size: int) -> Record | None:
        """The record at that place; None if it fails to verify twice.  Raises OSError."""
        return self._read(offset, size) or self._read(offset, size)

    def read_at(self, offset: int) -> Record | None:
        """The record that begins there, of any size.  Raises OSError."""
        data = self._osio.pread(self._fd, _PIECE, offset)
        head = record.parse_header(data, self._seed, self._life)
        if head is None:
            return None
        if head.size > len(data):
            return self.read(offset, head.size)
        return self._verified(head, data[: head.size])

    def _read(self, offset: int, size: int) -> Record | None:
        data = self._osio.pread(self._fd, size, offset)
        head = record.parse_header(data, self._seed, self._life)
        if head is None or head.size != size or len(data) != size:
            return None
        return self._verified(head, data)

    def _verified(self, head: record.Header, data: bytes) -> Record | None:
        payload = memoryview(data)[record.HEADER_SIZE :]
        if not record.payload_is_good(head, payload, self._seed):
            return None
        return Record(head, bytes(payload[: head.envelope_size]), payload[head.envelope_size :])
