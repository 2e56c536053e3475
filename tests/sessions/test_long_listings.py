"""A long listing is made and sent in pieces: other sessions get their turn in between."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import pytest

from metad.layers.null import NullMaildrop
from metad.protocol.pop3.table import OUTPUT_LIMIT
from metad.users.account import Account
from tests.support.session_kit import Connected, World

COUNT = 213_000
PIECE = 64 * 1024  # more than a piece of a listing


class LongDrop(NullMaildrop):
    """A mailbox of messages of ten octets."""

    octets = COUNT * 10
    is_closed = False

    def __len__(self) -> int:
        return COUNT

    def size(self, number: int, /) -> int:
        return 10

    def uid(self, number: int, /) -> str:
        return f"{number:032x}"

    def close(self) -> None:
        self.is_closed = True


class Turns:
    """The loop's turns, one after another."""

    def __init__(self, world: World) -> None:
        self._calls: deque[Any] = deque()
        world.loop.call_soon = self._later  # type: ignore[method-assign]

    def _later(self, call: Any, *arguments: Any) -> None:
        self._calls.append((call, arguments))

    def one(self) -> bool:
        """Run the callbacks requested in the last turn.  Returns whether there were any."""
        calls, self._calls = self._calls, deque()
        for call, arguments in calls:
            call(*arguments)
        return bool(calls)


@pytest.fixture
def world() -> World:
    made = World()
    made.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore
    return made


def logged_in(world: World) -> tuple[Connected, LongDrop]:
    drop = LongDrop(world.loop)
    world.context.layer.open_mailbox = lambda mailbox: drop  # type: ignore[method-assign]
    client = world.pop3()
    client.send(b"USER bob\r\nPASS right\r\n")
    client.transport.take()
    return client, drop


@pytest.mark.slow
@pytest.mark.parametrize("command", [b"UIDL\r\n", b"LIST\r\n"])
def test_between_two_pieces_other_sessions_have_their_turn(world: World, command: bytes) -> None:
    """Regression: as long as the client's socket accepted everything, a worker did nothing else."""
    turns = Turns(world)
    client, _ = logged_in(world)
    other, _ = logged_in(world)
    answers = {one: one.send(command) for one in (client, other)}
    assert max(map(len, answers.values())) < OUTPUT_LIMIT + PIECE
    count = 0
    while turns.one():
        count += 1
        for one in answers:
            written = one.transport.take()
            assert len(written) < OUTPUT_LIMIT + PIECE
            answers[one] += written
    assert count > 5
    for answer in answers.values():
        assert answer.count(b"\r\n") == COUNT + 2
        assert answer.endswith(b"\r\n.\r\n")


def test_a_client_that_hangs_up_between_two_pieces_frees_its_mailbox(world: World) -> None:
    turns = Turns(world)
    client, drop = logged_in(world)
    client.send(b"UIDL\r\n")
    client.lose()
    client.transport.closed = True
    while turns.one():
        pass
    assert drop.is_closed


@pytest.mark.slow
def test_commands_that_come_between_two_pieces_are_answered_behind_them(world: World) -> None:
    turns = Turns(world)
    client, _ = logged_in(world)
    client.send(b"UIDL\r\n")
    client.send(b"NOOP\r\n")
    for _ in itertools.takewhile(bool, iter(turns.one, None)):
        pass
    assert client.transport.take().endswith(b"\r\n.\r\n+OK\r\n")
