"""The users of a cluster with etcd, as a command changes them on any node.

    a change: decided on this node's mirror -> Change -> the directory process -> etcd
      -> this node's mirror has it -> the method returns

Rules of this file:

* A change that another node's overtook is decided again, on what holds then.
* When a method returns, the change stands in etcd and holds on this node; on the others within a
  second, unless they are cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgpack

from metad import limits
from metad.errors import TemporaryError
from metad.users.account import Account, Alias, Policy
from metad.users.database import UserDatabase
from metad.users.journal import MirrorError
from metad.users.lmdb_env import DIRECTORY
from metad.users.recorded import RecordedTransaction
from metad.users.rows import Change, Position

T = TypeVar("T")

TRIES: Final = 20


class OvertakenError(TemporaryError):
    """Another node changed a row on which the change was decided."""


class Propose(Protocol):
    def __call__(self, change: Change) -> None:
        """Carry it out, and wait until this node's mirror has it.

        Raises OvertakenError when the mirror has what overtook it; UnavailableError, ClusterError.
        """


class DirectoryUsers(UserDatabase):
    """`propose`: how changes reach etcd."""

    # Few rows: an account takes three comparisons, and etcd takes 128 in a transaction.
    batch = imported_batch = 40

    def __init__(
        self, path: Path, propose: Propose, *, iterations: int = limits.SCRAM_ITERATIONS
    ) -> None:
        super().__init__(path, iterations=iterations)
        self._propose = propose

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A transaction that is decided here, and carried out by etcd when the context ends."""
        with self._translated:
            txn = self._env.begin(write=True)
            try:
                position = read_position(txn, self._meta)
                if not position.revision:
                    raise MirrorError(
                        "the users of the cluster are not on this node yet",
                        remedy="start the hub; metad cluster status shows this node as active then",
                    )
                recorded = RecordedTransaction(txn, self, position)
                yield recorded
                change = recorded.change()
            finally:
                txn.abort()
        if change is not None:
            self._propose(change)

    def carried_out(self, change: Callable[[], T]) -> T:
        for _ in range(TRIES - 1):
            try:
                return change()
            except OvertakenError:
                continue
        return change()

    def remove(self, address: str, *, force: bool = False) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).remove(address, force=force))

    def rename(self, address: str, new: str) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).rename(address, new))

    def set_password(self, address: str, password: bytes) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).set_password(address, password))

    def set_disabled(self, address: str, disabled: bool) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).set_disabled(address, disabled))

    def set_policy(self, address: str, policy: Policy) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).set_policy(address, policy))

    def change_policy(self, address: str, changes: Mapping[str, int | None]) -> Account:
        return self.carried_out(lambda: super(DirectoryUsers, self).change_policy(address, changes))

    def change_alias(
        self, address: str, change: Callable[[tuple[str, ...]], Sequence[str]]
    ) -> Alias:
        return self.carried_out(lambda: super(DirectoryUsers, self).change_alias(address, change))

    def set_alias(self, address: str, members: Sequence[str]) -> Alias:
        return self.carried_out(lambda: super(DirectoryUsers, self).set_alias(address, members))

    def remove_alias(self, address: str, *, force: bool = False) -> Alias:
        return self.carried_out(
            lambda: super(DirectoryUsers, self).remove_alias(address, force=force)
        )


def read_position(txn: Any, meta: Any) -> Position:
    """What the mirror has."""
    raw = txn.get(DIRECTORY, db=meta)
    return Position(*msgpack.unpackb(raw)) if raw else Position()


def put_position(txn: Any, meta: Any, position: Position) -> None:
    txn.put(DIRECTORY, msgpack.packb(position), db=meta)
