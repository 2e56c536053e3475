"""The users database: addresses, numeric ids, passwords.  LMDB, synced: it is no view of anything.

Rules of this file:

* Opened after the fork only; several processes read while one writes; no transaction outlives a
  call, and no hashing is done within one.
* An id is never given twice: the next one is a counter in the database, and removal leaves a dated
  tombstone under the id.  Mail is only ever deleted for those.
* What an account's record holds that we do not know is kept as it is when the record is changed.
* A change is one transaction; when the call returns it is durable.

Tables: "meta" (format, next id, secret); "addresses": folded address -> what RCPT and a login need,
20 octets, so that a recipient costs one look-up; "accounts": id -> msgpack map, everything else;
"domains": domain -> how many accounts it has; "removed": id -> msgpack map (address, time).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from metad.errors import (
    DataError,
    DisabledUserError,
    ForeignDomainError,
    MetadError,
    NoSuchUserError,
    UnknownUserError,
)
from metad.protocol.address import AddressError, fold
from metad.users import passwords
from metad.users.account import (
    DISABLED,
    MAX_ID,
    POSTMASTER,
    POSTMASTER_ID,
    Account,
    from_record,
    login_name,
    pack_entry,
    pack_record,
    unpack_entry,
    unpack_record,
)
from metad.users.environment import ID, MAX_KEY, Environment

__all__ = ["Account", "UserDatabase", "login_name"]

BATCH = 1000


class UserDatabase(Environment):
    """The users in the directory `path`, made if `create`; else it must be there.

    Raises UnavailableError (not there), DataError (damaged, or of a newer metad) and OsError.
    """

    # --- Reading ----------------------------------------------------------------------------------

    def resolve(self, address: str) -> Account:
        """Whose mail `address` is: itself, the base of its +tag, postmaster; a few microseconds.

        Raises UnknownUserError, ForeignDomainError (no account has that domain) and
        DisabledUserError, which falls through to nothing else.
        """
        key = _key(address)
        with self._translated, self._env.begin(self._addresses) as txn:
            account = _found(txn, key) or self._resolve_otherwise(txn, key)
        if account.flags & DISABLED:
            raise DisabledUserError(address)
        return account

    def _resolve_otherwise(self, txn: Any, key: bytes) -> Account:
        local, at, domain = key.rpartition(b"@")
        if not at or txn.get(domain, db=self._domains) is None:
            raise ForeignDomainError(key.decode()) if at else UnknownUserError(key.decode())
        # RFC 5233: what follows the "+" is detail; a quoted local part has none.
        base = local if local.startswith(b'"') else local.partition(b"+")[0]
        account = _found(txn, base + at + domain) if base else None
        if account is None and base == POSTMASTER.encode():
            account = _found(txn, base)
        if account is None:
            raise UnknownUserError(key.decode())
        return account

    def account(self, address: str) -> Account | None:
        """The account with exactly this address, disabled or not."""
        key = _key(address)
        with self._translated, self._env.begin(self._addresses) as txn:
            return _found(txn, key)

    def by_id(self, number: int) -> Account | None:
        with self._translated, self._env.begin(self._accounts) as txn:
            raw = txn.get(ID.pack(number))
            return None if raw is None else from_record(number, unpack_record(raw))

    def accounts(self, *, builtin: bool = False) -> Iterator[Account]:
        """All accounts by address, read in pieces: no transaction stays open between two."""
        last = b""
        while True:
            with self._translated, self._env.begin(self._addresses) as txn:
                piece = _entries_after(txn, last)
            if not piece:
                return
            last = piece[-1][0]
            for key, raw in piece:
                account = unpack_entry(key, raw)
                if account is not None and (builtin or account.id != POSTMASTER_ID):
                    yield account

    def removed(self) -> Iterator[tuple[int, str, int]]:
        """Tombstones: (id, address, Unix seconds of the removal), by id."""
        with self._translated, self._env.begin(self._removed) as txn:
            found = [(ID.unpack(key)[0], unpack_record(raw)) for key, raw in txn.cursor()]
        for number, record in found:
            yield number, record.get("address", ""), record.get("time", 0)

    def verify(self, address: str, password: bytes) -> Account | None:
        """The account that `password` opens, or None.  Blocks about a millisecond.

        The same work for a wrong password, an unknown and a disabled user.  Aliases and tags
        are no login names.
        """
        account, keys = self._login_keys(address)
        matches = passwords.check(password, keys or passwords.fake(self._secret, address))
        usable = account is not None and keys is not None and not account.disabled
        return account if matches and usable else None

    def _login_keys(self, address: str) -> tuple[Account | None, passwords.ScramKeys | None]:
        try:
            key = _key(address)
        except UnknownUserError:
            return None, None
        with self._translated, self._env.begin(self._addresses) as txn:
            account = _found(txn, key)
            if account is None:
                return None, None
            raw = txn.get(ID.pack(account.id), db=self._accounts)
        record = {} if raw is None else unpack_record(raw)
        return account, passwords.unpacked(record.get("scram"))

    # --- Writing ----------------------------------------------------------------------------------

    def add(self, address: str, password: bytes | None = None) -> Account:
        """A new account.  Raises DataError: no address, bad password, or there already."""
        (result,) = self.add_many([(address, password)])
        if isinstance(result, MetadError):
            raise result
        return result

    def add_many(
        self, entries: Iterable[tuple[str, bytes | None]], batch: int = BATCH
    ) -> Iterator[Account | MetadError]:
        """Add accounts, `batch` to a transaction; one result for each entry, in order.

        An entry that cannot be added gives its error and hinders no other.  A result comes when
        its batch is durable: what the caller does not draw is not added.
        """
        source = iter(entries)
        while piece := list(islice(source, batch)):
            # The hashing comes before the transaction: it would hold up every other writer.
            prepared = [_prepared(address, password) for address, password in piece]
            with self._translated, self._env.begin(write=True) as txn:
                results = [
                    one if isinstance(one, MetadError) else self._add(txn, *one) for one in prepared
                ]
            yield from results

    def _add(
        self, txn: Any, address: str, keys: passwords.ScramKeys | None
    ) -> Account | MetadError:
        if txn.get(address.encode(), db=self._addresses) is not None:
            return DataError(f"{address}: there is such a user already")
        number = ID.unpack(txn.get(b"next", db=self._meta))[0]
        if number > MAX_ID:
            return DataError(f"{address}: all {MAX_ID:,} numbers of mailboxes have been given")
        txn.put(b"next", ID.pack(number + 1), db=self._meta)
        record: dict[str, Any] = {"address": address, "created": int(time.time())}
        if keys is not None:
            record |= {"scram": keys.packed(), "password_version": 1}
        self._count_domain(txn, address, 1)
        return self._put(txn, number, record)

    def remove(self, address: str) -> Account:
        """Remove an account; its mail goes with the next collection.  Raises NoSuchUserError."""
        with self._translated, self._env.begin(write=True) as txn:
            account, record = self._existing(txn, address)
            if account.id == POSTMASTER_ID:
                raise DataError("postmaster is built in and cannot be removed (RFC 5321 4.5.1)")
            tombstone = record | {"time": int(time.time())}
            tombstone.pop("scram", None)
            txn.put(ID.pack(account.id), pack_record(tombstone), db=self._removed)
            txn.delete(ID.pack(account.id), db=self._accounts)
            txn.delete(account.address.encode(), db=self._addresses)
            self._count_domain(txn, account.address, -1)
        return account

    def set_password(self, address: str, password: bytes) -> Account:
        """Give a new password, which ends remembered logins at once, in every process."""
        keys = passwords.make(passwords.acceptable(password))
        with self._translated, self._env.begin(write=True) as txn:
            account, record = self._existing(txn, address)
            version = account.password_version + 1
            changed = record | {"scram": keys.packed(), "password_version": version}
            return self._put(txn, account.id, changed)

    def set_disabled(self, address: str, disabled: bool) -> Account:
        """A disabled account takes no mail and logs nobody in; its mail stays."""
        with self._translated, self._env.begin(write=True) as txn:
            account, record = self._existing(txn, address)
            return self._put(txn, account.id, record | {"disabled": disabled})

    def _existing(self, txn: Any, address: str) -> tuple[Account, dict[str, Any]]:
        try:
            account = _found(txn, _key(address), self._addresses)
        except UnknownUserError:
            account = None
        raw = txn.get(ID.pack(account.id), db=self._accounts) if account else None
        if account is None or raw is None:
            raise NoSuchUserError(f"{address}: there is no such user")
        return account, unpack_record(raw)

    def _put(self, txn: Any, number: int, record: dict[str, Any]) -> Account:
        account = from_record(number, record)
        txn.put(account.address.encode(), pack_entry(account), db=self._addresses)
        txn.put(ID.pack(number), pack_record(record), db=self._accounts)
        return account

    def _count_domain(self, txn: Any, address: str, change: int) -> None:
        domain = address.rpartition("@")[2].encode()
        count = ID.unpack(txn.get(domain, ID.pack(0), db=self._domains))[0] + change
        if count:
            txn.put(domain, ID.pack(count), db=self._domains)
        else:
            txn.delete(domain, db=self._domains)


def _prepared(
    address: str, password: bytes | None
) -> tuple[str, passwords.ScramKeys | None] | MetadError:
    """The folded address and the keys of one entry to add, or why it cannot be."""
    try:
        folded = fold(address)
        if len(folded.encode()) > MAX_KEY:
            return DataError(f"{address!a}: longer than {MAX_KEY} octets")
        keys = None if password is None else passwords.make(passwords.acceptable(password))
    except AddressError as error:
        return DataError(f"{address!a}: {error}")
    except MetadError as error:
        return error
    return folded, keys


def _key(address: str) -> bytes:
    """What `address` is stored under.  Raises UnknownUserError if it is none that could be."""
    try:
        key = fold(address).encode()
    except ValueError:
        # The one mailbox that needs no domain: RFC 5321 4.5.1.
        if address.lower() == POSTMASTER:
            return POSTMASTER.encode()
        raise UnknownUserError(ascii(address)) from None
    if len(key) > MAX_KEY:
        raise UnknownUserError("an address of impossible length")
    return key


def _found(txn: Any, key: bytes, table: Any = None) -> Account | None:
    raw = txn.get(key) if table is None else txn.get(key, db=table)
    return None if raw is None else unpack_entry(key, raw)


def _entries_after(txn: Any, last: bytes) -> list[tuple[bytes, bytes]]:
    """Up to BATCH entries whose key is above `last`."""
    cursor = txn.cursor()
    if not cursor.set_range(last + b"\0"):
        return []
    return list(islice(cursor.iternext(keys=True, values=True), BATCH))
