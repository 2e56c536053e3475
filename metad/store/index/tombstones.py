"""Tombstones: what a clustered store tells the other members about its deletions.

A deletion record is the truth, in the log; its tombstone is entered in the index with it and says
which origin numbered it.  While it stands, the collector keeps the record, and a copy of the
message that comes late is not entered.

Rules of this file:

* Every method is one short transaction.  Those that change something want `Index.lock` held.
* A tombstone comes into being with a deletion record alone (`Change.delete`).  What is told of one
  that stands needs no record: `note`.
* A rebuild makes a tombstone of every deletion record, under a new incarnation: what was forgotten
  is told once more, and forgotten again.
"""

from __future__ import annotations

from collections.abc import Iterable

import lmdb

from metad.errors import DataError
from metad.store.index.index import Index
from metad.store.index.rows import UNFOUNDED, pack_places, unpack_deleted, unpack_references
from metad.store.index.rows import unpack_places as copies_of
from metad.store.index.tombstone_rows import Origin, Tombstone, TombstoneRows, pack_told

__all__ = ["Origin", "Tombstone", "Tombstones", "pack_told"]


def keep_tombstones(index: Index, origin: Origin) -> None:
    """Have the index keep tombstones from now on.  Before other processes open it.

    An origin of the same node that it has already stays.
    """
    index.make_tombstones()
    with index.writing() as txn:
        TombstoneRows(txn, index.tables.tombstones).begin(origin)


def standing(index: Index, mailbox: int, ids: Iterable[bytes]) -> set[bytes]:
    """Those ids whose deletion other members may have to learn; none in a store by itself."""
    table = index.tables.tombstones
    if table is None:
        return set()
    start = mailbox.to_bytes(4, "big")
    with index.reading() as txn:
        rows = TombstoneRows(txn, table)
        return {one for one in ids if rows.stands(start + one)}


class Tombstones:
    """The tombstones of an open index.  Raises DataError if it keeps none."""

    def __init__(self, index: Index) -> None:
        if index.tables.tombstones is None:
            raise DataError(f"{index.path}: the index of a store without a cluster")
        self._index = index
        self._table = index.tables.tombstones

    # -- looking

    @property
    def own(self) -> Origin:
        """The origin under which this store numbers its deletions."""
        with self._index.reading() as txn:
            return self._rows(txn).mine()[0]

    def stands(self, mailbox: int, message_id: bytes) -> bool:
        return bool(standing(self._index, mailbox, [message_id]))

    def told(self, mailbox: int, message_id: bytes) -> list[tuple[Origin, int]]:
        """Each origin that told of a tombstone, and its number there; nothing if it does not
        stand."""
        with self._index.reading() as txn:
            return self._rows(txn).told(mailbox.to_bytes(4, "big") + message_id)

    def of_mailbox(self, mailbox: int, after: bytes = b"", most: int = 1 << 30) -> list[bytes]:
        """Ids that a mailbox deleted, in order: those greater than `after`, `most` of them."""
        with self._index.reading() as txn:
            return self._rows(txn).of_mailbox(mailbox, after, most)

    def since(self, origin: Origin, sequence: int, most: int) -> list[Tombstone]:
        """An origin's tombstones with numbers greater than that, in order, `most` of them.

        Fewer than `most`: that is all this store has.  Numbers are missing where one was forgotten.
        """
        with self._index.reading() as txn:
            return self._rows(txn).since(origin, sequence, most)

    def vector(self) -> dict[Origin, int]:
        """Of each origin, the number up to which this store has its tombstones in its logs."""
        with self._index.reading() as txn:
            return self._rows(txn).vector()

    def count(self) -> int:
        """About how many stand: for status."""
        with self._index.reading() as txn:
            return int(txn.stat(self._table)["entries"]) // 2

    # -- changing

    def note(self, told: Iterable[Tombstone]) -> list[Tombstone]:
        """Note what other origins told of tombstones that stand here.

        The others are returned: each needs a deletion record (`record.Deletion.told`).
        """
        left = []
        with self._index.writing() as txn:
            rows = self._rows(txn)
            for one in told:
                if rows.stands(one.key):
                    rows.note(one.key, pack_told([(one.origin, one.sequence)]))
                else:
                    left.append(one)
        return left

    def advance(self, origin: Origin, sequence: int) -> None:
        """Everything that this origin told up to a number is in this store's logs and index."""
        with self._index.writing() as txn:
            self._rows(txn).advance(origin, sequence)

    def forget(self, keys: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Drop tombstones (mailbox and id) that every member has had for long enough.

        One whose message still lies in a log here stays.  Those that are forgotten are returned.
        Not to be called while the index lags or a log waits for its recovery: either may have a
        copy that the index lacks.
        """
        gone = []
        with self._index.writing() as txn:
            rows = self._rows(txn)
            for mailbox, message_id in keys:
                key = mailbox.to_bytes(4, "big") + message_id
                if rows.stands(key) and self._let_go(txn, message_id):
                    rows.forget(key)
                    gone.append((mailbox, message_id))
        return gone

    def _let_go(self, txn: lmdb.Transaction, message_id: bytes) -> bool:
        """Whether no copy lies here.  None comes any more, so its deletion record need not wait
        for one."""
        places = self._index.tables.places
        value = bytes(txn.get(message_id, b"", db=places))
        if value and copies_of(value):
            return False
        deleted = unpack_deleted(value) if value else []
        if UNFOUNDED in deleted:
            left = [one for one in deleted if one != UNFOUNDED]
            row = pack_places(unpack_references(value), [], left)
            txn.put(message_id, row, db=places)
        return True

    def _rows(self, txn: lmdb.Transaction) -> TombstoneRows:
        return TombstoneRows(txn, self._table)
