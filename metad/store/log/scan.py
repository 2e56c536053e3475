"""Find the records of a log by reading them: for tails, for damaged logs, for the log dump.

Rules of this file:

* A record counts only if its header and its payload verify under this life's seed.
* The scan skips what does not verify, up to the next header that does; it reports the gap as
  damage, unless it is the zero padding between two groups.  Without a later header, the log ends.
* Reads go by `pread` in windows of bounded size, never through a map.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgpack

from metad.store.log import record
from metad.store.log.header import LogHeader
from metad.store.log.salvage import read_past
from metad.store.log.writer import round_up
from metad.system.osio import Osio

WINDOW = 4 << 20
_AFTER_KIND = struct.Struct("<BHQ")  # version, reserved, life
_MARK_SIZE = len(record.MAGIC) + 1 + _AFTER_KIND.size


class Found(NamedTuple):
    """One good record: where it lies, its header, its payload (valid until the next step)."""

    offset: int
    header: record.Header
    payload: memoryview

    @property
    def envelope(self) -> memoryview:
        return self.payload[: self.header.envelope_size]

    @property
    def body(self) -> memoryview:
        return self.payload[self.header.envelope_size :]


class Damage(NamedTuple):
    """The octets from `start` to `end`, which held records and do not verify."""

    start: int
    end: int


class Scanner:
    """Iterates over a log from `start` to `stop`.

    Afterwards `end` is where its good part ends, `at` where its last good record does, and `group`
    where its last group begins, or something before that.  `is_torn`: there is damage behind that.

    Raises OSError where the file cannot be read at all.
    """

    def __init__(
        self, osio: Osio, fd: int, log: LogHeader, start: int = 0, stop: int | None = None
    ) -> None:
        self._osio = osio
        self._fd = fd
        self._align = log.align
        self._life = log.life
        self._stop = min(log.size - log.align, stop or log.size)
        self._seed = record.seed_of(log.secret, log.number, log.life)
        # The first octets of each record of this life.  Beyond the tail of a reused log there are
        # many records of earlier lives: the pattern skips a hundred thousand of them without
        # returning to Python.
        after = _AFTER_KIND.pack(record.VERSION, 0, log.life)
        self._mark = re.compile(re.escape(record.MAGIC) + b"." + re.escape(after), re.DOTALL)
        self._window = b""
        self._base = 0
        self.at = self.end = self.group = start or log.align
        self.sequence = 0
        self.found_seal = self.is_torn = False

    def __iter__(self) -> Iterator[Found | Damage]:
        at = self.end
        while True:
            found = self._record_at(at) or self._after_padding(at)
            if found is None:
                found = self._search(at)
                if found is None:
                    break
                if not self._is_padding(at, found):
                    self.is_torn = True
                    yield Damage(at, found.offset)
            is_next = found.header.sequence == self.sequence
            self.sequence = found.header.sequence + 1
            if found.header.kind in (record.SEAL, record.FREED):
                self.at, self.end = found.offset + found.header.size, found.offset
                self.found_seal = found.header.kind == record.SEAL
                break
            # Padding with no record lost in it ends a group.  A record that fills its block hides
            # the beginning of the next group: then the two count as one.  A confirmation is a
            # group.
            if (at < found.offset and is_next) or found.header.is_confirmation:
                self.group, self.is_torn = found.offset, False
            self.at = at = found.offset + found.header.size
            self.end = round_up(at, self._align)
            yield found

    def _after_padding(self, at: int) -> Found | None:
        """The record at the next boundary, if nothing but zeros lies before it."""
        offset = round_up(at, self._align)
        if any(self._octets(at, offset - at)):
            return None
        return self._record_at(offset)

    def _is_padding(self, at: int, found: Found) -> bool:
        """True if only zeros lie before a record that is the next in sequence: nothing is lost.

        This is for an unknown alignment, when both headers are damaged.
        """
        if not found.header.sequence == self.sequence > 0:
            return False
        while at < found.offset:
            step = min(WINDOW, found.offset - at)
            if any(self._octets(at, step)):
                return False
            at += step
        return True

    def _search(self, at: int) -> Found | None:
        """The next record after `at` that verifies as a whole."""
        while at < self._stop:
            window = self._octets(at, min(WINDOW, self._stop - at))
            mark = self._mark.search(window)
            while mark is not None:
                found = self._record_at(at + mark.start())
                if found is not None:
                    return found
                mark = self._mark.search(window, mark.start() + 1)
            if len(window) < WINDOW:
                return None
            at += len(window) - _MARK_SIZE + 1
        return None

    def _record_at(self, at: int) -> Found | None:
        head = self._octets(at, record.HEADER_SIZE)
        header = record.parse_header(head, self._seed, self._life)
        if header is None or at + header.size > self._stop:
            return None
        payload = memoryview(self._octets(at, header.size))[record.HEADER_SIZE :]
        if not record.payload_is_good(header, payload, self._seed):
            return None
        return Found(at, header, payload)

    def _octets(self, at: int, count: int) -> bytes:
        """`count` octets at `at` (fewer at the end of the file), through the window."""
        start = at - self._base
        if start < 0 or start + count > len(self._window):
            self._window = read_past(self._osio, self._fd, max(count, WINDOW), at)
            self._base = at
            start = 0
        return self._window[start : start + count]


class Seal(NamedTuple):
    """The contents of a log's seal: its end, and the entries of the records from `covers_from`
    on."""

    end: int
    covers_from: int
    entries: bytes


def find_seal(osio: Osio, fd: int, log: LogHeader) -> Seal | None:
    """The seal of a sealed log, or None if it is missing or damaged.  Raises OSError."""
    if not log.seal_offset or log.seal_offset + log.seal_size > log.size:
        return None
    seed = record.seed_of(log.secret, log.number, log.life)
    data = read_past(osio, fd, log.seal_size, log.seal_offset)
    header = record.parse_header(data, seed, log.life)
    if header is None or header.kind != record.SEAL or header.size != len(data):
        return None
    payload = memoryview(data)[record.HEADER_SIZE :]
    if not record.payload_is_good(header, payload, seed):
        return None
    end, covers_from = msgpack.unpackb(payload[: header.envelope_size])
    return Seal(end, covers_from, bytes(payload[header.envelope_size :]))
