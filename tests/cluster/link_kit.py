"""Two links over a pipe, without sockets; the clock is the test's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metad.cluster.answers import Answer, Refused
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.serving import Reply
from metad.cluster.view import Member, Membership, View
from metad.errors import ClusterError
from metad.system.osio import Buffer
from tests.cluster.views import make_member, make_view


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Station:
    """One node: its view, its log, what it was asked.  It answers at once unless `answers` is
    None: then `asked` has the replies."""

    def __init__(self, number: int, view: View, clock: Clock) -> None:
        self.number = number
        self.view = view
        self.lines: list[str] = []
        self.asked: list[tuple[int, bytes, Reply]] = []
        self.answers: Callable[[int, bytes], Sequence[Buffer] | Refused] | None = self.echo
        self.cannot_adopt: Exception | None = None
        self.node = Node(
            number=number,
            start=bytes([number] * 8),
            release="1.0",
            current_view=lambda: self.view,
            adopt=self.adopt,
            handler=self.handle,
            report=self.lines.append,
            clock=clock,
            hub_time_us=lambda: int(clock.now * 1e6),
        )

    def echo(self, kind: int, body: bytes) -> list[Buffer]:
        return [b"%d:" % kind, body]

    def adopt(self, view: View) -> None:
        if self.cannot_adopt is not None:
            raise self.cannot_adopt
        if view.epoch <= self.view.epoch:
            raise ClusterError("an older view")
        self.view = view

    def handle(self, kind: int, body: bytes, reply: Reply) -> None:
        self.asked.append((kind, body, reply))
        if self.answers is not None:
            reply(self.answers(kind, body))


@dataclass
class End:
    """One end of the pipe, as a link sees its transport.  `sent` is on its way to the other."""

    sent: deque[bytes] = field(default_factory=deque)
    everything: bytearray = field(default_factory=bytearray)
    closed: str = ""
    full_after: int = 0  # pause the link when so many writes are on their way; 0: never
    link: Link | None = None

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)
        self.everything += data
        if self.full_after and len(self.sent) >= self.full_after:
            self.link.pause()

    def close(self) -> None:
        self.closed = self.closed or "close"

    def abort(self) -> None:
        self.closed = self.closed or "abort"
        self.sent.clear()


class Pipe:
    """Node 1 has dialed node 2."""

    def __init__(self, first: View | None = None, second: View | None = None) -> None:
        self.clock = Clock()
        view = make_view(make_member(1), make_member(2))
        self.a = Station(1, first or view, self.clock)
        self.b = Station(2, second or first or view, self.clock)
        self.ended: list[Link] = []
        self.chop = 0  # hand over so many bytes at a time; 0: as they were written
        self.dial()

    def dial(self) -> Pipe:
        """A new connection, and new links."""
        self.dialer = Link(self.a.node, self.ended.append, 2, "127.0.0.3:7525")
        self.taker = Link(self.b.node, self.ended.append, 0, "127.0.0.2:40000")
        self.left, self.right = End(link=self.dialer), End(link=self.taker)
        return self

    def connect(self, dialer: str = f"{1:064x}", taker: str = f"{2:064x}") -> Pipe:
        """`dialer`, `taker`: the fingerprint that each shows."""
        self.dialer.connected(self.left, taker)
        self.taker.connected(self.right, dialer)
        self.run()
        return self

    def run(self) -> None:
        """Deliver until nothing is on its way."""
        while self.left.sent or self.right.sent:
            self.step(self.left, self.taker, self.right)
            self.step(self.right, self.dialer, self.left)

    def step(self, source: End, target: Link, answers: End) -> None:
        if not source.sent:
            return
        data = source.sent.popleft()
        if answers.closed == "abort":
            return
        size = self.chop or len(data)
        for at in range(0, len(data), size):
            target.feed(data[at : at + size])
        if source.full_after and len(source.sent) < source.full_after:
            source.link.resume()

    def pass_time(self, seconds: float, step: float = 0.25, *, deliver: bool = True) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += step
            self.dialer.tick()
            self.taker.tick()
            if deliver:
                self.run()

    def ask(
        self, body: bytes, kind: int = 16, patience: float = 5.0, link: Link | None = None
    ) -> list[Answer]:
        """A request of node 1 to node 2; the list gets its answer when it is there."""
        got: list[Answer] = []
        (link or self.dialer).request(kind, [body], got.append, patience)
        return got


def with_states(view: View, **states: Membership) -> tuple[Member, ...]:
    """The members of a view, node1="removed" and so on."""
    members = view.members
    for name, state in states.items():
        members = View.with_member(make_view(*members), int(name.removeprefix("node")), state=state)
    return members
