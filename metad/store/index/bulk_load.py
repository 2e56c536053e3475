"""Loading a whole index in key order: LMDB appends, about half a microsecond a row.

Rules of this file:

* Only for an index that no process has open.  Rows come sorted; transactions are bounded, to bound
  the number of dirty pages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from metad.store.ids import ID_SIZE
from metad.store.index.index import Index
from metad.store.index.lsm import pack_usage
from metad.store.index.rows import LogCounts, pack_log
from metad.store.index.tombstone_rows import Origin, TombstoneRows
from metad.store.index.tombstones import keep_tombstones

ROWS_PER_TRANSACTION = 50_000
# Id; references; a copy, or the place of a deletion record; another such place, or zeros.
_PLACE = struct.Struct(f"{ID_SIZE}s28s")
_NONE_DELETED = 16  # bytes of a row without a deletion record
PLACE_ROW = _PLACE.size
ENTRY_ROW = 24  # mailbox, id, octets
Row = tuple[bytes, bytes]


class _Sum(NamedTuple):
    """Usage of a mailbox, from the entries loaded so far."""

    mailbox: bytes
    octets: int
    messages: int

    def plus(self, octets: int, messages: int) -> _Sum:
        return _Sum(self.mailbox, self.octets + octets, self.messages + messages)


class Loader:
    """Fills the index at `path`, table by table."""

    def __init__(self, path: str, origin: Origin | None = None) -> None:
        """With `origin`, the index keeps tombstones, numbered by that origin."""
        self._index = Index(path)
        if origin is not None:
            keep_tombstones(self._index, origin)
        self._mailboxes = self._index.tables.mailboxes[-1]
        self._open: _Sum | None = None
        self._late: list[_Sum] = []

    def close(self) -> None:
        self._index.close()

    def places(self, rows: bytes) -> None:
        """Append rows with one place or two, in id order, greater than all before."""
        cut = (
            (key, value if value[_NONE_DELETED] else value[:_NONE_DELETED])
            for key, value in _PLACE.iter_unpack(rows)
        )
        self._append(self._index.tables.places, cut)

    def odd_places(self, rows: Iterable[Row]) -> None:
        """Put rows of messages with several places, in any order."""
        with self._index.writing() as txn:
            for key, value in rows:
                txn.put(key, value, db=self._index.tables.places)

    def tombstones(self, keys: Iterable[bytes]) -> None:
        """Number tombstones: mailbox and id of each."""
        left = iter(keys)
        while some := list(islice(left, ROWS_PER_TRANSACTION)):
            with self._index.writing() as txn:
                TombstoneRows(txn, self._index.tables.tombstones).number(some)

    def entries(self, rows: bytes) -> None:
        """Append entries in order, greater than all before; a mailbox may go on in the next call.

        A mailbox's usage precedes its entries, and can be appended only if they are all given here;
        otherwise it is put there when all are known.
        """
        self._append(self._mailboxes, self._with_usage(rows))
        self._put_late()

    def _with_usage(self, rows: bytes) -> Iterator[Row]:
        at = 0
        while at < len(rows):
            mailbox = rows[at : at + 4]
            found: list[Row] = []
            octets = 0
            while rows[at : at + 4] == mailbox:
                size = rows[at + 20 : at + ENTRY_ROW]
                octets += int.from_bytes(size, "big")
                found.append((rows[at : at + 20], size))
                at += ENTRY_ROW
            if self._open is not None and self._open.mailbox == mailbox:
                self._open = self._open.plus(octets, len(found))
            elif at < len(rows):
                self._end_open()
                yield mailbox, pack_usage(octets, len(found))
            else:
                self._end_open()
                self._open = _Sum(mailbox, octets, len(found))
            yield from found

    def _end_open(self) -> None:
        if self._open is not None:
            self._late.append(self._open)
            self._open = None

    def _put_late(self) -> None:
        if not self._late:
            return
        with self._index.writing() as txn:
            for mailbox, octets, messages in self._late:
                value = pack_usage(octets, messages)
                txn.put(mailbox, value, db=self._mailboxes)
        self._late.clear()

    def finish(self, rows: dict[int, LogCounts]) -> None:
        """Put the rest: the last mailbox's usage, and the rows of the logs."""
        self._end_open()
        self._put_late()
        with self._index.writing() as txn:
            for number, counts in rows.items():
                txn.put(number.to_bytes(4, "big"), pack_log(counts), db=self._index.tables.logs)

    def _append(self, table: Any, rows: Iterator[Row]) -> None:
        while some := list(islice(rows, ROWS_PER_TRANSACTION)):
            with self._index.writing() as txn, txn.cursor(table) as cursor:
                cursor.putmulti(some, append=True)
