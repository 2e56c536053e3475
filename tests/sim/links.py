"""The links of a simulated process: metad.cluster.link over the simulated network.

It stands for metad.cluster.transport, which has sockets, TLS and asyncio.  The rest is real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metad.cluster.answers import Done, LinkFailed
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.view import Membership
from metad.limits import CLUSTER_LONGEST_REDIAL, CLUSTER_REDIAL
from metad.system.backoff import Backoff
from metad.system.osio import Buffer
from tests.sim.network import Network

if TYPE_CHECKING:
    from tests.sim.process import Loop, Process

TICK_SECONDS = 0.25
REDIAL = Backoff(CLUSTER_REDIAL, CLUSTER_LONGEST_REDIAL)


def fingerprint_of(number: int) -> str:
    """The certificate of a node; as in tests.cluster.views."""
    return f"{number:064x}"


class SimLinks:
    """All links of one process: what metad.cluster.transport.Links is to a real one."""

    def __init__(self, process: Process, loop: Loop, network: Network, node: Node) -> None:
        self._process = process
        self._loop = loop
        self._network = network
        self._node = node
        self.number = node.number
        self.fingerprint = fingerprint_of(node.number)
        self._dialed: dict[int, Link] = {}
        self._open: list[Link] = []
        self._failures: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        self._is_closed = False
        self.arrived = 0  # when what is being read came here
        self.on_heard: Callable[[float], None] = lambda seconds: None
        self._tick()

    @property
    def is_dead(self) -> bool:
        return self._process.dead

    def _is_heard(self) -> bool:
        """Whether some other node hears this one now, and this one hears it."""
        me, cuts = self.number, self._network.cuts
        return any(
            link.is_ready and not cuts & {(me, link.peer), (link.peer, me)} for link in self._open
        )

    def on_loop(self, call: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(call)

    def feed(self, link: Link, data: bytes) -> None:
        """`data` is in the kernel's buffer now, and read when the loop comes to it."""
        arrived = self._network.sim.clock.monotonic

        def read() -> None:
            self.arrived = arrived
            link.feed(data)

        self.on_loop(read)

    # -- as metad.cluster.transport.Links

    def request(
        self, member: int, kind: int, parts: Sequence[Buffer], done: Done, patience_s: float
    ) -> None:
        link = self._dialed.get(member)
        if link is None:
            found = self._dial(member)
            if isinstance(found, str):
                done(LinkFailed(found))
                return
            link = found
        link.request(kind, parts, done, patience_s)

    def dial(self, member: int) -> None:
        if member not in self._dialed:
            self._dial(member)

    def flush(self) -> bool:
        """What is written is on its way at once."""
        return False

    def is_up(self, member: int) -> bool:
        link = self._dialed.get(member)
        return link is not None and link.is_ready

    def serve(self, _: object = None) -> None:
        self._network.listening.setdefault(self.number, []).append(self)

    def accepted(self, number: int) -> Link:
        """For the network."""
        link = Link(self._node, self._ended, 0, f"127.0.0.{number}")
        self._open.append(link)
        return link

    def close(self) -> None:
        self._is_closed = True
        for link in list(self._open):
            link.close("shutting down")

    # -- inside

    def _dial(self, number: int) -> Link | str:
        if self._is_closed:
            return "shutting down"
        member = self._node.current_view().member(number)
        if member is None or member.state is Membership.REMOVED or number == self.number:
            return f"node {number} is not a member"
        if self._node.clock() < self._not_before.get(number, 0.0):
            return f"node {number} cannot be reached"
        link = Link(self._node, self._ended, number, member.address)
        self._dialed[number] = link
        self._open.append(link)
        self._network.dial(self, link, number)
        return link

    def _ended(self, link: Link) -> None:
        self._open.remove(link)
        number = link.peer
        if self._dialed.get(number) is link:
            del self._dialed[number]
            failures = 1 if link.was_ready else self._failures.get(number, 0) + 1
            self._failures[number] = failures
            self._not_before[number] = self._node.clock() + REDIAL.delay(failures)

    def _tick(self) -> None:
        if self._is_closed:
            return
        self._loop.call_later(TICK_SECONDS, self._tick)
        if self._is_heard():
            self.on_heard(TICK_SECONDS)
        for link in list(self._open):
            link.tick()
