"""The whole index at one moment, read by a child, because a bad page may kill a process that uses
LMDB.

Rules of this file:

* One read transaction, no longer than reading everything takes; nothing is written to the index.
* What the order of the keys allows is checked on the way: the form of the rows, and each mailbox's
  usage.  Everything else goes to `Rows`.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import lmdb
import msgpack

from metad.errors import TemporaryError
from metad.store.fsck.grouping import Rows
from metad.store.identity import Store
from metad.store.ids import ID_SIZE
from metad.store.index.index import MAP_SIZE, MAX_READERS
from metad.store.index.lsm import BOUNDS, names
from metad.store.index.rows import LogCounts
from metad.store.index.tombstone_rows import TABLE as TOMBSTONES
from metad.store.index.tombstone_rows import TombstoneSums

PLACES, ENTRY, UID, TOMBSTONE = 1, 2, 3, 7  # tags of rows
MOST_FINDINGS = 10_000
GET_ON_ROWS = 4096
REACHED_SECONDS = 0.25
_USAGE = struct.Struct(">QI")
_LOG = struct.Struct(">QQQQ")
_LEVELS = names(len(BOUNDS) + 1)
_TABLES = (*_LEVELS, b"places", b"uids", b"logs")

Pairs = Iterator[tuple[bytes, bytes]]


@dataclass(slots=True)
class Snapshot:
    """What the index says about the logs.  If `readable` is False, use none of it."""

    logs: dict[int, LogCounts] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    readable: bool = True


def count_rows(store: Store) -> int:
    """The approximate number of rows in the index, from the size of its file."""
    try:
        return os.stat(os.path.join(store.index, "data.mdb")).st_size // 32
    except OSError:
        return 0


def read_snapshot(
    store: Store,
    rows: Rows | None = None,
    get_on: Callable[[], None] = lambda: None,
    reached: Callable[[int], None] = lambda count: None,
) -> Snapshot:
    """Reads the rows of the logs, and adds all others to `rows` if it is given.

    Now and then `get_on` is called, in a child, and `reached` here, with the number of rows read.

    Raises OSError if no child can be forked.
    """
    counter = mmap.mmap(-1, 8)  # shared with the child
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(writer, store, rows, _counted(get_on, counter))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        while not select.select([pipe], [], [], REACHED_SECONDS)[0]:
            reached(int.from_bytes(counter[:], "big"))
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        why = f"reading it ended the process ({signal.Signals(-code).name})"
        return Snapshot(findings=[f"index: it is damaged: {why}"], readable=False)
    return _unpack(said)


def _counted(get_on: Callable[[], None], counter: mmap.mmap) -> Callable[[], None]:
    """`get_on`, called for every GET_ON_ROWS rows, which are counted."""

    def count() -> None:
        counter[:] = (int.from_bytes(counter[:], "big") + GET_ON_ROWS).to_bytes(8, "big")
        get_on()

    return count


def _child(writer: int, store: Store, rows: Rows | None, get_on: Callable[[], None]) -> None:
    code = 1
    try:
        # A bad page may kill this process: no message from LMDB, no traceback, no core file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        said = _pack(_read(store, rows, get_on))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(said)
        code = 0
    finally:
        os._exit(code)


def _pack(snapshot: Snapshot) -> bytes:
    found = (snapshot.logs, snapshot.findings, snapshot.readable)
    packed: bytes = msgpack.packb(found)
    return packed


def _unpack(said: bytes) -> Snapshot:
    if not said:
        return Snapshot(findings=["index: it could not be read"], readable=False)
    logs, findings, readable = msgpack.unpackb(said, strict_map_key=False)
    rows = {number: LogCounts(*counts) for number, counts in logs.items()}
    return Snapshot(rows, findings, readable)


def _read(store: Store, rows: Rows | None, get_on: Callable[[], None]) -> Snapshot:
    found = Snapshot()
    try:
        with lmdb.open(
            store.index, readonly=True, create=False, map_size=MAP_SIZE, max_dbs=8,
            max_readers=MAX_READERS, readahead=False,
        ) as env:  # fmt: skip
            tables = {name: env.open_db(name, create=False) for name in _TABLES}
            with suppress(lmdb.NotFoundError):  # only a clustered store has it
                tables[TOMBSTONES] = env.open_db(TOMBSTONES, create=False)
            with env.begin() as txn:
                _Reading(found, rows, get_on).run(txn, tables)
    except (lmdb.Error, OSError) as error:
        found.findings.append(f"index: it is damaged: {error}")
        found.readable = False
    if rows is not None:
        rows.flush()
    return found


class _Reading:
    """One pass through the index."""

    def __init__(self, found: Snapshot, rows: Rows | None, get_on: Callable[[], None]) -> None:
        self._found = found
        self._get_on = get_on
        self._rows = rows

    def run(self, txn: lmdb.Transaction, tables: dict[bytes, Any]) -> None:
        self._walk(txn, tables, b"logs", self._logs)
        if self._rows is not None:
            for level in _LEVELS:
                self._walk(txn, tables, level, self._mailboxes)
            self._walk(txn, tables, b"places", self._places)
            self._walk(txn, tables, b"uids", self._uids)
            if TOMBSTONES in tables:
                self._walk(txn, tables, TOMBSTONES, self._tombstones)

    def _say(self, text: str) -> None:
        if len(self._found.findings) < MOST_FINDINGS:
            self._found.findings.append(f"index: {text}")

    def _walk(
        self,
        txn: lmdb.Transaction,
        tables: dict[bytes, Any],
        name: bytes,
        take: Callable[[Pairs], None],
    ) -> None:
        with txn.cursor(tables[name]) as cursor:
            take(self._in_order(cursor, name.decode()))

    def _in_order(self, cursor: lmdb.Cursor, name: str) -> Pairs:
        """Every row.  A damaged tree may contain a cycle, and this must end anyway."""
        last = b""
        for count, row in enumerate(cast(Pairs, cursor)):
            if count % GET_ON_ROWS == 0:
                with suppress(TemporaryError):  # the parent finds out
                    self._get_on()
            key = row[0]
            if key <= last:
                self._say(f"the rows of {name} are out of order")
                self._found.readable = False
                return
            last = key
            yield row

    def _logs(self, pairs: Pairs) -> None:
        for key, value in pairs:
            if len(key) == 4 and len(value) == _LOG.size:
                self._found.logs[int.from_bytes(key, "big")] = LogCounts(*_LOG.unpack(value))
            else:
                self._say(f"a row of logs is damaged: {key.hex()}")

    def _mailboxes(self, pairs: Pairs) -> None:
        add = self._add
        usage = _Usage(self._say)
        for key, value in pairs:
            if len(key) == 20 and len(value) == 4:
                usage.entry(key[:4], value)
                add(ENTRY, key[4:], key[:4] + value)
            elif len(key) == 4 and len(value) == _USAGE.size:
                usage.row(key, value)
            else:
                self._say(f"a row of mailboxes is damaged: {key.hex()}")
        usage.finish()

    def _places(self, pairs: Pairs) -> None:
        for key, value in pairs:
            if len(key) == ID_SIZE and len(value) % 12 == 4:
                self._add(PLACES, key, value)
            else:
                self._say(f"a row of places is damaged: {key.hex()}")

    def _uids(self, pairs: Pairs) -> None:
        for key, value in pairs:
            if len(key) == ID_SIZE:
                self._add(UID, key, value)
            else:
                self._say(f"a row of uids is damaged: {key.hex()}")

    def _tombstones(self, pairs: Pairs) -> None:
        sums = TombstoneSums()
        for key, value in pairs:
            try:
                dead = sums.take(key, value)
            except ValueError as error:
                self._say(str(error))
            else:
                if dead:
                    self._add(TOMBSTONE, dead[4:], dead[:4])
        if not sums.agree:
            self._say("its tombstones are not under their origins")

    def _add(self, tag: int, message_id: bytes, octets: bytes) -> None:
        if self._rows is not None:
            self._rows.add(tag, message_id, octets)


class _Usage:
    """Compares each mailbox's usage in one level with its entries there, which follow it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._mailbox = b""
        self._said = (0, 0)
        self._octets = self._messages = 0

    def row(self, mailbox: bytes, value: bytes) -> None:
        self._begin(mailbox)
        octets, messages = _USAGE.unpack(value)
        self._said = (octets, messages)

    def entry(self, mailbox: bytes, octets: bytes) -> None:
        if mailbox != self._mailbox:
            self._begin(mailbox)
        self._octets += int.from_bytes(octets, "big")
        self._messages += 1

    def _begin(self, mailbox: bytes) -> None:
        self.finish()
        self._mailbox, self._said = mailbox, (0, 0)
        self._octets = self._messages = 0

    def finish(self) -> None:
        if self._said != (self._octets, self._messages):
            octets, messages = self._said
            self._say(
                f"mailbox {int.from_bytes(self._mailbox, 'big')} is listed with {messages} "
                f"messages of {octets} bytes, but has {self._messages} of {self._octets}"
            )
