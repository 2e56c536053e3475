"""Which users a command changes: those of its node, or those of the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.cluster import seen
from metad.errors import UnavailableError
from metad.users.database import UserDatabase
from metad.users.directory_client import open_users
from metad.users.directory_users import DirectoryUsers
from metad.users.mirrored import MirroredUsers

ANN, BOB = "ann@example.test", "bob@example.test"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with UserDatabase(tmp_path / "users", create=True) as users:
        users.add(ANN)
    return tmp_path


def test_a_hub_in_no_cluster_changes_its_own(data: Path) -> None:
    with open_users(data / "users") as users:
        users.add(BOB)
    with open_users(data / "users") as users:
        assert [one.address for one in users.accounts()] == [ANN, BOB]


def test_of_two_nodes_without_etcd_one_changes_its_own(data: Path) -> None:
    (data / "cluster").mkdir()
    with open_users(data / "users") as users:
        users.add(BOB)
        assert not isinstance(users, DirectoryUsers)


def test_a_mirror_is_changed_in_etcd_alone(data: Path) -> None:
    with MirroredUsers(data / "users") as users:
        users.follow(empty=False)
    with open_users(data / "users") as opened:
        assert isinstance(opened, DirectoryUsers)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_node_whose_database_was_lost_or_is_old_takes_no_change(
    data: Path, is_there: bool
) -> None:
    """It would give a number that others have, and tell that a user was added whom etcd lacks."""
    (data / "cluster").mkdir()
    (data / "cluster" / seen.NAME).touch()
    if not is_there:
        for path in (data / "users").iterdir():
            path.unlink()
    with open_users(data / "users", create=True) as users:
        with pytest.raises(UnavailableError, match="not on this node yet") as refused:
            users.add(BOB)
        assert "start the hub" in refused.value.remedy
        with pytest.raises(UnavailableError):
            users.accept_loss()
        assert [one.address for one in users.accounts()] == [ANN] * is_there
