"""A session that asks filters before the message: what each refusal does to it."""

from __future__ import annotations

from typing import Any

import pytest

from metad.errors import Reply
from metad.filters.base import Filter, Session
from metad.filters.chain import FilterChain
from tests.support.filter_kit import RULES, FilterWorld

NO, LATER = Reply(550, "5.7.1", "No"), Reply(451, "4.7.1", "Later")
MESSAGE = b"Subject: x\r\n\r\ntext\r\n.\r\n"


class Asked(Filter):
    """Refuses at the stage in `refuses`; records its questions."""

    name = "asked"

    def __init__(self, when: str = "", reply: Reply | None = None) -> None:
        self.when, self.reply = when, reply
        self.calls: list[tuple[str, Session]] = []

    def _answer(self, when: str, session: Session) -> Any:
        self.calls.append((when, session))
        return self.reply if when == self.when else None

    def connected(self, session: Session) -> Any:
        return self._answer("connected", session)

    async def greeted(self, session: Session) -> Any:
        return self._answer("greeted", session)

    def sender(self, session: Session) -> Any:
        return self._answer("sender", session)

    async def recipient(self, session: Session, address: str) -> Any:
        return self._answer(f"recipient {address}", session)


class AskingWorld(FilterWorld):
    def __init__(self, when: str = "", reply: Reply | None = None) -> None:
        super().__init__()
        self.asked = Asked(when, reply)
        context: Any = self.context
        context.filters = FilterChain([self.asked], RULES, self.lines.append)

    def open(self) -> Any:
        """A client, and its immediate replies."""
        client = self.smtp()
        self.settle()
        return client

    def say(self, client: Any, octets: bytes) -> bytes:
        """The replies, once all questions are answered."""
        now: bytes = client.send(octets)
        self.settle()
        later: bytes = client.transport.take()
        return now + later


def codes(replies: bytes) -> list[bytes]:
    return [line[:3] for line in replies.split(b"\r\n")[:-1] if line[3:4] == b" "]


def test_every_moment_is_asked_with_what_is_known_then() -> None:
    with AskingWorld() as world:
        client = world.open()
        assert client.transport.take().startswith(b"220 ")
        world.say(client, b"EHLO x.example\r\n")
        world.say(client, b"MAIL FROM:<a@example.org>\r\n")
        world.say(client, b"RCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\n")
        assert codes(world.say(client, b"DATA\r\n")) == [b"354"]
        assert codes(world.say(client, MESSAGE + b"MAIL FROM:<>\r\n")) == [b"250", b"250"]
        calls = world.asked.calls
    assert [when for when, _ in calls] == [
        "connected", "greeted", "sender", "recipient b@example.org", "recipient c@example.org",
        "sender",
    ]  # fmt: skip
    bare = Session("192.0.2.1", "smtp")
    assert calls[0][1] == bare
    assert calls[2][1] == bare._replace(helo="x.example", sender="a@example.org")
    assert calls[-1][1].sender == ""


def test_pipelined_commands_wait_in_order() -> None:
    with AskingWorld("recipient c@example.org", NO) as world:
        client = world.open()
        client.transport.take()
        replies = world.say(
            client,
            b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n"
            b"RCPT TO:<c@example.org>\r\nDATA\r\n" + MESSAGE + b"NOOP\r\n",
        )
        assert codes(replies) == [b"250", b"250", b"250", b"550", b"354", b"250", b"250"]
        ((envelope, _),) = world.given
        assert [one.address for one in envelope.recipients] == ["b@example.org"]


@pytest.mark.parametrize(("reply", "code"), [(NO, b"554 5.7.1 No"), (LATER, b"421 4.7.1 Later")])
def test_a_refusal_of_the_connection_ends_it(reply: Reply, code: bytes) -> None:
    with AskingWorld("connected", reply) as world:
        client = world.open()
        assert client.transport.take() == code + b"\r\n"
        assert client.transport.half_closed or client.transport.closed


def test_who_talks_before_the_greeting_is_refused_though_a_filter_was_asked() -> None:
    with AskingWorld() as world:
        client = world.smtp()
        client.send(b"EHLO x\r\n")
        world.settle()
        assert client.transport.take().startswith(b"554 ")


@pytest.mark.parametrize("when", ["greeted", "sender"])
def test_a_refusal_at_helo_answers_mail(when: str) -> None:
    with AskingWorld(when, NO) as world:
        client = world.open()
        client.transport.take()
        assert codes(world.say(client, b"EHLO x\r\n")) == [b"250"]
        assert codes(world.say(client, b"MAIL FROM:<a@example.org>\r\n")) == [b"550"]
        assert codes(world.say(client, b"MAIL FROM:<a@example.org>\r\n")) == [b"550"]
        world.asked.when = ""
        world.say(client, b"EHLO y\r\n")
        assert codes(world.say(client, b"MAIL FROM:<a@example.org>\r\n")) == [b"250"]
        assert [name for name, _ in world.asked.calls].count("greeted") == 2
        assert codes(world.say(client, b"QUIT\r\n")) == [b"221"]


def test_a_hub_that_shuts_down_while_a_filter_is_asked() -> None:
    with AskingWorld() as world:
        client = world.smtp()
        world.context.draining = True
        client.session.drain()
        world.settle()
        assert codes(client.transport.take())[-1:] == [b"421"]


def test_a_command_refused_in_the_packet_before_the_next_mail_is_logged_with_its_own_sender() -> (
    None
):
    with AskingWorld() as world:
        client = world.open()
        world.say(client, b"EHLO x.example\r\n")
        begun = b"MAIL FROM:<a@example.org>\r\n"
        world.say(client, begun)
        world.say(client, b"RCPT TO:<b\r\nRSET\r\n" + begun.replace(b"a@", b"c@"))
        (line,) = (line for line in world.lines if "command=RCPT" in line)
        assert "from=<a@example.org>" in line
