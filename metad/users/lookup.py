"""Reads the users database: which accounts an address stands for, and which may log in.

Rules of this file:

* No transaction outlives a call, and no hashing is done within one.
* The order at RCPT: the address itself (account or alias), the base of its +tag, postmaster, the
  catch-all of its domain.  A disabled account does not fall through.
* An alias is checked as a whole, by the worst of its members.
* Results of RCPT are cached as of one transaction of the database, whose number each look-up
  checks: a change by any process invalidates the cache at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import lmdb

from metad import limits
from metad.errors import (
    DataError,
    DisabledUserError,
    ForeignDomainError,
    UnknownUserError,
    UsersLostError,
)
from metad.protocol.address import LOCAL_LIMIT, AddressError, fold, fold_domain
from metad.users import hashes, login_kinds, passwords
from metad.users.account import (
    ADDRESS,
    DISABLED,
    KIND_ACCOUNT,
    KIND_ALIAS,
    POSTMASTER,
    POSTMASTER_ID,
    Account,
    Alias,
    Removed,
    from_record,
    unpack_account,
    unpack_alias,
    unpack_entry,
    unpack_record,
)
from metad.users.lmdb_env import ID, KINDS, LOST, MAX_KEY, Environment
from metad.users.passwords import ScramKeys

BATCH = 1000
_POSTMASTER = POSTMASTER.encode()
# The key of an alias for the bare <postmaster>: its account's entry stays unchanged.
POSTMASTER_ALIAS = b"postmaster@"
_BUILTIN = (POSTMASTER_ALIAS, _POSTMASTER)

KNOWN = 512  # addresses whose accounts are cached


class CachedAccounts(NamedTuple):
    """Cached results as of one transaction.  The object is replaced, never moved to another
    transaction, so that threads cannot mix two."""

    transaction: int
    accounts: dict[str, tuple[Account, ...]]


class Lookup(Environment):
    """An open users database, for reading."""

    _known = CachedAccounts(-1, {})
    _known_kinds: tuple[bytes | None, dict[str, int]] = (None, {})

    # -- recipients

    def expand(self, address: str) -> tuple[Account, ...]:
        """The accounts that receive mail for `address`; a few microseconds if it is one.

        Raises UnknownUserError, ForeignDomainError (no address has that domain), UsersLostError
        instead of those while `lost`, and DisabledUserError; for an alias, if one of its members
        would raise it.
        """
        try:
            txn = self._env.begin(self._addresses)
            try:
                number = txn.id()
                known, accounts = self._known
                if known != number or len(accounts) >= KNOWN:
                    accounts = {}
                    self._known = CachedAccounts(number, accounts)
                found = accounts.get(address)
                if found is None:
                    found = accounts[address] = self._find(txn, address)
                return found
            except (UnknownUserError, ForeignDomainError):
                if txn.get(LOST, db=self._meta) is not None:
                    raise UsersLostError(address) from None
                raise
            finally:
                txn.abort()
        except lmdb.Error as error:
            raise self._translated.ours(error) from None

    @property
    def lost(self) -> int:
        """Since when (Unix time) users may be missing because the database was made again; 0: none
        are."""
        with self._translated, self._env.begin(self._meta) as txn:
            return int(txn.get(LOST, b"0"))

    def _find(self, txn: Any, address: str) -> tuple[Account, ...]:
        """Like `expand`, in a transaction on the table of addresses."""
        # Keys are folded already: an address that differs from one only in case needs no syntax
        # check.
        if len(address) <= LOCAL_LIMIT and address.isascii() and "@" in address:
            folded = address.lower()
            raw = txn.get(folded.encode())
            account = None if raw is None else unpack_account(folded, raw)
            if account is not None:
                if account.flags & DISABLED:
                    raise DisabledUserError(address)
                return (account,)
        return self._expand(txn, key_of(address))

    def resolve(self, address: str) -> Account:
        """The one account of `address`.  Raises as `expand`, and DataError if it has several."""
        found = self.expand(address)
        if len(found) > 1:
            raise DataError(f"{address}: must stand for one mailbox, not {len(found)}")
        return found[0]

    def _expand(self, txn: Any, key: bytes) -> tuple[Account, ...]:
        """Everything that an address leads to, through aliases of aliases."""
        found: dict[int, Account] = {}
        seen: set[bytes] = set()
        waiting = [key]
        while waiting:
            entry, raw = self._entry(txn, waiting.pop())
            if entry in seen:
                continue
            seen.add(entry)
            account = unpack_entry(entry, raw)
            if account is None:
                waiting.extend(key_of(member) for member in reversed(unpack_alias(raw) or ()))
            elif account.disabled:
                raise DisabledUserError(account.address)
            else:
                found[account.id] = account
            if len(seen) > limits.ALIAS_MEMBERS:
                raise UnknownUserError(f"{key.decode()}: an alias for too many addresses")
        if not found:
            raise UnknownUserError(key.decode())
        return tuple(found.values())

    def _entry(self, txn: Any, key: bytes) -> tuple[bytes, bytes]:
        """Key and entry of the account or alias for `key`, in the order of the rules."""
        local, at, domain = key.rpartition(b"@")
        exact = txn.get(key, db=self._addresses) if at else None
        if exact is None and at and txn.get(domain, db=self._domains) is None:
            raise ForeignDomainError(key.decode())
        others = _fallbacks(local, domain) if at else _BUILTIN
        found = (key, exact) if exact is not None else self._first(txn, others)
        # An entry of an unknown kind (from a newer metad) has no account, and hides the catch-all.
        if found is None or found[1][0] not in (KIND_ACCOUNT, KIND_ALIAS):
            raise UnknownUserError(key.decode())
        return found

    def _first(self, txn: Any, keys: Iterable[bytes]) -> tuple[bytes, bytes] | None:
        for key in keys:
            raw = txn.get(key, db=self._addresses)
            if raw is not None:
                return key, raw
        return None

    # -- accounts and aliases

    def account(self, address: str) -> Account | None:
        """The account with exactly this address, disabled or not; None if there is none or it is
        not an address."""
        try:
            key = key_of(address)
        except UnknownUserError:
            return None
        with self._translated, self._env.begin(self._addresses) as txn:
            return found_account(txn, key)

    def by_id(self, number: int) -> Account | None:
        with self._translated, self._env.begin(self._accounts) as txn:
            raw = txn.get(ID.pack(number))
            return None if raw is None else from_record(number, unpack_record(raw))

    def address_of(self, number: int) -> str | None:
        """The address of the account with this id."""
        account = self.by_id(number)
        return None if account is None else account.address

    def record(self, address: str) -> dict[str, Any]:
        """Everything stored about an account, including the fields that only `passwords`
        understands."""
        account = self.account(address)
        if account is None:
            return {}
        with self._translated, self._env.begin(self._accounts) as txn:
            raw = txn.get(ID.pack(account.id))
            return {} if raw is None else unpack_record(raw)

    def accounts(self, *, builtin: bool = False) -> Iterator[Account]:
        """All accounts by address, read in pieces: no transaction stays open between pieces."""
        for key, raw in self._entries():
            account = unpack_entry(key, raw)
            if account is not None and (builtin or account.id != POSTMASTER_ID):
                yield account

    def alias(self, address: str) -> Alias | None:
        """The alias with exactly this address."""
        key = alias_key(address)
        with self._translated, self._env.begin(self._addresses) as txn:
            raw = txn.get(key)
            members = None if raw is None else unpack_alias(raw)
        return None if members is None else Alias(alias_name(key), members)

    def aliases(self) -> Iterator[Alias]:
        """All aliases by address, read in pieces."""
        for key, raw in self._entries():
            members = unpack_alias(raw)
            if members is not None:
                yield Alias(alias_name(key), members)

    def domains(self, most: int) -> list[str]:
        """The first `most` domains that have an address, by name."""
        with self._translated, self._env.begin(self._domains) as txn, txn.cursor() as cursor:
            return [bytes(key).decode() for key, _ in islice(cursor, most)]

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        last = b""
        while True:
            with self._translated, self._env.begin(self._addresses) as txn:
                piece = _entries_after(txn, last)
            if not piece:
                return
            last = piece[-1][0]
            yield from piece

    def removed(self) -> Iterator[tuple[int, str, int]]:
        """Tombstones: (id, address, Unix seconds of the removal), by id."""
        with self._translated, self._env.begin(self._removed) as txn:
            found = [(ID.unpack(key)[0], unpack_record(raw)) for key, raw in txn.cursor()]
        for number, record in found:
            yield number, record.get("address", ""), record.get("time", 0)

    def owners(self, numbers: Iterable[int]) -> list[Account | Removed | None]:
        """Who owns or owned each of these mailboxes, as of one moment.

        None: this database knows no owner, or the record cannot be read.
        """
        with self._translated, self._env.begin() as txn:
            return [self._owner(txn, ID.pack(number)) for number in numbers]

    def _owner(self, txn: Any, key: bytes) -> Account | Removed | None:
        raw, gone = txn.get(key, db=self._accounts), txn.get(key, db=self._removed)
        try:
            if raw is not None:
                return from_record(ID.unpack(key)[0], unpack_record(raw))
            if gone is not None:
                record = unpack_record(gone)
                return Removed(record["address"], int(record["time"]))
        except (DataError, KeyError, TypeError, ValueError):
            pass
        return None

    def extremes(self) -> tuple[int, int]:
        """The least expiry and the greatest login delay, in seconds, ever set for any account; 0:
        none."""
        with self._translated, self._env.begin() as txn:
            return self._extremes(txn)

    def _extremes(self, txn: Any) -> tuple[int, int]:
        names = (b"least expiry", b"most login delay")
        least, most = (ID.unpack(txn.get(n, ID.pack(0), db=self._meta))[0] for n in names)
        return least, most

    # -- SCRAM

    def scram_keys(self, address: str) -> tuple[Account | None, ScramKeys]:
        """The data for a SCRAM exchange for `address`: the account if it may log in, and keys.

        For an unknown user, or one that may not log in: keys that match no password, always the
        same, and of a kind that accounts of this database have.
        """
        account, record = self._login_record(address)
        # Always computed: its time would reveal the difference.
        fake = self._fake_keys(spelled(address))
        keys = passwords.unpacked(record.get("scram"))
        if account is None or keys is None or account.disabled:
            return None, fake
        return account, keys

    def _fake_keys(self, name: bytes) -> ScramKeys:
        kinds = self._kinds()
        kind = login_kinds.drawn(kinds, self._secret, name, only_scram=True)
        wanted = login_kinds.scram_kind(kind) or login_kinds.default(self.iterations)
        return passwords.fake(self._secret, name, wanted.iterations, wanted.salt_octets)

    def imitate_check(self, address: str, password: bytes) -> None:
        """Do the work of a password check for a name without a password; blocks for the hashing."""
        name = spelled(address)
        kinds = self._kinds()
        kind = login_kinds.drawn(kinds, self._secret, name, only_scram=False)
        if kind and login_kinds.scram_kind(kind) is None:
            hashes.imitate(password, kind)
        else:
            passwords.check(password, self._fake_keys(name))

    def _kinds(self) -> dict[str, int]:
        """How many accounts have passwords of each kind."""
        with self._translated, self._env.begin(self._meta) as txn:
            raw = txn.get(KINDS)
            self._secret = bytes(txn.get(b"secret", b""))  # a cluster's comes after the start
        if raw != self._known_kinds[0]:
            self._known_kinds = (raw, login_kinds.unpacked(raw))
        return self._known_kinds[1]

    def every_login_has_keys(self) -> bool:
        """Whether SCRAM can check every user that may log in."""
        with self._translated, self._env.begin(self._meta) as txn:
            return int(ID.unpack(txn.get(b"unkeyed", ID.pack(0)))[0]) == 0

    def _login_record(self, address: str) -> tuple[Account | None, dict[str, Any]]:
        try:
            key = key_of(address)
        except UnknownUserError:
            return None, {}
        with self._translated, self._env.begin(self._addresses) as txn:
            account = found_account(txn, key)
            if account is None:
                return None, {}
            raw = txn.get(ID.pack(account.id), db=self._accounts)
        return account, {} if raw is None else unpack_record(raw)


def _fallbacks(local: bytes, domain: bytes) -> Iterator[bytes]:
    """Look up an address that has no entry of its own; its domain is served."""
    # RFC 5233: what follows the "+" is detail; a quoted local part has none.
    base = local if local.startswith(b'"') else local.partition(b"+")[0]
    if base and base != local:
        yield base + b"@" + domain
    if base == _POSTMASTER:
        yield from _BUILTIN
    yield b"@" + domain


def key_of(address: str) -> bytes:
    """The key of `address`.  Raises UnknownUserError if it cannot be an address."""
    try:
        key = fold(address).encode()
    except ValueError:
        # The one mailbox that needs no domain: RFC 5321 4.5.1.
        if address.lower() == POSTMASTER:
            return _POSTMASTER
        raise UnknownUserError(ascii(address)) from None
    if len(key) > MAX_KEY:
        raise UnknownUserError("an address of impossible length")
    return key


def spelled(address: str) -> bytes:
    """The canonical spelling of a login name: all spellings of an unknown name get the same
    answers, like those of an account."""
    try:
        return key_of(address)
    except UnknownUserError:
        return address.encode("utf-8", "surrogateescape")


def alias_key(address: str) -> bytes:
    """Like `key_of`, for an alias: "@domain" is one too.  Raises DataError."""
    try:
        if address.startswith("@"):
            fold(f"x{address}")
            return b"@" + fold_domain(address[1:]).encode()
        key = key_of(address)
    except (AddressError, UnknownUserError) as error:
        raise DataError(f"{address!a}: not an address: {error}", remedy=ADDRESS) from None
    return POSTMASTER_ALIAS if key == _POSTMASTER else key


def alias_name(key: bytes) -> str:
    return POSTMASTER if key == POSTMASTER_ALIAS else key.decode()


def found_account(txn: Any, key: bytes, table: Any = None) -> Account | None:
    raw = txn.get(key) if table is None else txn.get(key, db=table)
    return None if raw is None else unpack_entry(key, raw)


def _entries_after(txn: Any, last: bytes) -> list[tuple[bytes, bytes]]:
    """Up to BATCH entries whose key is greater than `last`."""
    cursor = txn.cursor()
    if not cursor.set_range(last + b"\0"):
        return []
    return list(islice(cursor.iternext(keys=True, values=True), BATCH))
