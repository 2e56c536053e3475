"""The rows of a cluster's users, as etcd keeps them, and nodes that mirror them at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metad.users import rows
from metad.users.account import pack_record, unpack_record
from metad.users.database import UserDatabase
from metad.users.directory_users import DirectoryUsers, OvertakenError
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Change, Position, Row

ITERATIONS = 4096


class Kept(NamedTuple):
    value: bytes
    mod: int


class RowStore:
    """One etcd: compare and write, and what was written since a revision."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Kept] = {}
        self.history: list[tuple[int, list[Row]]] = []
        self.revision = 1

    def write(self, *found: Row) -> None:
        self.revision += 1
        for key, value in found:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = Kept(value, self.revision)
        self.history.append((self.revision, list(found)))

    def transact(self, change: Change) -> bool:
        def unchanged(key: bytes) -> bool:
            return key not in self.rows or self.rows[key].mod <= change.position.revision

        holds = (
            all(key in self.rows and unchanged(key) for key in change.present)
            and not any(key in self.rows for key in change.absent)
            and all(map(unchanged, change.either))
        )
        if holds:
            self.write(*change.puts, *((key, None) for key in change.deletes))
        return holds

    def since(self, revision: int) -> list[list[Row]]:
        return [found for mod, found in self.history if mod > revision]


class Users(DirectoryUsers, MirroredUsers):
    """What a command opens and what the directory process opens: one process can open only one."""


class Node:
    """A node with its users."""

    def __init__(self, place: Path, store: RowStore) -> None:
        place.mkdir()
        UserDatabase(place / "users", create=True).close()
        self.store = store
        self.users = self.mirror = Users(place / "users", self.propose, iterations=ITERATIONS)
        self.users.follow(empty=True)
        self.wrong: list[str] = []
        self.before: Callable[[], None] = lambda: None

    def close(self) -> None:
        self.users.close()

    def propose(self, change: Change) -> None:
        """What the directory process does.  `before`: what another node does first, once."""
        before, self.before = self.before, lambda: None
        before()
        holds = self.store.transact(change)
        self.catch_up()
        if not holds:
            raise OvertakenError("overtaken")

    def catch_up(self) -> None:
        position = Position("id", self.store.revision)
        found = self.store.since(self.mirror.position().revision)
        self.wrong += self.mirror.apply(found, position)

    def reload(self, page: int = 2) -> None:
        reload = self.mirror.reload(Position("id", self.store.revision))
        found = sorted((key, kept.value) for key, kept in self.store.rows.items())
        for at in range(0, len(found), page):
            reload.add(found[at : at + page])
        reload.finish()
        self.wrong += reload.wrong


def account_of(number: int, address: str, **fields: object) -> Row:
    record = {"address": address, "created": 1_700_000_000 + number, **fields}
    return rows.row_key(address.encode()), rows.account_row(number, pack_record(record))


def everything(users: UserDatabase) -> dict[str, object]:
    """What two mirrors of one etcd have in common."""
    with users.env.begin() as txn:
        tables = users.numbered_tables
        found = {
            number: [(bytes(key), bytes(value)) for key, value in txn.cursor(tables[number])]
            for number in (1, 3, 4)
        }
        records = [(bytes(key), unpack_record(value)) for key, value in txn.cursor(tables[2])]
        meta = {
            name: txn.get(name, db=tables[0]) for name in (b"next", b"secret", b"unkeyed", b"kinds")
        }
    return {"tables": found, "records": records, "meta": meta}
