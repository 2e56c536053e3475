"""The changes of a cluster's users database, kept so that other nodes can repeat them.

Table "changes": revision (8) -> the puts and deletes of one transaction, packed, in their order. In
"meta": `LINEAGE`, the epoch at which this database's node began to accept changes, and the last
revision; `MIRROR`, the number of the node whose copy this database is.

Rules of this file:

* A change and its journal entry are one transaction.
* A mirror accepts only the changes of its source.
* A database outside a cluster has no such table, and pays only an attribute look-up.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from metad.errors import UnavailableError

CHANGES = b"changes"
LINEAGE, MIRROR = b"lineage", b"mirror"
# Revisions kept: a node that lacks more gets a whole copy.
KEPT = 100_000
REVISION = struct.Struct(">Q")
_LINEAGE = struct.Struct(">QQ")
_NODE = struct.Struct(">H")

# Number of the table, key, value; a delete has None, or in a table of pairs the second of the pair.
Operation = tuple[int, bytes, bytes | None, bytes]


class Lineage(NamedTuple):
    """Of two databases, the one with the greater lineage counts."""

    epoch: int = 0
    revision: int = 0


class MirrorError(UnavailableError):
    """This node's users are a copy."""


def lineage(txn: Any, meta: Any) -> Lineage:
    value = txn.get(LINEAGE, db=meta)
    return Lineage(*_LINEAGE.unpack(value)) if value else Lineage()


def put_lineage(txn: Any, meta: Any, value: Lineage) -> None:
    txn.put(LINEAGE, _LINEAGE.pack(*value), db=meta)


def source(txn: Any, meta: Any) -> int:
    """The node of which this is a copy; 0: changes are made here."""
    value = txn.get(MIRROR, db=meta)
    return int(_NODE.unpack(value)[0]) if value else 0


def put_source(txn: Any, meta: Any, node: int) -> None:
    if node:
        txn.put(MIRROR, _NODE.pack(node), db=meta)
    else:
        txn.delete(MIRROR, db=meta)


def refuse_mirror(txn: Any, meta: Any) -> None:
    """Raises MirrorError if this database is a copy."""
    node = source(txn, meta)
    if node:
        raise MirrorError(
            f"users are changed on node {node} of the cluster; here is its copy",
            remedy=f"give the command on node {node}",
        )


class JournaledTransaction:
    """A write transaction that records its changes.  `finish` enters them before the commit."""

    def __init__(self, txn: Any, tables: Mapping[int, int], meta: Any, changes: Any) -> None:
        """`tables`: id() of each table -> its number.  Raises MirrorError."""
        refuse_mirror(txn, meta)
        self._txn = txn
        self._tables = tables
        self._meta = meta
        self._changes = changes
        self._done: list[Operation] = []
        self.get = txn.get
        self.cursor = txn.cursor

    def put(self, key: bytes, value: bytes, db: Any) -> bool:
        self._done.append((self._tables[id(db)], bytes(key), bytes(value), b""))
        return bool(self._txn.put(key, value, db=db))

    def delete(self, key: bytes, value: bytes = b"", db: Any = None) -> bool:
        self._done.append((self._tables[id(db)], bytes(key), None, bytes(value)))
        return bool(self._txn.delete(key, value, db=db))

    def finish(self) -> None:
        if not self._done:
            return
        epoch, revision = lineage(self._txn, self._meta)
        put_lineage(self._txn, self._meta, Lineage(epoch, revision + 1))
        self._txn.put(REVISION.pack(revision + 1), msgpack.packb(self._done), db=self._changes)
        self._txn.delete(REVISION.pack(max(revision + 1 - KEPT, 0)), db=self._changes)


def carry_out(txn: Any, tables: Mapping[int, Any], packed: bytes) -> None:
    """Make the changes of one revision.  `tables`: number -> table."""
    for number, key, value, pair in msgpack.unpackb(packed, use_list=False):
        if value is None:
            txn.delete(key, pair, db=tables[number])
        else:
            txn.put(key, value, db=tables[number])
