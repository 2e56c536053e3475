"""Reads stored records; each is verified before its first byte is sent.

Rules of this file:

* The index may be wrong or late; a record is returned only if its id, life and checksums are right.
  On a mismatch its place is looked up again, as often as the collector moves it between the look
  and the read.  If it stays where it is, a mismatch is damage.
* In a cluster a message may lie here in several copies, each for other mailboxes.  For a mailbox
  only a copy that names it counts: another one has other lines in front, and hides that its own is
  damaged.
* No lock is held for an ordinary read.  Only a transfer larger than `BUFFER` holds the reader's
  lock on its log (metad.store.log.files), so that the file's next life waits for it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, cast

from metad.errors import DamagedError
from metad.limits import PIECE_GIVEN
from metad.store.identity import Store
from metad.store.index.index import Index
from metad.store.log import files as log_files
from metad.store.log import header, record
from metad.store.log.place import Place
from metad.system.osio import Osio

BUFFER = 1 << 20
MOST_OPEN = 256


class Stored(NamedTuple):
    """A verified message: its envelope and its body as it lies in the log."""

    envelope: record.Envelope
    body: memoryview


class _OpenLog(NamedTuple):
    fd: int
    life: int
    seed: int


class Reader:
    """Reads messages of one store by id.  Belongs to one process; logs stay open, 256 at most."""

    def __init__(self, osio: Osio, store: Store, index: Index) -> None:
        self._osio = osio
        self._store = store
        self._index = index
        self._open: OrderedDict[int, _OpenLog] = OrderedDict()

    def close(self) -> None:
        while self._open:
            self._osio.close(self._open.popitem()[1].fd)

    def close_unlinked(self) -> None:
        """Close the logs whose file has no name any more: its blocks are free only then."""
        for number, log in list(self._open.items()):
            with suppress(OSError):  # closed meanwhile, by a thread that reads
                if not self._osio.fstat(log.fd).st_nlink:
                    self._forget(number)

    def size(self, message_id: bytes) -> int:
        """Size of the record of a message.  Raises DamagedError if it has no place."""
        places = self._index.places(message_id)
        if not places:
            raise DamagedError(f"message {message_id.hex()} has no place")
        return places[0].size

    def look_ahead(self, ids: Iterable[bytes]) -> list[Place | None]:
        """The present places of these messages: hints for `read_now`.  Raises lmdb.Error."""
        return self._index.first_places(ids)

    def read(self, message_id: bytes, mailbox: int | None = None) -> Stored:
        """The message, verified, if need be from the disk.  `mailbox`: a copy that names it.

        Raises DamagedError if no place holds it.
        """
        return cast(Stored, self._find(message_id, mailbox, wait=True))

    def read_now(self, message_id: bytes, hint: Place | None = None) -> Stored | None:
        """The message, verified, if it is in memory; else None.

        `hint`: a place looked up some time ago.  Raises DamagedError as `read` does.
        """
        if hint is not None:
            try:
                found = self._read_at(hint, message_id, wait=False)
            except BlockingIOError:
                return None
            except OSError:
                found = None
            if found is not None:
                return found
        return self._find(message_id, None, wait=False)

    def _find(self, message_id: bytes, mailbox: int | None, *, wait: bool) -> Stored | None:
        number = 0
        for places in self._looks(message_id):
            for place in places:
                number = place.log
                try:
                    found = self._read_again(place, message_id, wait=wait)
                except BlockingIOError:
                    return None
                except OSError:
                    self._forget(place.log)
                    found = None
                if found is not None and _is_for(found.envelope, mailbox):
                    return found
        raise _damaged(message_id, number)

    def _read_again(self, place: Place, message_id: bytes, *, wait: bool) -> Stored | None:
        """Read a place.  If that fails, the log may have begun its next life since it was opened:
        then it is reopened, with its present life."""
        was_open = place.log in self._open
        found = self._read_at(place, message_id, wait=wait)
        if found is None:
            self._forget(place.log)
            if was_open:
                found = self._read_at(place, message_id, wait=wait)
        return found

    def _read_at(self, place: Place, message_id: bytes, *, wait: bool) -> Stored | None:
        log = self._log(place.log)
        buffer = bytearray(place.size)
        flags = 0 if wait else os.RWF_NOWAIT
        if self._osio.preadv(log.fd, [buffer], place.offset, flags) != place.size:
            if not wait:
                raise BlockingIOError
            return None
        found = record.parse_header(buffer, log.seed, log.life)
        if found is None or found.id != message_id or found.size != place.size:
            return None
        payload = memoryview(buffer)[record.HEADER_SIZE :]
        if found.kind != record.MESSAGE or not record.payload_is_good(found, payload, log.seed):
            return None
        split = found.envelope_size
        return Stored(record.unpack_envelope(payload[:split]), payload[split:])

    def _looks(self, message_id: bytes) -> Iterator[list[Place]]:
        """The places of a message, looked up until it has been read: at least twice, and then as
        long as they, or the lives of their logs, were other ones after the read than before it."""
        yield self._index.places(message_id)
        before = None
        while (now := self._index.places_and_lives(message_id)) != before:
            yield self._index.places(message_id)
            before = now

    def stream(
        self, message_id: bytes, mailbox: int | None = None
    ) -> Generator[Stored | bytes, None, None]:
        """A large message in pieces: first a `Stored` with its envelope and no body, then octets.

        `mailbox`: a copy is wanted that names it.

        The whole message is verified before the first piece; the reader's lock is held until the
        end.  Blocks on the disk, so never use it on the loop.  Raises DamagedError.
        """
        fd, place, envelope_size = self._open_verified(message_id, mailbox)
        try:
            at = place.offset + record.HEADER_SIZE
            packed = self._osio.pread(fd, envelope_size, at)
            yield Stored(record.unpack_envelope(packed), memoryview(b""))
            end = place.offset + place.size
            yield from self._pieces(fd, at + envelope_size, end, PIECE_GIVEN)
        finally:
            self._osio.close(fd)

    def _open_verified(self, message_id: bytes, mailbox: int | None) -> tuple[int, Place, int]:
        """A descriptor with the reader's lock, the good place, the size of the envelope.

        Without the lock, nothing may be read: the log is about to begin its next life.
        """
        number = 0
        for places in self._looks(message_id):
            for place in places:
                number, size = place.log, 0
                with suppress(OSError, DamagedError):
                    fd = self._osio.open(header.log_path(self._store.logs, place.log), os.O_RDONLY)
                    try:
                        if log_files.try_reader_lock(fd):
                            size = self._verify(fd, place, message_id, mailbox)
                    finally:
                        if not size:
                            self._osio.close(fd)
                if size:
                    return fd, place, size
        raise _damaged(message_id, number)

    def _verify(self, fd: int, place: Place, message_id: bytes, mailbox: int | None) -> int:
        """Size of the envelope if the record at `place` is good, and for the mailbox; else 0."""
        life = self._index.log_counts(place.log).life
        seed = record.seed_of(self._store.secret, place.log, life)
        head = self._osio.pread(fd, record.HEADER_SIZE, place.offset)
        found = record.parse_header(head, seed, life)
        if found is None or found.id != message_id or found.size != place.size:
            return 0
        if found.kind != record.MESSAGE:
            return 0
        start = place.offset + record.HEADER_SIZE
        pieces = self._pieces(fd, start, place.offset + place.size, BUFFER)
        payload = record.digest_payload(b"", pieces, seed)
        if payload.digest != found.digest:
            return 0
        if mailbox is not None:
            packed = self._osio.pread(fd, found.envelope_size, start)
            if not _is_for(record.unpack_envelope(packed), mailbox):
                return 0
        return found.envelope_size

    def _pieces(self, fd: int, start: int, stop: int, most: int) -> Iterator[bytes]:
        while start < stop:
            piece = self._osio.pread(fd, min(most, stop - start), start)
            if not piece:
                raise DamagedError("a log ends within a message")
            yield piece
            start += len(piece)

    def _log(self, number: int) -> _OpenLog:
        log = self._open.get(number)
        if log is None:
            log = self._open[number] = self._open_log(number)
            while len(self._open) > MOST_OPEN:
                self._osio.close(self._open.popitem(last=False)[1].fd)
        return log

    def _open_log(self, number: int) -> _OpenLog:
        fd = self._osio.open(header.log_path(self._store.logs, number), os.O_RDONLY)
        # The life comes from the index, which changes it together with the places, so a record can
        # be read even if the header is damaged.
        life = self._index.log_counts(number).life
        return _OpenLog(fd, life, record.seed_of(self._store.secret, number, life))

    def _forget(self, number: int) -> None:
        log = self._open.pop(number, None)
        if log is not None:
            self._osio.close(log.fd)


def _is_for(envelope: record.Envelope, mailbox: int | None) -> bool:
    return mailbox is None or any(one.mailbox == mailbox for one in envelope.recipients)


def _damaged(message_id: bytes, log: int) -> DamagedError:
    error = DamagedError(f"message {message_id.hex()} does not verify in any place")
    error.log = log
    return error
