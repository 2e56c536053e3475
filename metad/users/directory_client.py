"""Opens the users database for a command: in a cluster with etcd, its changes go there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from metad import limits
from metad.errors import UnavailableError
from metad.users.database import UserDatabase

if TYPE_CHECKING:
    from metad.users.directory_users import Propose
    from metad.users.rows import Change

PATIENCE_S: Final = 15.0


def open_users(
    path: Path, *, create: bool = False, iterations: int = limits.SCRAM_ITERATIONS
) -> UserDatabase:
    """The database in `path`, DATA/users.  Raises as UserDatabase does."""
    users = UserDatabase(path, create=create, iterations=iterations)
    if not users.in_directory and not _are_in_etcd(path.parent):
        return users
    users.close()
    from metad.users.directory_users import DirectoryUsers

    return DirectoryUsers(path, _proposing(path.parent), iterations=iterations)


def _are_in_etcd(data: Path) -> bool:
    """Whether the users of this node are in etcd, though its database does not say so: it was lost,
    or is of an earlier day.  Until the hub has read them again, nothing is changed."""
    if not (data / "cluster").is_dir():
        return False
    from metad.cluster import seen

    return (data / "cluster" / seen.NAME).exists()


def _proposing(data: Path) -> Propose:
    from metad.cluster import local
    from metad.users.directory_users import OvertakenError

    def propose(change: Change) -> None:
        message = {"op": "users", "change": change}
        try:
            answer = local.ask(local.socket_path(data), message, PATIENCE_S)
        except local.AwayError as error:
            raise UnavailableError(
                f"users of a cluster are changed through the hub, which must run: {error}",
                remedy="metad start starts it; metad status shows how it is",
            ) from None
        if answer.get("overtaken"):
            raise OvertakenError(
                "another node changes the same users", remedy="try again in a moment"
            )

    return propose
