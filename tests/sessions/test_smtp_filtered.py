"""A session with a filter, without sockets: what the layer is given, for every cut."""

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
        written: list[bytes] = []
        given: list[bytes] = []

        class Kept:
            in_memory = True

            def write(self, chunk: bytes) -> None:
                written.append(chunk)

            def chunks(self) -> list[bytes]:
                return written

            def abort(self) -> None:
                raise AssertionError

            def commit(self, envelope: object, done: object) -> None:
                given.append(envelope.trace)  # type: ignore[attr-defined]
                done(None)  # type: ignore[operator]

        world.context.layer.begin = Kept  # type: ignore[method-assign,assignment]
        client = world.smtp()
        client.send(ENVELOPE)
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        world.settle()
        assert b"250 2.0.0 Ok: queued" in client.transport.take()
        if world.given:
            ((envelope, body),) = world.given
            given, written = [envelope.trace], [body]
    assert b"".join(written) == rest
    assert given[0].partition(b"Received")[2][-40:] == whole.trace[-40:]
