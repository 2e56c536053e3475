"""The index: a view of the logs in LMDB, never synced, rebuilt whenever it is in doubt.

Databases in one environment:

    mailboxesN  entries and usage of the mailboxes, in levels: metad.store.index.lsm has the rows
    places      id (16)         -> references (4), then 12 each: copies, then deletion records
    uids        id (16)         -> unique id that an imported message came with
    logs        log number (4)  -> life, watermark, live messages, live octets (8 each)
    tombstones  only where the store is clustered: metad.store.index.tombstone_rows has the rows

All big-endian; metad.store.index.rows packs them.  A message's row stays while a copy or a deletion
record of it lies in a log, even if no mailbox refers to it any more: the row preserves the deletion
records.  A copy is log, offset, size; a deletion record is log with the first bit set, offset,
mailbox.  The collector reads the records: the row is a hint and proves nothing.

Rules of this file:

* Open it only after the fork, by one object per process: opening the files a second time in the
  same process would drop the locks.
* No read transaction outlives a call.  A write transaction is one call of `apply`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

import lmdb

from metad.store.ids import NO_ID
from metad.store.index import state as index_state
from metad.store.index.change import Change, Tables
from metad.store.index.lsm import BOUNDS, Lsm
from metad.store.index.rows import Batch, LogCounts, unpack_log, unpack_places
from metad.store.index.tombstone_rows import TABLE as TOMBSTONES
from metad.store.log.place import Place
from metad.store.usage import Usage
from metad.system.osio import Osio

MAP_SIZE = 1 << 40
MAX_READERS = 1024
_MAILBOX = struct.Struct(">I")
LISTING_ENTRY = struct.Struct(">16sI")
_USAGES = 1000  # read in one transaction

_FLOCK = struct.Struct("hhqqi4x")
_WRITE_LOCK = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_WRITE_UNLOCK = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


Publish = Callable[[dict[int, LogCounts]], None]


class _Transaction:
    """One transaction: committed, or undone and the index noted as suspect if it may be damaged."""

    __slots__ = ("_index", "_txn", "_write")

    def __init__(self, index: Index, *, write: bool = False) -> None:
        self._index = index
        self._write = write

    def __enter__(self) -> lmdb.Transaction:
        try:
            self._txn = self._index.begin(write=self._write)
        except lmdb.Error as error:
            self._index.doubt(error)
            raise
        return self._txn

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._txn.abort()
            self._index.doubt(error)
        elif self._write:
            try:
                self._txn.commit()
            except lmdb.Error as failure:
                self._index.doubt(failure)
                raise
        else:
            self._txn.abort()


class Index:
    """An open index.  Every method raises lmdb.Error if its files are unusable."""

    def __init__(
        self, path: str, bounds: Sequence[int] = BOUNDS, *, readonly: bool = False
    ) -> None:
        """`bounds`: rows in each level of the mailboxes but the last."""
        self.path = path
        self._env = lmdb.open(
            path,
            map_size=MAP_SIZE,
            max_readers=MAX_READERS,
            max_dbs=8,
            sync=False,
            metasync=False,
            readahead=False,
            meminit=False,
            mode=0o600,
            readonly=readonly,
            create=not readonly,
        )
        self._write_lock = os.open(
            os.path.join(path, "writer"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        # Called with 1 (this process waits for the write lock), the time at which it took the lock
        # (monotonic ns), or 0 (neither): the holder is the one that hangs, not those that wait.
        self.on_lock: Callable[[int], None] = lambda state: None
        self._levels = Lsm(self._env, bounds, create=not readonly)
        self._places = self._env.open_db(b"places", create=not readonly)
        self._logs = self._env.open_db(b"logs", create=not readonly)
        self._uids = self._env.open_db(b"uids", create=not readonly)
        # The databases, for code that changes, fills or moves whole tables.
        self.tables = Tables(self._levels, self._places, self._logs, self._uids)
        with suppress(lmdb.NotFoundError):
            self._use_tombstones(self._env.open_db(TOMBSTONES, create=False))

    def make_tombstones(self) -> None:
        """Create the table of tombstones, which this process and later ones use."""
        self._use_tombstones(self._env.open_db(TOMBSTONES))

    def _use_tombstones(self, table: object) -> None:
        self.tables = self.tables._replace(tombstones=table)

    def close(self) -> None:
        self._env.close()
        os.close(self._write_lock)

    @property
    def transaction(self) -> int:
        """The number of the last write transaction: it shows whether anything has changed."""
        return int(self._env.info()["last_txnid"])

    def sync(self) -> None:
        """Raises lmdb.Error.  Failed writes may vanish from the page cache later, so the failure is
        noted."""
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            index_state.mark_suspect(Osio(), self.path, f"it could not be synced: {error}")
            raise

    def begin(self, *, write: bool) -> lmdb.Transaction:
        """A transaction; use it through `writing` and `reading`."""
        return self._env.begin(write=write)

    def doubt(self, error: BaseException) -> None:
        """Note durably that the index is suspect, if that error casts doubt on it."""
        index_state.note_doubt(Osio(), self.path, error)

    def reader_check(self) -> int:
        """Free the slots of readers that died.  Returns their number."""
        return int(self._env.reader_check())

    # -- writing

    def try_lock(self) -> bool:
        """Take the writers' lock without waiting.

        LMDB's own mutex can only be waited for, which a loop must not do.  Every writer takes this
        OFD lock first, so that its holder finds the mutex free.  The kernel releases it when its
        holder dies.
        """
        try:
            fcntl.fcntl(self._write_lock, fcntl.F_OFD_SETLK, _WRITE_LOCK)
        except BlockingIOError:
            return False
        self.on_lock(time.monotonic_ns())
        return True

    def lock(self) -> None:
        """Wait for the writers' lock.  Never on an event loop."""
        self.on_lock(1)
        fcntl.fcntl(self._write_lock, fcntl.F_OFD_SETLKW, _WRITE_LOCK)
        self.on_lock(time.monotonic_ns())

    def unlock(self) -> None:
        fcntl.fcntl(self._write_lock, fcntl.F_OFD_SETLK, _WRITE_UNLOCK)
        self.on_lock(0)

    @contextmanager
    def writing(self) -> Iterator[lmdb.Transaction]:
        """One write transaction, committed at the end.  Hold `lock` if other processes write
        too."""
        with _Transaction(self, write=True) as txn:
            yield txn

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction]:
        """One read transaction, which must be short."""
        with _Transaction(self) as txn:
            yield txn

    def apply(self, batch: Batch, publish: Publish | None = None) -> None:
        """Enter a batch in one transaction.  Hold `lock` if other processes write too.

        `publish` gets the absolute counts of every log that changed, while the write lock is
        still held: so shared memory is written by one process at a time.
        """
        with _Transaction(self, write=True) as txn:
            change = Change(self.tables, txn)
            change.add_messages(batch.messages, batch.life)
            for deletion in batch.deletions:
                change.delete(deletion, batch.log)
            rows = change.write_counts(batch)
            if publish is not None:
                publish(rows)

    # -- reading

    def listing(self, mailbox: int) -> bytes:
        """The entries of a mailbox in id order: `LISTING_ENTRY` each, packed."""
        with _Transaction(self) as txn:
            return self._levels.listing(txn, _MAILBOX.pack(mailbox))

    def listing_piece(self, mailbox: int, after: bytes, most: int) -> list[bytes]:
        """The first `most` entries of a mailbox with ids greater than `after`, in id order."""
        with self._env.begin() as txn:
            return self._levels.listing_piece(txn, _MAILBOX.pack(mailbox), after, most)

    def opening(self, mailbox: int) -> tuple[Usage, bytes]:
        """Usage and greatest id of a mailbox, as of one moment."""
        key = _MAILBOX.pack(mailbox)
        with self._env.begin() as txn:
            usage = self._levels.usage(txn, key)
            return usage, self._levels.newest(txn, key) if usage.messages else b""

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of these (mailbox and id) that are no entries."""
        with _Transaction(self) as txn:
            return [one for one in keys if not self._levels.has(txn, one)]

    def oldest(self, mailbox: int, most: int) -> list[bytes]:
        """The first ids of a mailbox, in order, `most` of them."""
        with _Transaction(self) as txn:
            return self._levels.oldest(txn, _MAILBOX.pack(mailbox), most)

    def greatest_mailbox(self) -> int:
        """The greatest number of a mailbox that has mail; 0 if none has."""
        with _Transaction(self) as txn:
            return int.from_bytes(self._levels.greatest_mailbox(txn), "big")

    def uids(self, ids: Iterable[bytes]) -> dict[bytes, str]:
        """The unique ids of imported messages that the index has.  After a rebuild from footers it
        has none; their records do."""
        with _Transaction(self) as txn:
            found = {one: txn.get(one, db=self._uids) for one in ids}
        return {one: bytes(value).decode() for one, value in found.items() if value}

    def put_uids(self, uids: dict[bytes, str]) -> None:
        """Enter unique ids that `uids` did not find; with `lock` held."""
        with _Transaction(self, write=True) as txn:
            for one, uid in uids.items():
                txn.put(one, uid.encode(), db=self._uids)

    def usage(self, mailbox: int) -> Usage:
        with _Transaction(self) as txn:
            return self._levels.usage(txn, _MAILBOX.pack(mailbox))

    def usages(self) -> Iterator[tuple[int, Usage]]:
        """Usage of every mailbox that has mail, a bounded number per transaction."""
        start = b"\0"
        while True:
            with _Transaction(self) as txn:
                rows = list(islice(self._levels.usages(txn, start), _USAGES))
            for mailbox, usage in rows:
                yield int.from_bytes(mailbox, "big"), usage
            if len(rows) < _USAGES:
                return
            start = rows[-1][0] + b"\0"

    def places(self, message_id: bytes) -> list[Place]:
        """The places of a message, the best one first; empty if there is none."""
        with _Transaction(self) as txn:
            value = txn.get(message_id, db=self._places)
        return unpack_places(bytes(value)) if value else []

    def places_and_lives(self, message_id: bytes) -> list[tuple[Place, int]]:
        """The places of a message, each with the life of its log, at one moment."""
        with _Transaction(self) as txn:
            places = unpack_places(bytes(txn.get(message_id, b"", db=self._places)))
            logs = [txn.get(one.log.to_bytes(4, "big"), db=self._logs) for one in places]
            lives = [unpack_log(value).life for value in logs]
        return list(zip(places, lives, strict=True))

    def first_places(self, ids: Iterable[bytes]) -> list[Place | None]:
        """The best place of each of these messages, in one transaction."""
        with _Transaction(self) as txn:
            values = [txn.get(one, b"", db=self._places) for one in ids]
        return [next(iter(unpack_places(bytes(value))), None) for value in values]

    def logs(self) -> dict[int, LogCounts]:
        with _Transaction(self) as txn, txn.cursor(self._logs) as cursor:
            return {int.from_bytes(key, "big"): unpack_log(value) for key, value in cursor}

    def log_counts(self, number: int) -> LogCounts:
        with _Transaction(self) as txn:
            value = txn.get(number.to_bytes(4, "big"), db=self._logs)
        return unpack_log(value)

    def totals(self) -> dict[str, int]:
        """Number of rows, for status."""
        with _Transaction(self) as txn:
            return {
                "entries": self._levels.rows(txn),
                "places": txn.stat(self._places)["entries"],
            }

    def greatest_id(self, node: int) -> bytes:
        """The greatest message id that has a place and that this node made."""
        mine = node.to_bytes(2, "big")
        with _Transaction(self) as txn, txn.cursor(self._places) as cursor:
            there = cursor.last()
            while there:
                key = bytes(cursor.key())
                if key[8:10] == mine:
                    return key
                there = cursor.prev()
        return NO_ID
