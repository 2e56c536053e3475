"""Input sent ahead and unread output are bounded for all clients together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metad import limits
from metad.errors import NoSpaceError
from metad.protocol.smtp.machine import KEPT
from metad.sessions.backpressure import Backpressure
from metad.sessions.recipients import Recipients
from metad.users.account import Account
from tests.support.session_kit import World


class Session:
    def __init__(self) -> None:
        self.dropped = 0

    def drop(self) -> None:
        self.dropped += 1


def test_who_has_waited_longest_goes_when_memory_is_short() -> None:
    backpressure = Backpressure(100)
    first, second, third = Session(), Session(), Session()
    backpressure.hold(first, 10)
    backpressure.hold(second, 50)
    assert backpressure.is_short
    backpressure.hold(first, 20)  # it began to wait before, so it keeps its place
    backpressure.hold(third, 40)
    assert [first.dropped, second.dropped, third.dropped] == [1, 0, 0]
    assert backpressure.used == 90
    backpressure.hold(second, 0)
    backpressure.hold(first, 0)  # it is notified of its end later
    assert backpressure.used == 40
    assert not backpressure.is_short


def test_one_that_alone_is_too_much_goes_itself() -> None:
    backpressure = Backpressure(100)
    one = Session()
    backpressure.hold(one, 101)
    assert one.dropped == 1
    assert backpressure.used == 0


def test_a_pop3_client_that_sends_on_while_its_login_waits_is_not_read_from() -> None:
    """Regression: it was unbounded: while the answer was pending, all input was kept."""
    world = World()
    client = world.pop3()
    client.send(b"USER ann\r\nPASS wrong\r\n")
    for _ in range(10):
        if client.transport.reading:
            client.send(b"x" * 100_000)
    assert not client.transport.reading
    backpressure = world.context.backpressure
    assert limits.READ_AHEAD < backpressure.used <= limits.READ_AHEAD + 100_000
    world.threads.run()
    world.pass_time(2)
    # The answer was sent, and the input sent ahead was processed: an endless line.
    assert client.transport.take() == (
        b"-ERR [AUTH] authentication failed\r\n-ERR line too long\r\n"
    )
    assert client.transport.half_closed
    assert client.transport.reading
    client.lose()
    assert backpressure.used == 0


def test_commands_sent_ahead_are_answered_and_reading_goes_on() -> None:
    world = World()
    client = world.pop3()
    client.send(b"USER ann\r\nPASS wrong\r\nCAPA\r\n")
    client.send(b"NOOP\r\n" * 3)
    assert world.context.backpressure.used == len(b"CAPA\r\n" + b"NOOP\r\n" * 3)
    world.threads.run()
    world.pass_time(2)
    assert client.transport.take().count(b"-ERR command not valid in this state") == 3
    assert world.context.backpressure.used == 0
    assert client.transport.reading


def test_a_pop3_client_that_does_not_read_counts_and_the_first_is_dropped() -> None:
    world = World(connections=100, of_network=100)
    world.context.backpressure.limit = 250
    clients = [world.pop3() for _ in range(3)]
    for client in clients:
        client.transport.unsent = 100
        client.session.pause_writing()
        client.send(b"")
    assert [client.transport.aborted for client in clients] == [True, False, False]
    assert any("memory is short" in line for line in world.lines)
    clients[0].lose()
    clients[1].session.resume_writing()
    assert world.context.backpressure.used == 100
    assert clients[1].transport.reading


def test_many_recipients_count_and_are_deferred_when_there_is_no_room() -> None:
    """Regression: a thousand for each of ten thousand connections took more memory than all
    messages."""
    world = World()
    context = world.context
    count = iter(range(10_000))
    context.users = SimpleNamespace(expand=lambda address: (Account(next(count) + 2, address),))  # type: ignore[assignment]
    context.budget.limit = 10 * limits.RECIPIENT_MEMORY
    recipients = Recipients()
    for number in range(limits.FREE_RECIPIENTS + 10):
        recipients.accept(context, f"a{number}@x.org")
    assert context.budget.used == context.budget.limit
    with pytest.raises(NoSpaceError):
        recipients.accept(context, "more@x.org")
    assert len(recipients.entries) == limits.FREE_RECIPIENTS + 10
    del recipients
    assert context.budget.used == 0


def test_an_smtp_client_far_ahead_of_a_commit_is_not_read_from_until_it_is_done() -> None:
    world = World()
    done: list[Any] = []
    world.context.layer.commit = lambda envelope, then: done.append(then)  # type: ignore[attr-defined]
    client = world.smtp()
    client.send(b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\n")
    client.send(b"A: b\r\n\r\n.\r\n")
    (then,) = done
    client.send(b"NOOP\r\n" * 3)
    assert world.context.backpressure.used == len(b"NOOP\r\n" * 3)
    assert client.transport.reading
    client.send(b"x" * limits.READ_AHEAD)
    assert not client.transport.reading
    then(None)
    assert client.transport.take().count(b"250 2.0.0 Ok") == 4
    assert world.context.backpressure.used == 0
    assert client.transport.reading


def test_an_smtp_client_that_does_not_read_counts_and_is_dropped_when_memory_is_short() -> None:
    world = World()
    client = world.smtp()
    world.context.backpressure.limit = 100
    client.send(b"EHLO c\r\n")
    client.transport.unsent = 101
    client.session.pause_writing()
    client.send(b"NOOP\r\n")
    assert client.transport.aborted
    assert any("memory is short" in line for line in world.lines)
    client.lose()
    assert world.context.backpressure.used == 0
    assert world.limiter.connections == 0


def test_sessions_keep_next_to_nothing_of_what_they_have_understood() -> None:
    """Regression: the last octets received were kept until the next ones: up to 256 KiB for each
    client."""
    world = World()
    client = world.smtp()
    to_data = b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\n"
    said = client.send(to_data + b"A: b\r\n\r\n" + b"x\r\n" * 20_000 + b".\r\n")
    assert b"250 2.0.0 Ok: queued" in said
    assert len(client.session._machine._lines.data) <= KEPT
    reader = world.pop3()
    reader.send(b"CAPA\r\n" * 90)
    assert reader.session._machine._lines._input == b""
    reader.send(b"NO")
    reader.send(b"OP\r\n")
    assert reader.session._machine._lines._input == b""
