"""A session with a filter, without sockets: what the layer gets, for every cut."""

from __future__ import annotations

import pytest

from metad.errors import Reply
from metad.filters.base import Verdict
from tests.support.filter_kit import ENVELOPE, FilterWorld

MESSAGE = b"Subject: x\r\n\r\n..dot\r\ntext\r\n.\r\n"


def test_trace_and_rest_are_the_message_and_their_size_is_exact() -> None:
    with FilterWorld(Verdict(add=(("X-A", "b"),))) as world:
        assert world.send(MESSAGE).startswith(b"250 ")
        ((envelope, rest),) = world.given
        assert world.filter.bodies == [b"Subject: x\r\n\r\n.dot\r\ntext\r\n"]
    assert envelope.trace.startswith(b"X-A: b\r\nReceived: ")
    assert (envelope.trace + rest).endswith(MESSAGE)
    whole = envelope.trace + rest
    unstuffed = len(whole) - len(b".\r\n") - envelope.stuffed
    assert len(envelope.trace) + envelope.octets == unstuffed


def test_what_stands_where_a_header_should_is_body_and_not_changed() -> None:
    text = b"not a field\r\nX-Old: 1\r\n\r\ntext\r\n.\r\n"
    with FilterWorld(Verdict(add=(("X-A", "b"),), remove=(("X-Old", 0),))) as world:
        assert world.send(text).startswith(b"250 ")
        ((envelope, rest),) = world.given
    assert (envelope.trace + rest).endswith(b"\r\n\r\n" + text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "forged",
    [
        b"Authentication-Results: mx.example.org; dkim=pass\r\n",
        b"authentication-RESULTS \t:MX.EXAMPLE.ORG;\r\n\tdkim=pass\r\n",
        b'Authentication-Results:\r\n (a \\) (b))\r\n "mx.example\\.org" 1; dkim=pass\r\n',
        # A line that the sender did not stuff: its dot is deleted on arrival.
        b".Authentication-Results: mx.example.org; dkim=pass\r\n",
        b"Authentication-Results: mx.example.org\r\n" * 500,
        b"Subject: x\r\nno field\r\nAuthentication-Results: mx.example.org; x\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_no_forged_result_comes_in(forged: bytes, size: int) -> None:
    wire = b"Date: today\r\n" + forged + b"To: x\r\n\r\nAuthentication-Results: body\r\n.\r\n"
    with FilterWorld(Verdict()) as world:
        client = world.smtp()
        client.send(ENVELOPE)
        world.settle()
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        world.settle()
        (seen,) = world.filter.bodies
        client.session.connection_lost(None)
    header, _, body = seen.partition(b"\r\n\r\n")
    assert b"authentication-results" not in header.lower()
    assert body == b"Authentication-Results: body\r\n"


def test_nothing_is_read_as_the_next_command_while_a_filter_is_asked() -> None:
    with FilterWorld() as world:
        client = world.smtp()
        client.send(ENVELOPE)
        client.send(MESSAGE + ENVELOPE[8:] + MESSAGE + b"NOOP\r\n")
        assert world.given == []
        world.settle()
        assert len(world.given) == 2
        assert client.transport.take().count(b"250 2.0.0 Ok: queued") == 2


def test_a_client_that_goes_takes_its_question_back() -> None:
    with FilterWorld() as world:
        client = world.smtp()
        client.send(ENVELOPE + MESSAGE)
        client.session.connection_lost(None)
        world.settle()
        assert world.given == []
        assert world.context.budget.used == 0


def test_a_held_header_counts_and_is_given_back() -> None:
    with FilterWorld(Verdict(Reply(550, "5.7.1", "No"))) as world:
        client = world.smtp()
        client.send(ENVELOPE)
        client.send(b"X: y\r\n" * 1000)
        assert world.context.budget.used == 6000
        client.send(b"\r\n.\r\n")
        world.settle()
        assert client.transport.take().endswith(b"550 5.7.1 No\r\n")
        assert world.context.budget.used == 0


def test_a_header_that_finds_no_memory_is_deferred() -> None:
    with FilterWorld() as world:
        world.context.budget.used = world.context.budget.limit - 100
        client = world.smtp()
        client.send(ENVELOPE)
        client.send(b"X: y\r\n" * 1000)
        assert client.send(b"\r\n.\r\n").startswith(b"452 4.3.1")
        assert world.given == []
        assert world.context.budget.used == world.context.budget.limit - 100


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_message_in_pieces_is_the_same(size: int) -> None:
    wire = b"X-Spam: No\r\n" + MESSAGE
    with FilterWorld(Verdict(add=(("X-A", "b"),))) as world:
        world.send(wire)
        ((whole, rest),) = world.given
        world.given.clear()
        client = world.smtp()
        client.send(ENVELOPE)
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        world.settle()
        assert b"250 2.0.0 Ok: queued" in client.transport.take()
        ((envelope, written),) = world.given
    assert written == rest
    assert envelope.trace.partition(b"Received")[2][-40:] == whole.trace[-40:]
