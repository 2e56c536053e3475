"""How a session handles a message, and its layer's results."""

from __future__ import annotations

from typing import Any

import pytest

from metad.errors import NoSpaceError
from metad.layers.base import Envelope
from tests.support.session_kit import World

TO_DATA = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
BODY = b"Subject: x\r\n\r\ntext\r\n.\r\n"


class Taken:
    """A layer that keeps its input."""

    def __init__(self, world: World) -> None:
        self.envelopes: list[Envelope] = []
        world.context.layer.deliver = self.deliver

    def deliver(self, envelope: Envelope, body: bytes, done: Any) -> None:
        assert body == BODY
        self.envelopes.append(envelope)
        done(None)


def test_the_trace_names_the_protocol_of_the_last_greeting() -> None:
    """A one-letter string is always the same object, so identity of such words proves nothing."""
    world = World()
    taken = Taken(world)
    client = world.smtp()
    client.send(b"HELO x\r\n" + TO_DATA + BODY)
    client.send(b"EHLO x\r\n" + TO_DATA + BODY)
    client.send(b"EHLO y\r\n" + TO_DATA + BODY)
    traces = [each.trace for each in taken.envelopes]
    assert [b" with SMTP id" in each for each in traces] == [True, False, False]
    assert [b" with ESMTP id" in each for each in traces] == [False, True, True]
    assert [each.helo for each in taken.envelopes] == ["x", "x", "y"]


def test_a_message_with_smtputf8_changes_only_its_own_trace() -> None:
    world = World()
    taken = Taken(world)
    client = world.smtp()
    utf8 = TO_DATA.replace(b"<a@example.org>", b"<a@example.org> SMTPUTF8")
    client.send(b"EHLO x\r\n" + TO_DATA + BODY + utf8 + BODY + TO_DATA + BODY)
    names = [each.trace.split(b" with ")[1].split()[0] for each in taken.envelopes]
    assert names == [b"ESMTP", b"UTF8SMTP", b"ESMTP"]


@pytest.mark.slow
def test_very_many_messages_in_one_piece_to_a_layer_that_decides_at_once() -> None:
    world = World()
    taken = Taken(world)
    client = world.smtp()
    said = client.send(b"EHLO x\r\n" + (TO_DATA + BODY) * 2000)
    assert len(taken.envelopes) == 2000
    assert said.count(b"queued as") == 2000


@pytest.mark.parametrize("error", [ValueError("a bug"), NoSpaceError()])
def test_a_layer_that_raises_after_its_answer_changes_nothing(error: Exception) -> None:
    world = World()

    def deliver(envelope: Envelope, body: bytes, done: Any) -> None:
        done(None)
        raise error

    world.context.layer.deliver = deliver
    client = world.smtp()
    said = client.send(b"EHLO x\r\n" + TO_DATA + BODY + b"NOOP\r\n")
    assert said.count(b"queued as") == 1
    assert said.endswith(b"250 2.0.0 Ok\r\n")
    assert any("after its answer" in line for line in world.lines)


def test_a_layer_that_decides_twice_is_heard_once() -> None:
    world = World()

    def deliver(envelope: Envelope, body: bytes, done: Any) -> None:
        done(NoSpaceError())
        done(None)

    world.context.layer.deliver = deliver
    said = world.smtp().send(b"EHLO x\r\n" + TO_DATA + BODY)
    assert said.count(b"452 4.3.1") == 1
    assert b"queued as" not in said
