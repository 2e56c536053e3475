"""Users of a test inbox: mailboxes created on demand, and any password.

Only [dev] in the configuration enables this.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from metad.config.model import Config, DevConfig
from metad.errors import DataError, ForeignDomainError, MetadError, UnknownUserError
from metad.users.account import Account
from metad.users.database import UserDatabase
from metad.users.journal import MirrorError


class DevUsers(UserDatabase):
    """The users database of a hub for tests."""

    def __init__(self, path: Any, dev: DevConfig, iterations: int) -> None:
        super().__init__(path, create=True, iterations=iterations)
        self._dev = dev

    def expand(self, address: str) -> tuple[Account, ...]:
        try:
            return super().expand(address)
        except (UnknownUserError, ForeignDomainError):
            if not self._make(address):
                raise
            return super().expand(address)

    def verify(self, address: str, password: bytes) -> Account | None:
        if not self._dev.any_password:
            return super().verify(address, password)
        return self._account(address) or (self._account(address) if self._make(address) else None)

    def every_login_has_keys(self) -> bool:
        """SCRAM proves a password, so it cannot accept any."""
        return not self._dev.any_password and super().every_login_has_keys()

    def _account(self, address: str) -> Account | None:
        try:
            return self.account(address)
        except MetadError:
            return None

    def _make(self, address: str) -> bool:
        """Whether there is a mailbox now: the address matches a pattern."""
        folded = address.lower()
        if not any(fnmatchcase(folded, pattern) for pattern in self._dev.accept):
            return False
        try:
            self.add(address)
        except (DataError, MirrorError):  # another was faster, it is no address, or in a cluster
            return self._account(address) is not None
        return True


def open_users(config: Config) -> UserDatabase:
    """The users database of a hub, created if missing."""
    path, iterations = config.data / "users", config.users.scram_iterations
    if config.dev.accept or config.dev.any_password:
        return DevUsers(path, config.dev, iterations)
    return UserDatabase(path, create=True, iterations=iterations)
