"""Loading a whole index in key order: LMDB appends, about half a microsecond a row.

Rules of this file:

* Only for an index that nobody has open.  Rows come sorted; transactions are bounded, so that
  dirty pages are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from metad.store.ids import ID_SIZE, NO_ID
from metad.store.index import Index, LogCounts, pack_log, pack_usage

ROWS_PER_TRANSACTION = 50_000
PLACE_ROW = 32  # id, references, log, offset, size
ENTRY_ROW = 24  # mailbox, id, octets
Row = tuple[bytes, bytes]


class Loader:
    """Fills the index at `path`, table by table."""

    def __init__(self, path: str) -> None:
        self._index = Index(path)

    def close(self) -> None:
        self._index.close()

    def places(self, rows: bytes) -> None:
        """Append rows of messages with one place, in id order, greater than all before."""
        self._append(
            self._index.tables.places,
            ((rows[at : at + ID_SIZE], rows[at + ID_SIZE : at + PLACE_ROW])
             for at in range(0, len(rows), PLACE_ROW)),
        )  # fmt: skip

    def odd_places(self, rows: Iterable[Row]) -> None:
        """Put rows of messages with several places, in any order."""
        with self._index.writing() as txn:
            for key, value in rows:
                txn.put(key, value, db=self._index.tables.places)

    def entries(self, rows: bytes) -> None:
        """Append the entries of some mailboxes, whole ones, greater than all before."""
        self._append(self._index.tables.mailboxes, _with_usage(rows))

    def logs(self, rows: dict[int, LogCounts]) -> None:
        with self._index.writing() as txn:
            for number, counts in rows.items():
                txn.put(number.to_bytes(4, "big"), pack_log(counts), db=self._index.tables.logs)

    def _append(self, table: Any, rows: Iterator[Row]) -> None:
        while some := list(islice(rows, ROWS_PER_TRANSACTION)):
            with self._index.writing() as txn, txn.cursor(table) as cursor:
                cursor.putmulti(some, append=True)


def _with_usage(rows: bytes) -> Iterator[Row]:
    """Entries as the index has them, each mailbox's usage in front."""
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
        yield mailbox + NO_ID, pack_usage(octets, len(found))
        yield from found
