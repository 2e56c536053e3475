"""The network between simulated nodes: connections that are ordered, slow, cut and broken.

Rules of this file:

* Within a connection everything arrives in order; across connections in any order.
* A cut is of a direction.  What is under way there waits, as TCP sends again; a connection whose
  end has given up may still bring what it sent before.
* What a killed process had written is sent by its kernel.  A machine without power sends nothing,
  not even that a connection is over.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.scheduler import NEVER, Owner

if TYPE_CHECKING:
    from metad.cluster.link import Link
    from tests.sim.links import SimLinks
    from tests.sim.simulation import Simulation

LATENCIES = (0.0002, 0.002, 0.05)  # seconds: of a connection, on the average
FULL = 4096  # unsent bytes above which a writer is told to pause
POLL_SECONDS = 0.05  # while something waits for a cut to end


class Chunk(NamedTuple):
    """`data` None: the end of the connection, for `reason`."""

    due: int
    data: bytes | None
    reason: str = ""


class End:
    """One end of a connection, and what is on its way to the other: the `Wire` of a link."""

    def __init__(self, network: Network, links: SimLinks, link: Link, latency: float) -> None:
        self._network = network
        self.links = links
        self.link = link
        self.node = links.number
        self.latency = latency
        self.dialer = 0  # the node that made the connection
        self.other: End
        self.chunks: deque[Chunk] = deque()
        self.unsent = 0
        self.paused = False
        self.is_closed = False
        self.is_connected = False

    @property
    def is_over(self) -> bool:
        """Nothing comes any more, either way."""
        other = self.other
        return self.is_closed and other.is_closed and not (self.chunks or other.chunks)

    # -- what a link calls

    def write(self, data: bytes) -> None:
        if self.is_closed:
            return
        for piece in self._network.cut_up(bytes(data)):
            self.put(piece)
        if self.unsent > FULL and not self.paused:
            self.paused = True
            self.link.pause()

    def close(self) -> None:
        """What was written is sent, then the end."""
        if not self.is_closed:
            self._ends()
            self.put(None, "closed by the other side")

    def abort(self) -> None:
        """Of what is under way some arrives, perhaps, and perhaps the end."""
        if not self.is_closed:
            self._lose_some()
            self.close()

    # -- what the network does

    def lose_power(self) -> None:
        self._ends()
        self._lose_some()

    def _ends(self) -> None:
        self.is_closed = self._network.closes = True

    def _lose_some(self) -> None:
        for _ in range(self._network.random.randint(0, len(self.chunks))):
            self.chunks.pop()

    def put(self, data: bytes | None, reason: str = "") -> None:
        due = self._network.later(self.latency)
        if self.chunks:
            due = max(due, self.chunks[-1].due)
        self.chunks.append(Chunk(due, data, reason))
        self._network.none_until = min(self._network.none_until, due)
        self.unsent += len(data or b"")

    def deliver(self, chunk: Chunk) -> None:
        """A chunk of this end's arrives at the other."""
        other = self.other
        self.unsent -= len(chunk.data or b"")
        if self.paused and self.unsent <= FULL // 2:
            self.paused = False
            self.links.on_loop(self.link.resume)
        if other.links.is_dead:
            if chunk.data is not None and not self.is_closed and other.is_closed:
                other.put(None, "connection reset by peer")
            return
        if chunk.data is None:
            other._ends()
            other.links.on_loop(partial(other.link.close, chunk.reason))
        elif not other.is_closed:
            other.links.feed(other.link, chunk.data)


class Network(Owner):
    """`cuts`: pairs of nodes, of whom the first does not reach the second; `held`: nodes on whose
    own connections to others nothing arrives."""

    name = "network"

    def __init__(self, sim: Simulation) -> None:
        super().__init__()
        self.sim = sim
        self.random = random.Random(f"network {sim.plan.seed}")
        self._cuts: set[tuple[int, int]] = set()
        self.held: set[int] = set()
        self.listening: dict[int, list[SimLinks]] = {}
        self.ends: list[End] = []
        self._events: list[tuple[int, int, int, int, Callable[[], None]]] = []
        self._made = 0
        self.none_until = 0  # nothing arrives before that time, unless something is sent or changes
        self.closes = False  # there are ends that are closed
        self._deaths = 0
        self.delivered = 0
        self._task = sim.scheduler.spawn("network", self, self._run)

    # -- for tests

    @property
    def cuts(self) -> set[tuple[int, int]]:
        return self._cuts

    @cuts.setter
    def cuts(self, cuts: set[tuple[int, int]]) -> None:
        self._cuts = cuts
        self.none_until = 0

    def cut(self, one: int, other: int, *, both: bool = True) -> None:
        self.cuts = self._cuts | ({(one, other), (other, one)} if both else {(one, other)})

    def heal(self) -> None:
        self.cuts = set()
        self.held.clear()

    def stall(self, seconds: float) -> None:
        """What is under way now arrives so much later."""
        for end in self.ends:
            if self.random.random() < 0.5:
                more = [chunk._replace(due=chunk.due + int(seconds * 1e9)) for chunk in end.chunks]
                end.chunks = deque(more)

    def power_fails(self, node: int) -> None:
        """Before its processes are ended."""
        for end in self.ends:
            if end.node == node:
                end.lose_power()

    # -- for links

    def later(self, latency: float) -> int:
        """When something arrives that is sent now."""
        return self.sim.clock.monotonic + int(self.random.expovariate(1 / latency) * 1e9)

    def cut_up(self, data: bytes) -> list[bytes]:
        """TCP keeps no boundaries."""
        if len(data) < 2 or self.random.random() < 0.7:
            return [data]
        at = self.random.randrange(1, len(data))
        return [data[:at], data[at:]]

    def dial(self, links: SimLinks, link: Link, number: int) -> None:
        """Connect: the link is told, later, that it is connected or refused; or it never is."""
        latency = self.random.choice(LATENCIES)
        self._after(latency, links.number, number, lambda: self._arrive(links, link, number))

    def _arrive(self, links: SimLinks, link: Link, number: int) -> None:
        """A connection arrives at the machine of `number`."""
        latency = self.random.choice(LATENCIES)
        there = [one for one in self.listening.get(number, ()) if not one.is_dead]
        if not there:
            refuse = partial(links.on_loop, partial(link.close, "connection refused"))
            self._after(latency, number, links.number, refuse)
            return
        taker = self.random.choice(there)
        taker.on_loop(lambda: self._accept(links, link, taker, latency))

    def _accept(self, links: SimLinks, link: Link, taker: SimLinks, latency: float) -> None:
        """The handshake is done, as the accepting process sees it."""
        mine = End(self, links, link, latency)
        theirs = End(self, taker, taker.accepted(links.number), latency)
        mine.other, theirs.other = theirs, mine
        mine.dialer = theirs.dialer = links.number
        self.ends += [mine, theirs]
        self.closes = self.closes or links.is_dead
        self._after(latency, taker.number, links.number, lambda: self._dialed(mine))
        self._connects(theirs)
        theirs.link.connected(theirs, links.fingerprint)

    def _dialed(self, end: End) -> None:
        if end.links.is_dead:
            self._connects(end)
            end.close()
        else:
            end.links.on_loop(lambda: self._connected(end))

    def _connected(self, end: End) -> None:
        self._connects(end)
        if end.link.is_closed:
            end.close()
        else:
            end.link.connected(end, end.other.links.fingerprint)

    def _connects(self, end: End) -> None:
        end.is_connected = True
        self.none_until = 0

    # -- its own task

    def _after(self, latency: float, one: int, other: int, what: Callable[[], None]) -> None:
        """Do something when a packet from `one` arrives at `other`."""
        self._made += 1
        due = self.later(latency)
        self.none_until = min(self.none_until, due)
        self._events.append((due, self._made, one, other, what))
        self._events.sort(key=lambda event: event[:2])

    def _run(self) -> None:
        scheduler = self.sim.scheduler
        while True:
            if not self._has_due():
                scheduler.wait(self._has_due, self._until_due())
            self._close_dead()
            self._fire()
            scheduler.point("network")

    def _has_due(self) -> bool:
        """Asked at every switch: so what it finds holds until something is sent or changes."""
        now = self.sim.clock.monotonic
        if now < self.none_until:
            return False
        soonest = NEVER
        for at, _, one, other, _ in self._events:
            if at > now:
                soonest = min(soonest, at)
            elif (one, other) not in self._cuts:
                return True
        for end in self.ends:
            if end.chunks:
                due = end.chunks[0].due
                if due > now:
                    soonest = min(soonest, due)
                elif self._is_due(end, now):
                    return True
        if not self.held:  # a set that others change
            self.none_until = soonest
        return False

    def _is_due(self, end: End, now: int) -> bool:
        return (
            bool(end.chunks)
            and end.chunks[0].due <= now
            and end.other.is_connected
            and (end.node, end.other.node) not in self._cuts
            and end.dialer not in self.held
        )

    def _until_due(self) -> float:
        """Seconds until the next arrival."""
        now = self.sim.clock.monotonic
        soonest, waits = now + int(1e9), False
        for event in self._events:
            if event[0] <= now:
                waits = True
            elif event[0] < soonest:
                soonest = event[0]
        for end in self.ends:
            if end.chunks:
                due = end.chunks[0].due
                if due <= now:
                    waits = True
                elif due < soonest:
                    soonest = due
        if waits:  # for a cut to end
            soonest = min(soonest, now + int(POLL_SECONDS * 1e9))
        return (soonest - now) / 1e9

    def _fire(self) -> None:
        """One arrival of those that are due."""
        now = self.sim.clock.monotonic
        for event in self._events:
            if event[0] <= now and event[2:4] not in self._cuts:
                self._events.remove(event)
                event[4]()
                return
        due = [
            end
            for end in self.ends
            if end.chunks and end.chunks[0].due <= now and self._is_due(end, now)
        ]
        if due:
            end = self.random.choice(due)
            self.delivered += 1
            end.deliver(end.chunks.popleft())

    def _close_dead(self) -> None:
        """The kernel closes what a dead process had open."""
        if not self.closes and self._deaths == self.sim.deaths:
            return
        self._deaths = self.sim.deaths
        for end in self.ends:
            if not end.is_closed and end.links.is_dead:
                end.close()
        self.ends = [end for end in self.ends if not end.is_over]
        self.closes = any(end.is_closed for end in self.ends)
