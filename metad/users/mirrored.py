"""A node's mirror of the users in etcd, as the directory process keeps it.

    rows of one revision, or of several -> `apply` -> one transaction of LMDB, with the revision

Rules of this file:

* A revision is here whole, or not at all.  A reload brings rows in pieces; if they are many, mail
  for unknown users gets 451 until the last is here.
* Missing is not removed: only a row "removed/NUMBER", or an alias without members, removes.
* What is removed stays removed, and a number means the account that it was given to.  A row that
  contradicts this is left out, and reported.
* SCRAM keys that a login on this node made from an imported hash stay while that hash does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from metad.errors import DataError
from metad.users import login_kinds, rows
from metad.users.account import (
    POSTMASTER_ID,
    Account,
    pack_alias,
    unpack_alias,
    unpack_entry,
    unpack_record,
)
from metad.users.database import UserDatabase
from metad.users.directory_users import put_position, read_position
from metad.users.lmdb_env import ID, KINDS, LOST, MAX_KEY, put_postmaster
from metad.users.lookup import alias_name, found_account
from metad.users.rows import Content, Position, Row

# Rows of a reload that are kept until they are entered in one transaction; above, in several.
MOST_PENDING = 20_000


class MirroredUsers(UserDatabase):
    """An open users database, with methods that enter rows of etcd."""

    def follow(self, *, empty: bool) -> None:
        """Be a mirror from now on, which lacks everything.  `empty`: the users here are not the
        cluster's, and go."""
        with self._translated, self._env.begin(write=True) as txn:
            put_position(txn, self._meta, Position())
            if empty:
                for table in list(self.numbered_tables.values())[1:]:
                    txn.drop(table, delete=False)
                for name in (b"unkeyed", b"least expiry", b"most login delay"):
                    txn.delete(name, db=self._meta)
                txn.put(KINDS, msgpack.packb({}), db=self._meta)
                put_postmaster(txn, self._addresses, self._accounts)
                txn.put(LOST, b"%d" % time.time(), db=self._meta)
        self.in_directory = True

    def stand_at(self, position: Position) -> None:
        """The users here are exactly those in etcd at this revision."""
        with self._translated, self._env.begin(write=True) as txn:
            put_position(txn, self._meta, position)
        self.in_directory = True

    def position(self) -> Position:
        with self._translated, self._env.begin() as txn:
            return read_position(txn, self._meta)

    @property
    def next_number(self) -> int:
        """The next mailbox number, as far as this node knows."""
        with self._translated, self._env.begin() as txn:
            number: int = ID.unpack(txn.get(b"next", ID.pack(0), db=self._meta))[0]
        return max(number, self._numbers.next())

    def raise_next(self, number: int) -> None:
        """Give no number below this one, which etcd has.  Raises OsError."""
        with self._translated, self._env.begin(write=True):
            self.raise_numbers(number)

    # -- for an upload

    def all_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, read in pieces."""
        yield rows.SECRET, self._secret
        yield rows.NEXT, b"%d" % self.next_number
        yield rows.ALIASES, b""
        for number, tombstone in self._tombstones():
            yield rows.removed_key(number), tombstone
        for address, raw in self._entries():
            members = unpack_alias(raw)
            if members is not None:
                yield rows.row_key(address), rows.alias_row(members)
            elif (account := unpack_entry(address, raw)) is not None:
                with self._translated, self._env.begin(self._accounts) as txn:
                    record = bytes(txn.get(ID.pack(account.id), b""))
                yield rows.row_key(address), rows.account_row(account.id, record)

    def _tombstones(self) -> list[tuple[int, bytes]]:
        with self._translated, self._env.begin(self._removed) as txn:
            return [(ID.unpack(key)[0], bytes(raw)) for key, raw in txn.cursor()]

    def has_row(self, key: bytes) -> bool:
        """Whether an upload writes this row."""
        table, name = self._meta, key
        if key.startswith(rows.ROW):
            table, name = self._addresses, rows.row_address(key)
        elif key.startswith(rows.REMOVED):
            table = self._removed
            name = ID.pack(rows.read_number(key.removeprefix(rows.REMOVED)))
        elif key in (rows.SECRET, rows.NEXT, rows.ALIASES):
            return True
        with self._translated, self._env.begin(table) as txn:
            return txn.get(name) is not None

    # -- entering rows

    def apply(self, revisions: Iterable[Sequence[Row]], position: Position) -> list[str]:
        """Enter the rows of some revisions, in order, in one transaction.

        Returns what is wrong with some of them, for the log.
        """
        with self._translated, self._env.begin(write=True) as txn:
            entering = Entering(self, txn)
            for found in revisions:
                for key, value in found:
                    entering.enter(key, value)
                entering.check_missing(key for key, value in found if value is None)
            entering.link()
            put_position(txn, self._meta, position)
            self._raise(txn)
        return entering.wrong

    def _raise(self, txn: Any) -> None:
        self.raise_numbers(ID.unpack(txn.get(b"next", db=self._meta))[0])

    def reload(self, position: Position) -> Reload:
        return Reload(self, position)

    # -- within a transaction

    def same(self, txn: Any, key: bytes, value: bytes) -> bool:
        """Whether a row says what is here already."""
        if key.startswith(rows.ROW):
            address = rows.row_address(key)
            return self._same_row(txn, address, rows.read_row(address, value))
        if key.startswith(rows.REMOVED):
            number = ID.pack(rows.read_number(key.removeprefix(rows.REMOVED)))
            return txn.get(number, db=self._removed) is not None
        return key.startswith(rows.LAST)

    def _same_row(self, txn: Any, address: bytes, content: Content) -> bool:
        raw = txn.get(address, db=self._addresses)
        if not content.number:
            return raw is not None and bytes(raw) == pack_alias(content.members)
        account = None if raw is None else unpack_entry(address, raw)
        if account is None or account.id != content.number:
            return False
        old = unpack_record(txn.get(ID.pack(account.id), db=self._accounts))
        return bool(with_keys(content.record, old) == old)

    def enter_account(self, txn: Any, address: bytes, content: Content) -> str:
        """Why not, or ""."""
        number, record, _ = content
        if txn.get(ID.pack(number), db=self._removed) is not None:
            return f"{record['address']}, mailbox {number}, was removed here and is in etcd"
        raw = txn.get(ID.pack(number), db=self._accounts)
        old = None if raw is None else unpack_record(raw)
        if old is not None:
            if number != POSTMASTER_ID and _birth(old) != _birth(record):
                return f"mailbox {number} is {old['address']} here and {record['address']} in etcd"
            self._take_address(txn, number, old["address"], but=address)
            record = with_keys(record, old)
        there = txn.get(address, db=self._addresses)
        if there is None:
            self._count_domain(txn, record["address"], 1)
        elif unpack_alias(there) is not None:
            self._unlink(txn, address, there)
        self._put(txn, number, record)
        return ""

    def _take_address(self, txn: Any, number: int, address: str, *, but: bytes) -> None:
        """The account loses its address unless it is `but`."""
        key = address.encode()
        account = found_account(txn, key, self._addresses)
        if key != but and account is not None and account.id == number:
            self._count_unkeyed(txn, -int(account.unkeyed))
            txn.delete(key, db=self._addresses)
            self._count_domain(txn, address, -1)

    def enter_alias(self, txn: Any, key: bytes, members: tuple[str, ...]) -> None:
        """Its members are linked later, when all are here."""
        old = txn.get(key, db=self._addresses)
        account = None if old is None else unpack_entry(key, old)
        if old is None:
            self._count_domain(txn, alias_name(key), 1)
        elif account is not None:
            self._count_unkeyed(txn, -int(account.unkeyed))
        else:
            self._unlink(txn, key, old)
        txn.put(key, pack_alias(members), db=self._addresses)

    def enter_removed_alias(self, txn: Any, key: bytes) -> None:
        raw = txn.get(key, db=self._addresses)
        if raw is not None and unpack_alias(raw) is not None:
            self._drop(txn, key, raw)

    def link_alias(self, txn: Any, key: bytes) -> None:
        raw = txn.get(key, db=self._addresses)
        for member in (unpack_alias(raw) or ()) if raw is not None else ():
            txn.put(member.encode(), key, db=self._members)
            try:
                self._link(txn, key, member.encode())
            except DataError:  # a member that is missing: mail to the alias is refused
                continue

    def enter_removed(self, txn: Any, number: int, tombstone: bytes) -> None:
        key = ID.pack(number)
        raw = txn.get(key, db=self._accounts)
        txn.put(key, tombstone, db=self._removed)
        if raw is not None:
            record = unpack_record(raw)
            self._take_address(txn, number, record["address"], but=b"")
            txn.delete(key, db=self._accounts)
            self._count_kind(txn, login_kinds.kind_of(record), "")

    def enter_meta(self, txn: Any, key: bytes, value: bytes) -> None:
        if key == rows.NEXT:
            known = ID.unpack(txn.get(b"next", db=self._meta))[0]
            txn.put(b"next", ID.pack(max(known, rows.read_number(value))), db=self._meta)
        elif key == rows.SECRET and len(value) == len(self._secret):
            txn.put(b"secret", value, db=self._meta)

    def missing(self, txn: Any, address: bytes) -> Account | bytes | None:
        """What has the address here."""
        raw: bytes | None = txn.get(address, db=self._addresses)
        return None if raw is None else unpack_entry(address, raw) or raw

    def finish_reload(self, txn: Any, position: Position) -> None:
        put_position(txn, self._meta, position)
        txn.delete(LOST, db=self._meta)
        self._raise(txn)

    def mark_lost(self, txn: Any) -> None:
        if txn.get(LOST, db=self._meta) is None:
            txn.put(LOST, b"%d" % time.time(), db=self._meta)


class Entering:
    """Rows being entered in one transaction."""

    def __init__(self, users: MirroredUsers, txn: Any) -> None:
        self._users = users
        self._txn = txn
        self._aliases: list[bytes] = []
        self.wrong: list[str] = []

    def enter(self, key: bytes, value: bytes | None) -> None:
        try:
            if value is not None:
                self._enter(key, value)
        except DataError as error:
            self.wrong.append(f"{key.decode('utf-8', 'replace')}: {error}")

    def _enter(self, key: bytes, value: bytes) -> None:
        if key.startswith(rows.ROW):
            address = rows.row_address(key)
            content = rows.read_row(address, value)
            if content.number:
                wrong = self._users.enter_account(self._txn, address, content)
                self.wrong += [wrong] if wrong else []
            else:
                self._users.enter_alias(self._txn, address, content.members)
                self._aliases.append(address)
        elif key.startswith(rows.REMOVED_ALIAS):
            address = rows.checked_address(key.removeprefix(rows.REMOVED_ALIAS))
            self._users.enter_removed_alias(self._txn, address)
        elif key.startswith(rows.REMOVED):
            number = rows.read_number(key.removeprefix(rows.REMOVED))
            self._users.enter_removed(self._txn, number, rows.read_tombstone(value))
        else:
            self._users.enter_meta(self._txn, key, value)

    def check_missing(self, keys: Iterable[bytes]) -> None:
        """Rows that were deleted: with a reason, which is here by now, or without."""
        for key in keys:
            address = rows.row_address(key) if key.startswith(rows.ROW) else b""
            is_there = 0 < len(address) <= MAX_KEY
            if is_there and self._users.missing(self._txn, address) is not None:
                shown = address.decode("utf-8", "replace")
                self.wrong.append(f"{shown} is missing in etcd, and stays here")

    def link(self) -> None:
        for key in self._aliases:
            self._users.link_alias(self._txn, key)

    @property
    def aliases(self) -> list[bytes]:
        return self._aliases


class Reload:
    """All rows at one revision come, page by page; `finish` when the last is here."""

    def __init__(self, users: MirroredUsers, position: Position) -> None:
        self._users = users
        self._position = position
        self._pending: list[tuple[bytes, bytes]] = []
        self._aliases: list[bytes] = []
        self._is_whole = False
        self.wrong: list[str] = []

    def add(self, page: Iterable[tuple[bytes, bytes]]) -> None:
        users = self._users
        with users.translated, users.env.begin() as txn:
            for key, value in page:
                self._is_whole |= key == rows.WHOLE
                if not self._is_same(txn, key, value):
                    self._pending.append((key, value))
        if len(self._pending) >= MOST_PENDING:
            with users.translated, users.env.begin(write=True) as txn:
                users.mark_lost(txn)
                self._enter(txn)

    def _is_same(self, txn: Any, key: bytes, value: bytes) -> bool:
        try:
            return self._users.same(txn, key, value)
        except DataError:
            return False  # `Entering` reports it

    def _enter(self, txn: Any) -> None:
        entering = Entering(self._users, txn)
        for key, value in self._pending:
            entering.enter(key, value)
        self._aliases += entering.aliases
        self.wrong += entering.wrong
        self._pending.clear()

    def finish(self) -> None:
        """Raises DataError: etcd does not have all users."""
        if not self._is_whole:
            raise DataError("etcd does not have all users; they stay as they are here")
        users = self._users
        with users.translated, users.env.begin(write=True) as txn:
            self._enter(txn)
            for key in self._aliases:
                users.link_alias(txn, key)
            users.finish_reload(txn, self._position)


def _birth(record: dict[str, Any]) -> tuple[Any, Any]:
    """What stays when a user is renamed.  Users of the first releases have no "made"."""
    return record.get("created"), record.get("made")


def with_keys(record: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """A record of etcd, with the SCRAM keys that this node has made of its imported hash."""
    source = record.get("hash")
    if source is None or "scram" in record or "scram" not in old or old.get("hash") != source:
        return record
    return record | {"scram": old["scram"]}
