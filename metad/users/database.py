"""The users database: addresses, numeric ids, passwords.  LMDB, synced: it is not a view.

Rules of this file:

* Opened after the fork only; several processes read while one writes; no transaction outlives a
  call, and no hashing is done within one.
* An id is never assigned twice, not even by a database restored from an earlier day: the next one
  is in the database and in a file beside it (metad.users.id_allocator), and the greater counts.
  Removal leaves a dated tombstone under the id; only mail of tombstones is ever deleted.
* Unknown fields of an account's record are kept when the record is changed.
* A change is one transaction, durable when the call returns.

Tables: "meta" (format, next id, secret, number of accounts that SCRAM cannot check, how many have
each kind of password); "addresses":
folded address -> account or alias (account.py); "accounts": id -> msgpack map, everything else;
"domains": domain -> how many addresses it has; "members": address -> the aliases that name it;
"removed": id -> msgpack map (address, time).

In a record: "scram" keys, "hash" (the password as imported), "imported" (a fingerprint of
that hash, which tells whether the source has changed since), "password_version", "disabled",
"made" (drawn at random: a user who is renamed keeps it), and the fields of the policy.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from metad.errors import DataError, MetadError, NoSuchUserError, OsError, UnknownUserError
from metad.protocol.address import AddressError, fold
from metad.users import hashes, login_kinds, passwords
from metad.users.account import (
    ADDRESS,
    DEFAULT,
    MAX_ID,
    POSTMASTER_ID,
    Account,
    Policy,
    checked_policy,
    from_record,
    login_name,
    pack_entry,
    pack_record,
    unpack_entry,
    unpack_record,
)
from metad.users.counts import CountedUsers
from metad.users.journal import MirrorError
from metad.users.lmdb_env import ID, KINDS, LOST, MAX_KEY
from metad.users.lookup import found_account, key_of

__all__ = ["Account", "UserDatabase", "login_name"]

_POSTMASTER = "metad user alias postmaster ADDRESS gives its mail to another mailbox"
_TAKEN = "metad user show ADDRESS shows it; metad user rename frees the address"
BATCH = 1000
IMPORTED = 20_000
T = TypeVar("T")
# The fields that a tombstone does not keep.
_SECRETS = ("scram", "hash", "imported")


class UserDatabase(CountedUsers):
    """The users in the directory `path`, created if `create`; otherwise it must exist.

    Raises UnavailableError (missing), DataError (damaged, or of a newer metad) and OsError.
    """

    # Entries of a transaction.
    batch = BATCH
    imported_batch = IMPORTED

    # -- logging in

    def verify(self, address: str, password: bytes) -> Account | None:
        """The account that `password` opens, or None.  Blocks about a millisecond.

        A disabled user costs the same work; an unknown user costs the work of some account's kind
        (login_kinds.py).  Aliases and tags are not login names.  If an account has only an imported
        hash, its first correct password adds SCRAM keys beside the hash.
        """
        account, record = self._login_record(address)
        source = record.get("hash")
        keys = passwords.unpacked(record.get("scram"))
        if keys is not None:
            is_right = passwords.check(password, keys)
        elif isinstance(source, str):
            is_right = hashes.check(password, source)
        else:
            self.imitate_check(address, password)
            return None
        if account is None or account.disabled or not is_right:
            return None
        if keys is None and isinstance(source, str):
            self._add_keys(account, source, passwords.make(password, self.iterations))
        return account

    def _add_keys(self, account: Account, source: str, keys: passwords.ScramKeys) -> None:
        """Store the keys of a verified password, unless the password has been changed since.

        A copy of another node's users leaves that to the node.  Where they are in etcd, the keys
        stay on this node, because a login must not wait.
        """
        with suppress(MirrorError), self._writing_here() as txn:
            raw = txn.get(ID.pack(account.id), db=self._accounts)
            record = {} if raw is None else unpack_record(raw)
            if record.get("hash") == source and "scram" not in record:
                self._put(txn, account.id, record | {"scram": keys.packed()})

    # -- adding and removing

    def add(self, address: str, password: bytes | None = None) -> Account:
        """A new account.  Raises DataError: not an address, bad password, or it exists already."""
        (result,) = self.add_many([(address, password)])
        if isinstance(result, MetadError):
            raise result
        return result

    def add_many(
        self, entries: Iterable[tuple[str, bytes | None]], batch: int | None = None
    ) -> Iterator[Account | MetadError]:
        """Add accounts, `batch` to a transaction; one result for each entry, in order.

        An entry that cannot be added yields its error and does not affect others.  A result is
        yielded when its batch is durable; entries that the caller does not consume are not added.
        """
        source = iter(entries)
        while piece := list(islice(source, batch or self.batch)):
            # Hash before the transaction, which would block every other writer.
            prepared = [self._prepared(address, password) for address, password in piece]
            yield from self.carried_out(partial(self._add_all, prepared))

    def carried_out(self, change: Callable[[], T]) -> T:
        """Call `change`, which makes one transaction.  In a cluster it may be called again."""
        return change()

    def _add_all(
        self, prepared: Iterable[tuple[str, dict[str, Any]] | MetadError]
    ) -> list[Account | MetadError]:
        with self._giving() as txn:
            return [
                one if isinstance(one, MetadError) else self._add(txn, *one) for one in prepared
            ]

    def _prepared(
        self, address: str, password: bytes | None
    ) -> tuple[str, dict[str, Any]] | MetadError:
        """The folded address and the record's password of one entry, or the reason why it is
        invalid."""
        try:
            folded = account_address(address)
            if password is None:
                return folded, {}
            keys = passwords.make(passwords.acceptable(password), self.iterations)
        except MetadError as error:
            return error
        return folded, {"scram": keys.packed(), "password_version": 1}

    def _add(self, txn: Any, address: str, fields: dict[str, Any]) -> Account | MetadError:
        try:
            self._check_free(txn, address)
        except DataError as error:
            return error
        number = _number(txn, self._meta)
        if number > MAX_ID:
            return DataError(
                f"{address}: all {MAX_ID:,} numbers of mailboxes have been assigned",
                remedy="use another hub for more: numbers are not used twice",
            )
        txn.put(b"next", ID.pack(number + 1), db=self._meta)
        self._count_domain(txn, address, 1)
        record: dict[str, Any] = {
            "address": address, "created": int(time.time()), "made": secrets.token_bytes(8)
        }  # fmt: skip
        return self._put(txn, number, record | fields)

    @contextmanager
    def _giving(self) -> Iterator[Any]:
        """A write transaction that may number new accounts."""
        with self._writing() as txn:
            before, known = _number(txn, self._meta), self._numbers.next()
            if known > before:  # this database is older than another that was used here
                txn.put(b"next", ID.pack(known), db=self._meta)
            yield txn
            after = _number(txn, self._meta)
            if after > max(before, known):
                self._numbers.raise_to(after)

    def accept_loss(self) -> bool:
        """From now on, users missing from this database are unknown.  False: they already were."""
        with self._writing_here() as txn:
            return bool(txn.delete(LOST, db=self._meta))

    def reserve(self, greatest: int) -> None:
        """Assign no number up to `greatest`, which has mail, to a new account.

        Call it once at a start, before users can be added: it makes the file of numbers if that is
        missing or damaged.
        """
        with self._translated, self._env.begin(write=True) as txn:
            try:
                known = self._numbers.next()
            except (DataError, OsError):
                known = 0
            number = max(_number(txn, self._meta), known, greatest + 1)
            txn.put(b"next", ID.pack(number), db=self._meta)
            if number != known:
                self._numbers.raise_to(number)
            if txn.get(KINDS, db=self._meta) is None:  # made by a release without these counts
                self._count_all_kinds(txn)

    def remove(self, address: str, *, force: bool = False) -> Account:
        """Remove an account; its mail goes with the next collection.

        Raises NoSuchUserError, and DataError while aliases name it, unless `force` removes it from
        them.
        """
        with self._writing() as txn:
            account, record = self._existing(txn, address)
            if account.id == POSTMASTER_ID:
                raise DataError(
                    "postmaster is built in and cannot be removed (RFC 5321 4.5.1)",
                    remedy=_POSTMASTER,
                )
            self._leave_aliases(txn, account.address.encode(), force=force)
            self._remove(txn, account, record)
        return account

    def _remove(self, txn: Any, account: Account, record: dict[str, Any]) -> None:
        tombstone = record | {"time": int(time.time())}
        for name in _SECRETS:
            tombstone.pop(name, None)
        txn.put(ID.pack(account.id), pack_record(tombstone), db=self._removed)
        txn.delete(ID.pack(account.id), db=self._accounts)
        txn.delete(account.address.encode(), db=self._addresses)
        self._count_domain(txn, account.address, -1)
        self._count_unkeyed(txn, -int(account.unkeyed))
        self._count_kind(txn, login_kinds.kind_of(record), "")

    def rename(self, address: str, new: str) -> Account:
        """Give an account another address: it keeps its mail, password and policy, and aliases
        follow.

        Raises NoSuchUserError; DataError: a bad or used address, or postmaster.
        """
        folded = account_address(new)
        with self._writing() as txn:
            account, record = self._existing(txn, address)
            if account.id == POSTMASTER_ID:
                raise DataError(
                    "postmaster is built in and cannot be renamed (RFC 5321 4.5.1)",
                    remedy=_POSTMASTER,
                )
            self._check_free(txn, folded)
            self._count_domain(txn, folded, 1)
            renamed = self._put(txn, account.id, record | {"address": folded})
            self._count_unkeyed(txn, -int(account.unkeyed))  # `_put` counted the new name
            self._follow(txn, account.address.encode(), folded.encode())
            txn.delete(account.address.encode(), db=self._addresses)
            self._count_domain(txn, account.address, -1)
        return renamed

    def _check_free(self, txn: Any, address: str) -> None:
        there = txn.get(address.encode(), db=self._addresses)
        if there is not None:
            what = "a user" if unpack_entry(b"", there) is not None else "an alias"
            raise DataError(f"{address}: {what} has this address already", remedy=_TAKEN)

    # -- changing

    def set_password(self, address: str, password: bytes) -> Account:
        """Set a new password, which invalidates remembered logins at once in every process.

        An imported hash is dropped, because it belongs to the old password.
        """
        keys = passwords.make(passwords.acceptable(password), self.iterations)
        with self._writing() as txn:
            account, record = self._existing(txn, address)
            record.pop("hash", None)
            version = account.password_version + 1
            changed = record | {"scram": keys.packed(), "password_version": version}
            return self._put(txn, account.id, changed)

    def set_disabled(self, address: str, disabled: bool) -> Account:
        """A disabled account accepts neither mail nor logins; its mail stays."""
        return self._change(address, {"disabled": disabled})

    def set_policy(self, address: str, policy: Policy) -> Account:
        """Replace the policy of an account.  Raises NoSuchUserError, DataError."""
        return self._change(address, checked_policy(policy)._asdict())

    def change_policy(self, address: str, changes: Mapping[str, int | None]) -> Account:
        """Replace some settings of an account.  Raises NoSuchUserError, DataError."""
        with self._writing() as txn:
            account, record = self._existing(txn, address)
            policy = checked_policy(account.policy._replace(**changes))
            return self._put(txn, account.id, _without_none(record | policy._asdict()))

    def _change(self, address: str, fields: dict[str, Any]) -> Account:
        with self._writing() as txn:
            account, record = self._existing(txn, address)
            return self._put(txn, account.id, _without_none(record | fields))

    def _existing(self, txn: Any, address: str) -> tuple[Account, dict[str, Any]]:
        try:
            account = found_account(txn, key_of(address), self._addresses)
        except UnknownUserError:
            account = None
        raw = txn.get(ID.pack(account.id), db=self._accounts) if account else None
        if account is None or raw is None:
            raise NoSuchUserError(f"{address}: no such user")
        return account, unpack_record(raw)

    def _put(self, txn: Any, number: int, record: dict[str, Any]) -> Account:
        account = from_record(number, record)
        key = account.address.encode()
        before = found_account(txn, key, self._addresses)
        was_unkeyed = before is not None and before.unkeyed
        self._count_unkeyed(txn, account.unkeyed - was_unkeyed)
        if account.policy != DEFAULT:
            self._note_extremes(txn, account.policy)
        raw = txn.get(ID.pack(number), db=self._accounts)
        old_kind = "" if raw is None else login_kinds.kind_of(unpack_record(raw))
        self._count_kind(txn, old_kind, login_kinds.kind_of(record))
        txn.put(key, pack_entry(account), db=self._addresses)
        txn.put(ID.pack(number), pack_record(record), db=self._accounts)
        return account

    def raise_numbers(self, number: int) -> int:
        """Give no number below this one to a new account, whatever becomes of the database; the
        least that may be given now."""
        known = self._numbers.next()
        if number > known:
            self._numbers.raise_to(number)
        return max(number, known)

    # -- importing

    # Used by `import_apply` within its own transactions.

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Any]:
        if write:
            with self._giving() as txn:
                yield txn
            return
        with self._translated, self._env.begin() as txn:
            yield txn

    @property
    def addresses_table(self) -> Any:
        return self._addresses

    @property
    def accounts_table(self) -> Any:
        return self._accounts

    def insert(self, txn: Any, address: str, fields: dict[str, Any]) -> Account | MetadError:
        """A new account with these fields of its record."""
        checked_policy(Policy(*map(fields.get, Policy._fields)))
        return self._add(txn, address, fields)

    def replace(self, txn: Any, number: int, record: dict[str, Any]) -> Account:
        """Give an account another record."""
        checked_policy(Policy(*map(record.get, Policy._fields)))
        return self._put(txn, number, record)

    def fingerprint(self, source: str) -> bytes:
        """A fingerprint of an imported hash, to detect changes."""
        return hmac.digest(self._secret, b"source " + source.encode(), "sha256")[:16]


def _number(txn: Any, meta: Any) -> int:
    """The next number that the database would assign."""
    number: int = ID.unpack(txn.get(b"next", db=meta))[0]
    return number


def account_address(address: str) -> str:
    """The folded address that an account may have.  Raises DataError."""
    try:
        folded = fold(address)
    except AddressError as error:
        raise DataError(f"{address!a}: {error}", remedy=ADDRESS) from None
    if len(folded.encode()) > MAX_KEY:
        raise DataError(f"{address!a}: longer than {MAX_KEY} bytes", remedy="give a shorter one")
    return folded


def _without_none(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}
