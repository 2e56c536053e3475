"""Imports entries of a file into the users database: added, changed or unchanged.

Rules of this file:

* Repeating an import changes nothing.  A password is changed only if its source in the file differs
  from the last import, and is never replaced by a weaker hash.
* A batch is one transaction, so each entry is imported completely or not at all.  Accounts come
  first: an alias may name one of a later line.
* Nothing is removed while any line is bad: an unreadable line may be a user's mailbox.
* `--dry-run` does the same except writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from metad.errors import (
    DataError,
    DisabledUserError,
    ForeignDomainError,
    MetadError,
    NoSuchUserError,
    UnknownUserError,
)
from metad.users import hashes, passwords, rows
from metad.users.account import POSTMASTER_ID, Account, unpack_alias, unpack_record
from metad.users.database import UserDatabase, account_address
from metad.users.imports.import_entries import BadLine, ImportEntry, Secret
from metad.users.lmdb_env import ID
from metad.users.lookup import alias_key, alias_name, found_account


class Prepared(NamedTuple):
    """An entry whose slow part is done.  `password`: the record's fields; None leaves them
    unchanged."""

    entry: ImportEntry
    address: str
    password: dict[str, Any] | None


@dataclass(slots=True)
class Outcome:
    """What an import did, or would do."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    weak: int = 0
    bad: list[BadLine] = field(default_factory=list)
    no_login: list[BadLine] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return self.added + self.changed + self.unchanged + len(self.bad)


class Transfer:
    """One import.  `progress` is called after every batch."""

    def __init__(
        self,
        database: UserDatabase,
        *,
        dry_run: bool = False,
        progress: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._users = database
        self._dry = dry_run
        self._progress = progress
        self._seen: set[str] = set()
        self._seen_aliases: set[str] = set()
        self.outcome = Outcome()

    # -- adding and changing

    def run(self, found: Iterable[ImportEntry | BadLine]) -> None:
        """Import every entry.  Raises errors such as NoSpaceError; earlier batches stay."""
        aliases: list[ImportEntry] = []
        source, batch = iter(found), self._users.imported_batch
        while piece := list(islice(source, batch)):
            self._accounts(self._sort_out(piece, aliases))
            self._progress(self.outcome)
        for part in rows.in_parts(aliases, batch, _octets):
            self._aliases(part)
            self._progress(self.outcome)

    def _sort_out(
        self, piece: list[ImportEntry | BadLine], aliases: list[ImportEntry]
    ) -> Iterator[Prepared]:
        for one in piece:
            if isinstance(one, BadLine):
                self.outcome.bad.append(one)
            elif one.members is not None:
                aliases.append(one)
            else:
                try:
                    yield self._prepared(one)
                except MetadError as error:
                    self._is_bad(one, error)

    def _is_bad(self, entry: ImportEntry, error: MetadError) -> None:
        self.outcome.bad.append(BadLine(entry.place, str(error)))

    def _prepared(self, entry: ImportEntry) -> Prepared:
        """Raises DataError."""
        address = account_address(entry.address)
        if address in self._seen:
            raise DataError(f"{address}: already named on an earlier line")
        self._seen.add(address)
        if entry.no_login:
            reason = f"{address}: added without a login: {entry.no_login}"
            self.outcome.no_login.append(BadLine(entry.place, reason))
        secret = entry.secret
        password = None
        if secret is not None and secret.plain is not None:
            password = self._of_readable(address, secret.plain)
        elif secret is not None and not secret.empty:
            password = self._of_source(secret)
        return Prepared(entry, address, password)

    def _of_readable(self, address: str, plain: bytes) -> dict[str, Any] | None:
        """Hashing is slow, so it happens outside the transaction."""
        record = self._users.record(address)
        known = (passwords.unpacked(record.get(name)) for name in ("scram", "imported"))
        if any(keys is not None and passwords.check(plain, keys) for keys in known):
            return None
        packed = passwords.make(plain, self._users.iterations).packed()
        return {"scram": packed, "imported": packed}

    def _of_source(self, secret: Secret) -> dict[str, Any]:
        keys = secret.scram.packed() if secret.scram else None
        source = f"{secret.hash or ''} {keys or ''}"
        fields: dict[str, Any] = {"imported": self._users.fingerprint(source)}
        if secret.hash:
            fields["hash"] = secret.hash
            self.outcome.weak += hashes.is_weak(secret.hash)
        return fields | ({"scram": keys} if keys else {})

    def _accounts(self, prepared: Iterable[Prepared]) -> None:
        # In key order, a batch changes each page of the database once.
        ready = sorted(prepared, key=lambda one: one.address)

        def change() -> list[str | MetadError]:
            with self._users.transaction(write=not self._dry) as txn:
                return [self._one(txn, one) for one in ready]

        self._count([one.entry for one in ready], self._users.carried_out(change))

    def _count(self, entries: list[ImportEntry], results: list[str | MetadError]) -> None:
        """Report them only when they are durable."""
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, MetadError):
                self._is_bad(entry, result)
            else:
                setattr(self.outcome, result, getattr(self.outcome, result) + 1)

    def _one(self, txn: Any, one: Prepared) -> str | MetadError:
        users = self._users
        try:
            account = found_account(txn, one.address.encode(), users.addresses_table)
            if account is None:
                fields = one.entry.fields | (one.password or {})
                fields |= {"password_version": 1} if one.password else {}
                added = None if self._dry else users.insert(txn, one.address, fields)
                return added if isinstance(added, MetadError) else "added"
            return self._existing(txn, account, one)
        except MetadError as error:
            return error

    def _existing(self, txn: Any, account: Account, one: Prepared) -> str:
        users = self._users
        raw = txn.get(ID.pack(account.id), db=users.accounts_table)
        record = unpack_record(raw)
        changed = record | one.entry.fields
        if one.password is not None and _is_new_password(record, one.password):
            changed = {k: v for k, v in changed.items() if k not in ("scram", "hash")}
            changed |= one.password | {"password_version": account.password_version + 1}
        if changed == record:
            return "unchanged"
        if not self._dry:
            users.replace(txn, account.id, changed)
        return "changed"

    def _aliases(self, entries: list[ImportEntry]) -> None:
        named: set[str] = set()

        def change() -> list[str | MetadError]:
            self._seen_aliases -= named  # by an attempt before
            named.clear()
            with self._users.transaction(write=not self._dry) as txn:
                return [self._one_alias(txn, one, named) for one in entries]

        self._count(entries, self._users.carried_out(change))

    def _one_alias(self, txn: Any, entry: ImportEntry, named: set[str]) -> str | MetadError:
        try:
            name = self._new_name(entry.address)
            named.add(name)
            return self._alias(txn, entry.address, name, entry.members or ())
        except MetadError as error:
            return error

    def _new_name(self, address: str) -> str:
        """Raises DataError."""
        name = alias_name(alias_key(address))
        if name in self._seen_aliases:
            raise DataError(f"{name}: already named on an earlier line")
        self._seen_aliases.add(name)
        return name

    def _alias(self, txn: Any, address: str, name: str, members: tuple[str, ...]) -> str:
        """Raises DataError."""
        folded = _folded(members)
        raw = txn.get(alias_key(address), db=self._users.addresses_table)
        old = None if raw is None else unpack_alias(raw)
        if raw is not None and folded == {name} and old is None:
            # Postfix's way of exempting a user from a catch-all.
            return "unchanged"
        if old is not None and set(old) == folded:
            return "unchanged"
        if not self._dry:
            self._users.put_alias(txn, address, members)
        elif name in folded or name in self._seen:
            raise DataError(
                f"{name}: the alias would lead back to itself, or a user has this address"
            )
        else:
            self._check_members(name, folded)
        return "added" if old is None else "changed"

    def _check_members(self, name: str, members: set[str]) -> None:
        """In a dry run, the file's own entries are not in the database."""
        for member in members - self._seen - self._seen_aliases:
            try:
                self._users.expand(member)
            except (UnknownUserError, ForeignDomainError):
                raise DataError(f"{name}: {member}: no such user or alias") from None
            except DisabledUserError:
                continue

    # -- removing

    def sync(self, covers: Callable[[str], bool], *, accounts: bool, aliases: bool) -> None:
        """Remove addresses that the file did not name but `covers`.

        Raises DataError if a line was bad, or none was good; then nothing is removed.
        """
        if self.outcome.bad:
            raise DataError("nothing was removed, because of the bad lines")
        if not self._seen and not self._seen_aliases:
            raise DataError("nothing was removed: the file names no user")
        if aliases:
            for alias in list(self._users.aliases()):
                if covers(alias.address) and alias.address not in self._seen_aliases:
                    self._remove(partial(self._users.remove_alias, alias.address, force=True))
        if accounts:
            for account in self._users.accounts():
                if (
                    covers(account.address)
                    and account.address not in self._seen
                    and account.id != POSTMASTER_ID
                ):
                    self._remove(partial(self._users.remove, account.address, force=True))

    def _remove(self, remove: Callable[[], object]) -> None:
        if not self._dry:
            with suppress(NoSuchUserError):  # it was removed with the last address that it named
                remove()
        self.outcome.removed += 1


def _is_new_password(record: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Whether the file's password differs from the last import, and is not weaker."""
    if record.get("imported") == fields["imported"]:
        return False
    source = fields.get("hash")
    if source is None or "scram" in fields or not hashes.is_weak(source):
        return True
    old = record.get("hash")
    return "scram" not in record and (old is None or hashes.is_weak(old))


def _octets(alias: ImportEntry) -> int:
    return len(rows.alias_row(alias.members or ()))


def _folded(members: Iterable[str]) -> set[str]:
    return {alias_name(alias_key(member)) for member in members}
