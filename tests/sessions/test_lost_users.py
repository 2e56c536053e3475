"""Logins while users may be missing: on a new node of a cluster, or after the database was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metad.system.shared_memory import Cell
from metad.users.mirrored import MirroredUsers
from metad.users.rows import Position
from tests.support.session_kit import World

ANN, BOB = b"ann@example.test", b"bob@example.test"
TEMPORARY, WRONG = b"-ERR [SYS/TEMP] temporary failure", b"-ERR [AUTH] authentication failed"
PEER = "192.0.2.1"


@pytest.fixture
def users(tmp_path: Path) -> Iterator[MirroredUsers]:
    """`ANN` is there already; `BOB` is still to come."""
    with MirroredUsers(tmp_path / "users", create=True, iterations=4096) as made:
        made.add(ANN.decode(), b"right")
        with made.env.begin(write=True) as txn:
            made.mark_lost(txn)
        yield made


@pytest.fixture
def world(users: MirroredUsers) -> World:
    made = World()
    context: Any = made.context
    context.users = users
    return made


def log_in(world: World, user: bytes, password: bytes) -> tuple[bytes, float]:
    """The answer to PASS, and the seconds until it came."""
    client = world.pop3()
    client.send(b"USER %s\r\n" % user)
    client.transport.take()
    client.send(b"PASS %s\r\n" % password)
    began = world.loop.now
    for _ in range(1000):
        world.threads.run()
        if client.transport.written:
            break
        world.loop.advance(0.125)
    return client.transport.take().rstrip(b"\r\n"), world.loop.now - began


def count(world: World, cell: Cell) -> int:
    number: int = world.context.row.cells[cell]
    return number


def test_a_user_who_may_be_missing_is_a_failure_of_ours(world: World) -> None:
    for _ in range(3):
        assert log_in(world, BOB, b"right")[0] == TEMPORARY
    assert (count(world, Cell.LOGIN_FAILURES), count(world, Cell.LOGIN_REFUSED)) == (0, 3)
    assert "unknown user, and not all users are here" in world.lines[-1]


def test_a_wrong_password_is_answered_and_slowed_like_an_unknown_user(world: World) -> None:
    unknown = log_in(world, BOB, b"wrong")
    delay = world.limiter.login_delay(PEER, world.loop.now)
    assert delay > 0  # else the time of the next answer would tell who is here
    other = World()
    other.context.users = world.context.users
    assert log_in(other, ANN, b"wrong") == unknown
    assert count(other, Cell.LOGIN_WRONG) == 1
    assert other.limiter.login_delay(PEER, other.loop.now) == delay


def test_a_user_who_is_here_logs_in(world: World) -> None:
    assert log_in(world, ANN, b"right")[0].startswith(b"+OK ")


def test_once_all_users_are_here_an_unknown_one_has_failed(
    world: World, users: MirroredUsers
) -> None:
    with users.env.begin(write=True) as txn:
        users.finish_reload(txn, Position())
    assert log_in(world, BOB, b"right")[0] == WRONG
    assert count(world, Cell.LOGIN_UNKNOWN) == 1
