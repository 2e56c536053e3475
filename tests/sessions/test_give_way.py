"""Idle clients give way when connections are scarce, and each protocol keeps a share."""

from __future__ import annotations

import pytest

from metad import limits
from metad.sessions.give_way import give_way
from tests.support.session_kit import Connected, World

TO_DATA = b"EHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


def tick(world: World) -> int:
    """The once-a-second work of a worker."""
    world.pass_time(1)
    world.limiter.refresh()
    return give_way(world.context, world.loop.now)


def ended(clients: list[Connected]) -> list[bool]:
    return [one.transport.half_closed or one.transport.closed for one in clients]


@pytest.mark.slow
def test_a_hundred_silent_smtp_clients_do_not_lock_pop3_out() -> None:
    """Regression: they did, for 300 seconds."""
    world = World(connections=100, of_network=100)
    silent = [world.smtp() for _ in range(100)]
    # One protocol gets at most nine tenths.
    other = world.pop3("192.0.2.2")
    assert other.transport.take().startswith(b"+OK")
    assert sum(one.transport.take() == b"421 too many\r\n" for one in silent) == 10
    kept = [*silent[:90], other]
    for _ in range(limits.IDLE_GRACE - 1):
        assert tick(world) == 0
    assert sum(tick(world) for _ in range(3)) == 11
    gone = [one for one in kept if one.transport.half_closed]
    assert len(gone) == 11
    for one in gone:
        assert one.transport.take().endswith(b"too many connections\r\n")
        one.lose()
    assert world.pop3("192.0.2.2").transport.take().startswith(b"+OK")


def test_a_transaction_and_a_client_that_sends_something_stay() -> None:
    world = World(connections=20, of_network=20)
    busy, first, second, *rest = [world.smtp() for _ in range(17)]
    busy.send(TO_DATA)
    for _ in range(limits.IDLE_GRACE + 2):
        for one in (first, *rest):
            one.send(b"NOOP\r\n")
        tick(world)
    assert ended([busy, first, second]) == [False, False, True]
    assert ended(rest) == [False] * len(rest)


def test_below_the_share_no_client_gives_way() -> None:
    world = World(connections=10, of_network=10)
    clients = [world.pop3() for _ in range(8)]
    for _ in range(30):
        assert tick(world) == 0
    assert ended(clients) == [False] * 8
