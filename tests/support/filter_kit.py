"""A session with a filter, without sockets or hub: what it passes to its layer.

Rules of this file: the session, the chain and the header are the hub's own; the filter answers at
once, so that a few turns of a loop are enough.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Self

from metad.filters.base import DEFAULT, Filter, Message, Verdict
from metad.filters.chain import FilterChain, Rules
from metad.sessions.smtp_filtered import FilteredSmtpSession
from tests.support.session_kit import World

RULES = Rules(10.0, False, "mx.example.org", "+junk", mixed_defer=True)
MARKED = Verdict(
    add=(("X-Spam", "Yes"), ("X-Long", "word " * 60), ("X-Score", "7.5")), remove=(("X-Old", 0),)
)
ENVELOPE = b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
# Forged fields, fields that a filter removes, and fields that stay.
HEADER = b"X-Spam: No\r\nX-Old: 1\r\nSubject: x\r\nx-old: 2\r\n folded\r\nDate: today\r\n\r\n"


class Fixed(Filter):
    name = "fixed"

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.bodies: list[bytes] = []

    async def message(self, message: Message) -> Verdict:
        self.bodies.append(await message.body.read())
        return self.verdict


class Pieces:
    """A layer's part of a message that comes in pieces."""

    in_memory = True

    def __init__(self, given: list[tuple[Any, bytes]]) -> None:
        self._given = given
        self._written: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._written.append(chunk)

    def chunks(self) -> list[bytes]:
        return self._written

    def abort(self) -> None:
        self._written.clear()

    def commit(self, envelope: Any, done: Any) -> None:
        self._given.append((envelope, b"".join(self._written)))
        done(None)


class FilterWorld(World):
    """`given`: what the layer got, trace and body, of each message."""

    def __init__(self, verdict: Verdict = MARKED) -> None:
        super().__init__()
        self.session = FilteredSmtpSession
        self.given: list[tuple[Any, bytes]] = []
        self.turns = asyncio.new_event_loop()
        self.filter = Fixed(verdict)
        context: Any = self.context
        context.loop = self.turns
        context.policies.preferences = lambda accounts: DEFAULT
        context.filters = FilterChain([self.filter], RULES, self.lines.append)
        context.layer.deliver = self._deliver
        context.layer.begin = lambda: Pieces(self.given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.turns.close()

    def _deliver(self, envelope: Any, body: bytes, done: Any) -> None:
        self.given.append((envelope, body))
        done(None)

    def settle(self) -> None:
        """Until every question is answered."""
        for _ in range(20):
            self.turns.run_until_complete(asyncio.sleep(0))

    def send(self, wire: bytes) -> bytes:
        """A message over a new session; the replies to its end."""
        client = self.smtp()
        client.send(ENVELOPE)
        self.settle()
        client.transport.take()
        client.send(wire)
        self.settle()
        replies: bytes = client.transport.take()
        client.session.connection_lost(None)
        return replies

    def shape(self, body: bytes) -> list[bytes]:
        """A message of the store's campaigns as a filter changed it: trace and header, rest."""
        text = re.sub(rb"(.{2,70})", rb"\1\r\n", body.hex().encode())
        self.send(HEADER + text + b"\r\n.\r\n")
        envelope, rest = self.given.pop()
        trace: bytes = envelope.trace
        assert trace.startswith(b"X-Spam: Yes\r\nX-Long: word ")
        assert b"X-Old" not in trace
        assert b"X-Spam: No" not in trace
        assert trace.endswith(b"\r\nSubject: x\r\nDate: today\r\n\r\n")
        return [trace, rest]
