"""Aliases: addresses that stand for others, and the catch-all of a domain.

Rules of this file:

* A member must be an address that is accepted when the alias is made; metad relays nothing.
* A change that would make a loop is refused.  Only a new alias can close one, because an account
  named by an alias cannot be removed without the alias.
* The table "members" maps back from the entry of a member to the aliases that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metad import limits
from metad.errors import DataError, ForeignDomainError, NoSuchUserError, UnknownUserError
from metad.users.account import ADDRESS, KIND_ALIAS, Alias, pack_alias, unpack_alias
from metad.users.lmdb_env import ID
from metad.users.lookup import Lookup, alias_key, alias_name, key_of


class AliasTable(Lookup):
    """The users database, with methods that change aliases."""

    def set_alias(self, address: str, members: Sequence[str]) -> Alias:
        """Make an alias, or replace its members, in one transaction.

        Raises DataError: a bad or foreign address, a user of that name, a loop, no members.
        """
        with self._writing() as txn:
            return self.put_alias(txn, address, members)

    def change_alias(
        self, address: str, change: Callable[[tuple[str, ...]], Sequence[str]]
    ) -> Alias:
        """Give an alias other members, which `change` makes from the present ones; () if there is
        no alias.  Raises DataError, as `set_alias` and `change` do."""
        with self._writing() as txn:
            raw = txn.get(alias_key(address), db=self._addresses)
            old = None if raw is None else unpack_alias(raw)
            return self.put_alias(txn, address, change(old or ()))

    def put_alias(self, txn: Any, address: str, members: Sequence[str]) -> Alias:
        """The same within a transaction, which is unchanged if this raises DataError."""
        key = alias_key(address)
        keys = [_member_key(key, member) for member in dict.fromkeys(members)]
        if not keys or len(keys) > limits.ALIAS_MEMBERS:
            raise DataError(
                f"{address}: an alias has 1 to {limits.ALIAS_MEMBERS:,} members",
                remedy="give more as members of another alias, and name that one",
            )
        alias = Alias(alias_name(key), tuple(dict.fromkeys(one.decode() for one in keys)))
        old = txn.get(key, db=self._addresses)
        if old is not None and old[0] != KIND_ALIAS:
            raise DataError(
                f"{alias.address}: a user has this address already",
                remedy="give the alias another address, or rename the user: metad user rename",
            )
        # Loops can be found only with the new alias in place.
        txn.put(key, pack_alias(alias.members), db=self._addresses)
        try:
            self._check_loop(txn, key)
        except DataError:
            if old is None:
                txn.delete(key, db=self._addresses)
            else:
                txn.put(key, old, db=self._addresses)
            raise
        if old is None:
            self._count_domain(txn, alias.address, 1)
        else:
            self._unlink(txn, key, old)
        for member in keys:
            self._link(txn, key, member)
        return alias

    def remove_alias(self, address: str, *, force: bool = False) -> Alias:
        """Remove an alias.  Raises NoSuchUserError; DataError while others name it."""
        key = alias_key(address)
        with self._writing() as txn:
            raw = txn.get(key, db=self._addresses)
            members = None if raw is None else unpack_alias(raw)
            if raw is None or members is None:
                raise NoSuchUserError(
                    f"{address}: no such alias", remedy="metad user list --aliases shows them"
                )
            self._leave_aliases(txn, key, force=force)
            self._drop(txn, key, raw)
        return Alias(alias_name(key), members)

    def named_by(self, address: str) -> list[str]:
        """The aliases that name an account or alias."""
        with self._translated, self._env.begin() as txn:
            return [alias_name(one) for one in self._named_by(txn, alias_key(address))]

    # -- within a transaction

    def _check_loop(self, txn: Any, key: bytes) -> None:
        """Follow everything that the new alias leads to: it must not lead back."""
        waiting = list(unpack_alias(txn.get(key, db=self._addresses)) or ())
        seen: set[bytes] = set()
        while waiting:
            member = waiting.pop()
            entry, raw = self._entry_of_member(txn, key, member)
            if entry == key:
                raise DataError(
                    f"{alias_name(key)}: the alias would lead back to itself",
                    remedy="metad user list --aliases shows what leads where",
                )
            if entry not in seen:
                seen.add(entry)
                waiting.extend(unpack_alias(raw) or ())
            if len(seen) > limits.ALIAS_MEMBERS:
                raise DataError(
                    f"{alias_name(key)}: leads to over {limits.ALIAS_MEMBERS:,} others",
                    remedy="name fewer members: metad user list --aliases shows what leads where",
                )

    def _entry_of_member(self, txn: Any, key: bytes, member: str) -> tuple[bytes, bytes]:
        try:
            return self._entry(txn, key_of(member))
        except ForeignDomainError:
            reason = "its domain is not served here, and metad relays nothing"
            remedy = "name an address of this hub: metad user list shows them"
        except UnknownUserError:
            reason = "no such user or alias"
            remedy = "add it first: metad user add"
        raise DataError(f"{alias_name(key)}: {member}: {reason}", remedy=remedy)

    def _link(self, txn: Any, key: bytes, member: bytes) -> None:
        entry, _ = self._entry_of_member(txn, key, member.decode())
        for one in {entry, member}:
            txn.put(one, key, db=self._members)

    def _unlink(self, txn: Any, key: bytes, raw: bytes) -> None:
        """The alias `key` is about to change: remove its links."""
        for member in unpack_alias(raw) or ():
            try:
                entry, _ = self._entry(txn, key_of(member))
            except (ForeignDomainError, UnknownUserError):
                entry = b""
            for one in {entry, member.encode()} - {b""}:
                txn.delete(one, key, db=self._members)

    def _named_by(self, txn: Any, key: bytes) -> list[bytes]:
        """The aliases that name `key` now; the table's answers are verified."""
        cursor = txn.cursor(self._members)
        if not cursor.set_key(key):
            return []
        return [one for one in cursor.iternext_dup() if self._names(txn, one, key)]

    def _names(self, txn: Any, alias: bytes, key: bytes) -> bool:
        raw = txn.get(alias, db=self._addresses)
        for member in (unpack_alias(raw) or ()) if raw is not None else ():
            try:
                if self._entry(txn, key_of(member))[0] == key:
                    return True
            except (ForeignDomainError, UnknownUserError):
                continue
        return False

    def _leave_aliases(self, txn: Any, key: bytes, *, force: bool) -> None:
        """Refuse to remove a member of an alias; with `force`, remove it from its aliases."""
        named = self._named_by(txn, key)
        if named and not force:
            names = ", ".join(alias_name(one) for one in named[:3])
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            raise DataError(
                f"{alias_name(key)}: named by the aliases {names}{more}",
                remedy="--force takes it out of them",
            )
        for alias in named:
            raw = txn.get(alias, db=self._addresses)
            members = unpack_alias(raw) or ()
            left = tuple(one for one in members if self._entry(txn, key_of(one))[0] != key)
            if left:
                self._unlink(txn, alias, raw)
                txn.put(alias, pack_alias(left), db=self._addresses)
                for member in left:
                    self._link(txn, alias, member.encode())
            else:
                self._leave_aliases(txn, alias, force=True)
                self._drop(txn, alias, raw)

    def _follow(self, txn: Any, old: bytes, new: bytes) -> None:
        """Replace the account `old` by `new`, which exists already, in all aliases."""
        for alias in self._named_by(txn, old):
            raw = txn.get(alias, db=self._addresses)
            members = unpack_alias(raw) or ()
            followed = dict.fromkeys(
                _renamed(one, old, new) if self._entry(txn, key_of(one))[0] == old else one
                for one in members
            )
            self._unlink(txn, alias, raw)
            txn.put(alias, pack_alias(tuple(followed)), db=self._addresses)
            for member in followed:
                self._link(txn, alias, member.encode())

    def _drop(self, txn: Any, key: bytes, raw: bytes) -> None:
        self._unlink(txn, key, raw)
        txn.delete(key, db=self._addresses)
        self._count_domain(txn, alias_name(key), -1)

    def _count_domain(self, txn: Any, address: str, change: int) -> None:
        """Count the addresses of a domain: domains with any are served."""
        at, domain = address.rpartition("@")[1:]
        if not at:
            return
        key = domain.encode()
        count = ID.unpack(txn.get(key, ID.pack(0), db=self._domains))[0] + change
        if count:
            txn.put(key, ID.pack(count), db=self._domains)
        else:
            txn.delete(key, db=self._domains)


def _renamed(member: str, old: bytes, new: bytes) -> str:
    """Rewrite a member that means `old` to mean `new`; its tag is kept."""
    local, _, domain = new.decode().rpartition("@")
    tag = member.rpartition("@")[0].removeprefix(old.decode().rpartition("@")[0])
    return f"{local}{tag}@{domain}" if tag.startswith("+") else new.decode()


def _member_key(alias: bytes, member: str) -> bytes:
    """The key of a member, which must be one address.  Raises DataError."""
    try:
        return key_of(member)
    except UnknownUserError:
        raise DataError(
            f"{alias_name(alias)}: {member!a} is not an address", remedy=ADDRESS
        ) from None
