"""The part of a log beyond an offset, ready for the index: from its footer, or by reading it.

Rules of this file:

* The footer is used where it covers the records; all others are read and verified.
* Damage is copied to quarantine/ and reported, and the rest is used.  If a log's last block says
  that the log continues, unverifiable octets up to that point are damage, not a torn tail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from metad.store.identity import Store
from metad.store.ids import ID_SIZE
from metad.store.log import footer, header, quarantine, record
from metad.store.log.header import LogHeader, log_path
from metad.store.log.place import Message, Place
from metad.store.log.salvage import read_past
from metad.store.log.scan import Damage, Found, Scanner, Seal, find_seal
from metad.system.osio import Osio

Report = Callable[[str], None]
_SEARCH = 1 << 20
_SECTOR = 512


class Tail(NamedTuple):
    """The footer entries of a log's records beyond some offset, and where the log ends.

    `unsynced`: where its last group begins, if it was found by reading and nothing says that its
    sync succeeded; 0 if everything is known to be durable.  `torn`: something in that group, or
    between it and the one before, does not verify.
    """

    number: int
    entries: bytes
    end: int
    sequence: int = 0
    damaged: int = 0
    unsynced: int = 0
    torn: bool = False

    def records(self) -> tuple[list[Message], list[record.Deletion]]:
        """The records to enter in the index."""
        return records_of(self.number, self.entries)


class TailReader:
    """Reads tails of logs of one store.  `damaged` counts the quarantined ranges."""

    def __init__(self, osio: Osio, store: Store, report: Report) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self.half_free: set[int] = set()  # logs that only one of their headers calls free
        self.damaged = 0

    def seal(self, fd: int, log: LogHeader) -> Seal | None:
        """The log's seal, if it has a good one."""
        return find_seal(self._osio, fd, log)

    def sealed(self, fd: int, log: LogHeader, start: int, seal: Seal) -> Tail:
        """The tail of a log with a good seal."""
        if start >= seal.end:
            return Tail(log.number, b"", seal.end)
        if seal.covers_from <= start:
            return Tail(log.number, entries_from(seal.entries, start), seal.end)
        before = self.scanned(fd, log, start, seal.covers_from)
        return before._replace(entries=before.entries + seal.entries, end=seal.end)

    def scanned(self, fd: int, log: LogHeader, start: int, stop: int | None) -> Tail:
        """The tail by reading it; `stop`: where the log ends, if that is known."""
        scanner = Scanner(self._osio, fd, log, start, stop)
        entries: list[bytes] = []
        before = self.damaged
        for item in scanner:
            if isinstance(item, Damage):
                self._set_aside(fd, log, item)
            else:
                entries.append(entries_of(item))
        end = scanner.end
        if stop is not None:
            rest = read_past(self._osio, fd, max(stop - scanner.at, 0), scanner.at)
            if rest.strip(b"\0"):
                self._set_aside(fd, log, Damage(scanner.at, stop))
            end = max(end, stop)
        damaged = self.damaged - before
        # A seal is written only after groups whose sync succeeded.
        in_doubt = stop is None and not scanner.found_seal and scanner.group < end
        unsynced = scanner.group if in_doubt else 0
        return Tail(
            log.number, b"".join(entries), end, scanner.sequence, damaged, unsynced, scanner.is_torn
        )

    def _set_aside(self, fd: int, log: LogHeader, damage: Damage) -> None:
        self.damaged += 1
        where = f"warning: log {log.number}: bytes {damage.start} to {damage.end} are damaged"
        try:
            name = quarantine.quarantine_range(self._osio, self._store, fd, log, damage)
        except OSError as error:  # the log keeps them
            self._report(f"{where}; they could not be copied to quarantine/: {error}")
        else:
            self._report(f"{where}; kept in quarantine/{name}")

    # -- headers

    def header(self, number: int) -> LogHeader | None:
        """The header of a log; if both copies are damaged, the one that its records imply.

        None: nothing in the file was ever a log.  Raises OSError.
        """
        fd = self._osio.open(log_path(self._store.logs, number), os.O_RDONLY)
        try:
            copies = header.copies(self._osio, fd, self._store.secret)
            if header.is_half_free(*copies):
                self.half_free.add(number)
            return header.merged(*copies) or self._header_of_records(fd, number)
        finally:
            self._osio.close(fd)

    def _header_of_records(self, fd: int, number: int) -> LogHeader | None:
        """Every record names its life in clear, and its check proves it."""
        first = next(self._proven_records(fd, number, record.MAGIC), None)
        if first is None:
            return None
        at, life = first
        self._report(f"warning: log {number}: both headers are damaged")
        made = self._made_header(number, life, self._osio.fstat(fd).st_size, at)
        freed = self._proven_records(fd, number, record.MAGIC + bytes([record.FREED]))
        is_free = any(its == life for _, its in freed)
        return made._replace(state=header.FREE) if is_free else made

    def _proven_records(self, fd: int, number: int, mark: bytes) -> Iterator[tuple[int, int]]:
        """Offset and life of every record header that begins with `mark`."""
        size = self._osio.fstat(fd).st_size
        at = 0
        while at < size:
            window = read_past(self._osio, fd, _SEARCH, at)
            hit = window.find(mark)
            while hit >= 0:
                life = self._proven_life(window[hit : hit + record.HEADER_SIZE], number)
                if life:
                    yield at + hit, life
                hit = window.find(mark, hit + 1)
            at += _SEARCH - record.HEADER_SIZE

    def _proven_life(self, head: bytes, number: int) -> int:
        life = int.from_bytes(head[8:16], "little")
        seed = record.seed_of(self._store.secret, number, life)
        return life if record.parse_header(head, seed, life) else 0

    def _made_header(self, number: int, life: int, size: int, first: int) -> LogHeader:
        """`first`: where the first good record lies; groups begin at the alignment."""
        store = self._store
        return LogHeader(
            state=header.ACTIVE, generation=0, number=number, life=life, size=size,
            align=512 if first % 4096 else 4096,
            node=store.node, store_id=store.store_id, secret=store.secret,
        )  # fmt: skip

    def is_of_another_store(self, number: int) -> bool:
        """Whether the log's header proves itself, under the secret that it names."""
        fd = self._osio.open(log_path(self._store.logs, number), os.O_RDONLY)
        try:
            return header.own_secret(self._osio, fd) not in (None, self._store.secret)
        finally:
            self._osio.close(fd)

    def read_all(self, number: int) -> None:
        """Raises OSError if a part of the file is unreadable: it may contain anything."""
        fd = self._osio.open(log_path(self._store.logs, number), os.O_RDONLY)
        try:
            for at in range(0, self._osio.fstat(fd).st_size, _SEARCH):
                self._osio.pread(fd, _SEARCH, at)
        finally:
            self._osio.close(fd)

    def is_blank(self, number: int) -> bool:
        """True if a file holds nothing but zeros between its first and its last sector.

        Creating a log that a power cut interrupted leaves no more than garbage in those.
        """
        fd = self._osio.open(log_path(self._store.logs, number), os.O_RDONLY)
        try:
            at, stop = _SECTOR, self._osio.fstat(fd).st_size - _SECTOR
            while at < stop:
                window = read_past(self._osio, fd, min(_SEARCH, stop - at), at)
                if not window or window.count(0) < len(window):
                    return not window
                at += len(window)
        finally:
            self._osio.close(fd)
        return True


def entries_of(found: Found) -> bytes:
    """The footer entries of a record found by a scan."""
    size = found.header.size
    if found.header.kind == record.MESSAGE:
        recipients = record.unpack_envelope(found.envelope).recipients
        return footer.message_entries(found.header.id, found.offset, size, recipients)
    if found.header.kind != record.DELETION:
        return footer.other_entry(found.header.id, found.offset, size, found.header.kind)
    deletion = record.unpack_deletion(found.envelope, found.body)
    return footer.deletion_entries(deletion, found.offset, size)


def entries_from(entries: bytes, start: int) -> bytes:
    """The entries of records at `start` and beyond; entries are in the order of their records."""
    step = footer.ENTRY_SIZE
    low, high = 0, len(entries) // step
    while low < high:
        middle = (low + high) // 2
        if int.from_bytes(entries[middle * step + 20 : middle * step + 24], "big") < start:
            low = middle + 1
        else:
            high = middle
    return entries[low * step :]


def records_of(number: int, entries: bytes) -> tuple[list[Message], list[record.Deletion]]:
    """Messages and deletions of log `number` by their entries."""
    messages: list[Message] = []
    deletions: list[record.Deletion] = []
    step = footer.ENTRY_SIZE
    at = 0
    while at < len(entries):
        first = footer.Entry(*footer.ENTRY.unpack_from(entries, at))
        stop = at + step
        place = entries[at + 20 : at + 28]
        while entries[stop + 20 : stop + 28] == place:
            stop += step
        if first.kind == record.MESSAGE:
            where = Place(number, first.offset, first.size)
            messages.append(Message(first.id, where, entries[at:stop]))
        elif first.kind == record.DELETION:
            ids = b"".join(entries[i + 4 : i + 4 + ID_SIZE] for i in range(at, stop, step))
            deletions.append(record.Deletion(first.mailbox, ids, first.offset))
        at = stop
    return messages, deletions
