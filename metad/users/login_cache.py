"""A cache of verified logins: POP3 clients poll, and hashing a password costs a millisecond.

Rules of this file:

* It stores a keyed hash of address and password, under a random key that never leaves this process:
  the cache is worthless elsewhere.
* A cached login is valid only while the account has the same id and password version: one database
  look-up, so a change invalidates it at once in every process.
* Bounded: the oldest entry is dropped first.  Used by one thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple, Protocol

from metad import limits
from metad.users.account import Account


class Accounts(Protocol):
    """What the cache needs from the users database."""

    def account(self, address: str) -> Account | None: ...


class _Remembered(NamedTuple):
    account: int
    version: int
    until: float


class LoginMemory:
    """Remembers verified logins for `seconds`, at most `entries` of them; `clock` is monotonic."""

    def __init__(
        self,
        accounts: Accounts,
        seconds: float = limits.LOGIN_MEMORY,
        entries: int = limits.LOGIN_MEMORY_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self._seconds = seconds
        self._entries = entries
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._logins: dict[bytes, _Remembered] = {}

    def __len__(self) -> int:
        return len(self._logins)

    def recall(self, address: str, password: bytes) -> Account | None:
        """The account, if this login was verified recently and is still valid; takes
        microseconds."""
        digest = self._digest(address, password)
        login = self._logins.get(digest)
        if login is None:
            return None
        account = self._accounts.account(address) if self._clock() < login.until else None
        if account is None or not _still(login, account):
            del self._logins[digest]
            return None
        return account

    def remember(self, address: str, password: bytes, account: Account) -> None:
        """Call this after `UserDatabase.verify` returned `account` for exactly this address and
        password."""
        digest = self._digest(address, password)
        self._logins.pop(digest, None)
        if len(self._logins) >= self._entries:
            del self._logins[next(iter(self._logins))]
        until = self._clock() + self._seconds
        self._logins[digest] = _Remembered(account.id, account.password_version, until)

    def _digest(self, address: str, password: bytes) -> bytes:
        # The length distinguishes "ab" + "c" from "a" + "bc", whatever the parts contain.
        name = address.encode("utf-8", "surrogateescape")
        text = len(name).to_bytes(4, "big") + name + password
        return blake2b(text, key=self._key, digest_size=32).digest()


def _still(login: _Remembered, account: Account) -> bool:
    return (
        account.id == login.account
        and account.password_version == login.version
        and not account.disabled
    )
