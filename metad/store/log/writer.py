"""The writer of one log in one life: appends groups, syncs them, and finally writes a seal.

Rules of this file:

* One `LogWriter` per life, used by one thread at a time; its maker holds the log's flock.
* Each group starts on an `align` boundary: a torn write never touches what was acknowledged.
* Room for the seal is reserved before each append, so a log can always be sealed.
* A failed write or sync poisons the writer: nothing more is ever written to that file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgpack

from metad.store.ids import NO_ID
from metad.store.log import header, record
from metad.store.log.header import LogHeader
from metad.system.osio import Buffer, Osio

ZERO_STEP = 256 * 1024
_SEAL_ENVELOPE_ROOM = 32


def round_up(size: int, align: int) -> int:
    return -(-size // align) * align


def seal_room(entries_size: int, align: int) -> int:
    """Octets to reserve for a seal with `entries` octets of entries."""
    return round_up(record.HEADER_SIZE + _SEAL_ENVELOPE_ROOM + entries_size, align)


class Footer(NamedTuple):
    """The contents of a seal besides the end: entries of the records from `covers_from` on.

    A recovery that read only the tail seals the log with the tail's entries; a rebuild then scans
    what lies before it.
    """

    entries: bytes
    sequence: int
    covers_from: int


class LogWriter:
    """Appends to the log open at `fd`.  `end` is where the next group goes."""

    def __init__(self, osio: Osio, fd: int, log: LogHeader, *, sync: bool = True) -> None:
        self._osio = osio
        self.fd = fd
        self.log = log
        self.number = log.number
        self.life = log.life
        self.seed = record.seed_of(log.secret, log.number, log.life)
        self.end = log.align
        self.sequence = 0
        self.entries = bytearray()
        self.poisoned = False
        self.sealed = False
        self.predecessor_recorded = False  # another log records where this poisoned one ends
        self._sync = sync
        self._zeros = bytes(log.align)
        self._zero_lock = osio.make_lock()
        self._sync_lock = osio.make_lock()
        self._zeroed = log.size - log.align
        self._reserve_lock = osio.make_lock()
        self._reserved = log.size - log.align  # there are blocks up to here

    # -- room

    def room(self) -> int:
        """Octets of records that still fit, besides the seal for what is already written."""
        return self.log.size - self.log.align - self.end - self._seal_size(len(self.entries))

    def fits(self, size: int, entries_size: int) -> bool:
        """True if a group of `size` octets with `entries_size` octets of entries fits."""
        align = self.log.align
        after = self.end + round_up(size, align)
        return after + self._seal_size(len(self.entries) + entries_size) <= self.log.size - align

    def takes(self, size: int, entries_size: int, ahead: int = 0) -> bool:
        """Like `fits`, and there are blocks for it, and for `ahead` bytes after it within the log:
        a full disk cannot fail it halfway."""
        after = self.end + round_up(size, self.log.align)
        after += self._seal_size(len(self.entries) + entries_size)
        return min(after + ahead, max(after, self.log.size - self.log.align)) <= self._reserved

    def begin_sparse(self, first: int) -> None:
        """The file has blocks only for its `first` bytes."""
        self._reserved = min(first, self._reserved)
        self._zeroed = self.end

    def reserve(self, size: int, entries_size: int, ahead: int) -> None:
        """Allocate blocks for a group and its entries, and for `ahead` bytes after it, within the
        log.  From any thread.  Raises OSError; then everything is as it was."""
        with self._reserve_lock:
            after = self.end + round_up(size, self.log.align)
            wanted = after + self._seal_size(len(self.entries) + entries_size) + ahead
            wanted = min(round_up(wanted, self.log.align), self.log.size - self.log.align)
            if wanted > self._reserved and not self.poisoned:
                self._osio.allocate(self.fd, wanted - self._reserved, self._reserved)
                self._reserved = wanted

    def _seal_size(self, entries_size: int) -> int:
        return seal_room(entries_size, self.log.align)

    # -- appending

    def make_header(self, kind: int, record_id: bytes, payload: record.Payload) -> bytes:
        """The header of the next record in sequence."""
        made = record.make_header(kind, self.life, self.sequence, record_id, payload)
        self.sequence += 1
        return made

    def append(self, parts: Iterable[Sequence[Buffer]], size: int, entries: bytes) -> None:
        """Write one group of `size` octets at `end` and make it durable.

        `parts` are lists of at most 1,000 buffers, written one after another (a group that fits in
        memory is one part), `entries` the footer entries of its records.

        Raises OSError; then the log is poisoned, and `end` is the end of its good part.
        """
        if self.poisoned:
            raise OSError(errno.EIO, f"log {self.number} failed earlier")
        after = self.end + round_up(size, self.log.align)
        try:
            self._claim(after)
            self._write(parts, size, after)
            if self._sync:
                self._sync_now()
        except BaseException:
            self.poisoned = True
            raise
        self.end = after
        self.entries += entries

    def _sync_now(self) -> None:
        """Sync, unless a sync failed before.  Raises OSError; then the log is poisoned.

        The kernel reports a failed write-back once and marks the pages clean.  So if two threads
        sync the same file, the one that gets no error must not trust its success.
        """
        with self._sync_lock:
            if self.poisoned:
                raise OSError(errno.EIO, f"log {self.number} failed earlier")
            try:
                self._osio.fdatasync(self.fd)
            except BaseException:
                self.poisoned = True
                raise

    def _write(self, parts: Iterable[Sequence[Buffer]], size: int, after: int) -> None:
        at = self.end
        stop = at + size
        pad = self._zeros[: after - stop]
        for part in parts:
            length = sum(map(len, part))
            if at + length == stop and pad:
                part = [*part, pad]  # noqa: PLW2901 - the last part carries the padding
                length += len(pad)
            if self._osio.pwritev(self.fd, part, at) != length:
                raise OSError(errno.EIO, f"short write to log {self.number} at {at}")
            at += length
        if at != after:
            raise OSError(errno.EIO, f"group of {at - self.end} bytes announced as {size}")

    # -- blocks written ahead of the tail

    def zero_from_here(self) -> None:
        """The file is new: its blocks must be written once before the tail reaches them."""
        self._zeroed = self.end

    def zero_step(self, ahead: int) -> bool:
        """Write and sync the next 256 KiB of zeros if less than `ahead` octets are ready.

        Overwriting written blocks needs no journal commit per sync (114 µs against 188 µs into
        unwritten extents).  Called from another thread than the appender's.  False: nothing to do.
        Raises OSError; then the log is poisoned.
        """
        with self._zero_lock:
            limit = self._reserved
            start = self._zeroed
            if self.poisoned or start >= limit or start - self.end >= ahead:
                return False
            size = min(ZERO_STEP, limit - start)
            if self._osio.pwrite(self.fd, bytes(size), start) != size:
                raise OSError(errno.EIO, "short write of zeros")
            self._zeroed = start + size
        self._sync_now()
        return True

    def _claim(self, after: int) -> None:
        """Keep the zeros away from the octets up to `after`, which are about to hold mail."""
        if after > self._zeroed:
            with self._zero_lock:
                self._zeroed = max(self._zeroed, after)

    # -- the ends

    def state_predecessor(self, broken: LogWriter) -> None:
        """Record durably, before anything is acknowledged here, where a poisoned log ends.

        Raises OSError; then this writer is poisoned as well.
        """
        self.log = self.log._replace(predecessor_life=broken.life, predecessor_end=broken.end)
        with self._sync_lock:  # a failed sync of zeros must not make this one look successful
            if self.poisoned:
                raise OSError(errno.EIO, f"log {self.number} failed earlier")
            try:
                header.rewrite(self._osio, self.fd, self.log)
            except OSError:
                self.poisoned = True
                raise

    def seal(self) -> None:
        """Record durably where the log ends, with its footer.  Raises OSError; then unsealed."""
        self._claim(self.log.size)
        footer_ = Footer(bytes(self.entries), self.sequence, self.log.align)
        seal(self._osio, self.fd, self.log, self.end, footer_)
        self.poisoned = self.sealed = True

    def close(self) -> None:
        """Close the descriptor, and with it release the writer's lock.

        Nothing may be written through this object afterwards: the descriptor's number may be reused
        for another file at once.
        """
        with self._zero_lock, self._reserve_lock, self._sync_lock:
            self.poisoned = True
            self._osio.close(self.fd)


def seal(osio: Osio, fd: int, log: LogHeader, end: int, footer_: Footer) -> None:
    """Write the seal record at `end`, sync it, then point the last block at it and sync that.

    Raises OSError.  Interrupted anywhere, the log is unsealed and is sealed again by recovery.
    """
    seed = record.seed_of(log.secret, log.number, log.life)
    entries = footer_.entries
    envelope: bytes = msgpack.packb((end, footer_.covers_from))
    payload = record.digest_payload(envelope, [entries], seed)
    head = record.make_header(record.SEAL, log.life, footer_.sequence, NO_ID, payload)
    size = len(head) + len(envelope) + len(entries)
    pad = bytes(round_up(size, log.align) - size)
    if osio.pwritev(fd, [head, envelope, entries, pad], end) != size + len(pad):
        raise OSError(errno.EIO, f"short write of the seal of log {log.number}")
    osio.fdatasync(fd)
    header.write_last(osio, fd, log._replace(seal_offset=end, seal_size=size))
    osio.fdatasync(fd)
