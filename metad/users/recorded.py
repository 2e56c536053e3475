"""A change of a cluster's users is decided on this node's mirror and carried out by etcd.

    a write transaction of the mirror -> recorded: rows read and written -> aborted -> Change

So the rules of `UserDatabase` decide, and nothing is stored here before it stands in etcd.

Rules of this file:

* Each row of an address that is read or written is compared as it was before the change.
* Counts and the table "members" follow from the rows: each mirror makes its own.
"""

from __future__ import annotations

import time
from typing import Any

from metad.errors import DataError
from metad.users import rows
from metad.users.account import unpack_alias, unpack_entry
from metad.users.lmdb_env import ID, Environment
from metad.users.rows import Change, Position

_NEXT = b"next"


class RecordedTransaction:
    """A write transaction that will be aborted.  `change` tells what it read and wrote."""

    def __init__(self, txn: Any, users: Environment, position: Position) -> None:
        tables = users.numbered_tables
        self._meta, self._addresses, self._accounts = tables[0], tables[1], tables[2]
        self._removed, self._members = tables[4], tables[5]
        self._txn = txn
        self._position = position
        self._before: dict[bytes, bytes | None] = {}
        self._written: dict[bytes, None] = {}
        self._gone: dict[bytes, bytes] = {}
        self._either: set[bytes] = set()
        self._gives_numbers = False

    def get(self, key: bytes, default: bytes | None = None, db: Any = None) -> bytes | None:
        value: bytes | None = self._txn.get(key, default, db=db)
        if db is self._addresses:
            self._before.setdefault(bytes(key), value)
        elif db is self._meta and key == _NEXT:
            self._either.add(rows.NEXT)
        return value

    def cursor(self, db: Any) -> Any:
        if db is self._members:
            self._either.add(rows.ALIASES)
        return self._txn.cursor(db)

    def put(self, key: bytes, value: bytes, db: Any) -> bool:
        self._note(bytes(key), bytes(value), db)
        return bool(self._txn.put(key, value, db=db))

    def delete(self, key: bytes, value: bytes = b"", db: Any = None) -> bool:
        self._note(bytes(key), b"", db)
        return bool(self._txn.delete(key, value, db=db))

    def _note(self, key: bytes, value: bytes, db: Any) -> None:
        if db is self._addresses:
            self.get(key, db=db)
            self._written[key] = None
        elif db is self._removed:
            self._gone[key] = value
        elif db is self._meta and key == _NEXT:
            self._gives_numbers = True

    def change(self) -> Change | None:
        """None if nothing was written.  Raises DataError: too much for one transaction."""
        puts, deletes = self._writes()
        count = len(puts) + len(deletes)
        if not count:
            return None
        if count >= rows.MOST_WRITES:
            raise DataError(
                f"this changes over {rows.MOST_WRITES // 2} addresses at once, more than a cluster "
                "takes",
                remedy="try fewer in one step",
            )
        if sum(map(len, puts.values())) > rows.MOST_OCTETS:
            raise DataError(
                "this changes more than 1 MiB of aliases at once, more than a cluster takes",
                remedy="use metad user alias to take the address out of some aliases first",
            )
        there = {rows.row_key(key): value is not None for key, value in self._before.items()}
        return Change(
            self._position,
            tuple(key for key, is_there in there.items() if is_there),
            tuple(key for key, is_there in there.items() if not is_there),
            tuple(sorted(self._either)),
            tuple(puts.items()),
            tuple(deletes),
        )

    def _writes(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        puts: dict[bytes, bytes] = {}
        deletes: list[bytes] = []
        for key in self._written:
            self._write_address(key, puts, deletes)
        for number, tombstone in self._gone.items():
            puts[rows.removed_key(ID.unpack(number)[0])] = tombstone
        if self._gives_numbers:
            number = self._txn.get(_NEXT, db=self._meta)
            puts[rows.NEXT] = b"%d" % ID.unpack(number)[0]
        return puts, deletes

    def _write_address(self, key: bytes, puts: dict[bytes, bytes], deletes: list[bytes]) -> None:
        raw, before = self._txn.get(key, db=self._addresses), self._before[key]
        account = None if raw is None else unpack_entry(key, raw)
        was_alias = before is not None and unpack_alias(before) is not None
        if account is not None:
            record = self._txn.get(ID.pack(account.id), db=self._accounts)
            puts[rows.row_key(key)] = rows.account_row(account.id, record)
        elif raw is not None:
            puts[rows.row_key(key)] = rows.alias_row(unpack_alias(raw) or ())
            puts[rows.ALIASES] = b""
            if not was_alias:
                deletes.append(rows.REMOVED_ALIAS + key)
        elif before is not None:
            # Its account has another address now, or is removed: another row says so.
            deletes.append(rows.row_key(key))
            if was_alias:
                puts[rows.REMOVED_ALIAS + key] = b"%d" % time.time()
                puts[rows.ALIASES] = b""
