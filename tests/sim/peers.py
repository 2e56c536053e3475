"""Nodes that only have links: one process each, which asks, answers, and adopts views.

What a request's handler did is written down, so that a run can be judged: see test_links.py.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import NamedTuple

from metad.cluster.answers import Answer, Answered, EpochChanged, LinkFailed
from metad.cluster.frames import Kind
from metad.cluster.node import Node
from metad.cluster.serving import Reply
from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError
from metad.limits import CLUSTER_STOOD_STILL
from tests.cluster.views import make_member, make_view
from tests.sim.hub import Hub
from tests.sim.links import SimLinks
from tests.sim.network import Network
from tests.sim.plan import Plan
from tests.sim.process import KILLED, Loop, Process
from tests.sim.scheduler import Owner
from tests.sim.simulation import Simulation
from tests.support.power_campaign import scratch
from tests.support.power_kit import MODES

PATIENCE_SECONDS = 2.0
QUIET_SECONDS = 20.0
STEPS = 120


class Asked(NamedTuple):
    """One request: who asked whom, under which epoch."""

    by: int
    whom: int
    epoch: int


class Told(NamedTuple):
    """An answer, and the epoch of the asker when it came."""

    answer: Answer
    epoch: int


class Peer(Process):
    """One process of a node."""

    role = "peer"

    def __init__(self, world: World, hub: Hub) -> None:
        super().__init__(hub, hub.free_row())
        self.world = world
        self.loop = Loop(self.scheduler)
        self.ready = False

    def work(self) -> int:
        hub = self.hub
        self._file = ViewFile(self.osio, str(hub.data / "cluster" / "view"))
        view = self._file.load()
        assert view is not None
        used = self.world.used.get(hub.node, 0)
        assert view.epoch >= used, f"node {hub.node} is in {view.epoch} after {used}"
        self.view = view
        node = Node(
            number=hub.node,
            start=self.pid.to_bytes(8, "big"),
            release="1",
            current_view=lambda: self.view,
            adopt=self.adopt,
            handler=self._handle,
            report=self.report,
            clock=self.now,
            hub_time_us=lambda: self.osio.boottime_ns() // 1000,
        )
        self.links = SimLinks(self, self.loop, self.world.network, node)
        self.links.serve()
        self.ready = True
        self.loop.run()
        return 0

    def adopt(self, view: View) -> None:
        self._file.keep(view)
        assert view.epoch >= self.view.epoch, "an epoch went back"
        self.view = view
        self.world.saw(view)
        self.world.used[self.hub.node] = view.epoch

    def _handle(self, kind: int, body: bytes, reply: Reply) -> None:
        age = (self.hub.sim.clock.monotonic - self.links.arrived) / 1e9
        assert age < CLUSTER_STOOD_STILL + 0.25, f"a request is carried out {age:.1f} s late"
        self.world.carried_out(body, self.hub.node, self.view.epoch)
        if self.world.random.random() < 0.5:
            reply((b"done ", body))
        else:
            self.loop.call_later(self.world.random.random(), lambda: reply((b"done ", body)))

    def ask(self, whom: int) -> None:
        """On the loop."""
        world = self.world
        body = world.next_body()
        world.asked[body] = Asked(self.hub.node, whom, self.view.epoch)

        def done(answer: Answer) -> None:
            world.told.setdefault(body, []).append(Told(answer, self.view.epoch))

        self.links.request(whom, Kind.COPY, (body,), done, PATIENCE_SECONDS)


class World:
    """Some nodes, and what became of their requests."""

    def __init__(self, seed: int, nodes: int) -> None:
        rng = random.Random(f"peers {seed}")
        plan = Plan(seed, (), clock_step=rng.choice((1_000, 20_000)), stay=rng.choice((1.0, 4.0)))
        self.sim = Simulation(plan)
        self.random = rng
        self.nodes = nodes
        self.asked: dict[bytes, Asked] = {}
        self.told: dict[bytes, list[Told]] = {}
        self.done: dict[bytes, tuple[int, int]] = {}
        self.views: dict[int, View] = {}
        self.used: dict[int, int] = {}  # the epoch that a node serves in
        self.died = 0
        self._bodies = 0
        self._restarts = Owner()

    # -- what peers tell

    def next_body(self) -> bytes:
        self._bodies += 1
        size = self.random.choice((8, 100, 3000))
        return self._bodies.to_bytes(8, "big") * (size // 8)

    def carried_out(self, body: bytes, node: int, epoch: int) -> None:
        """Once, by the node that was asked, under the epoch that it was asked under."""
        asked = self.asked[body]
        assert body not in self.done, f"carried out twice: {asked}"
        assert (node, epoch) == (asked.whom, asked.epoch), f"{asked}: by {node} in {epoch}"
        self.done[body] = node, epoch

    def saw(self, view: View) -> None:
        known = self.views.setdefault(view.epoch, view)
        assert known.digest == view.digest, f"two views of epoch {view.epoch}"

    # -- a run

    def go(self, steps: int = STEPS) -> None:
        base = scratch()
        try:
            with self.sim as sim:
                self.network = Network(sim)
                view = make_view(*(make_member(n) for n in range(1, self.nodes + 1)))
                self.saw(view)
                self.hubs = [self._make_hub(base, view, n) for n in range(1, self.nodes + 1)]
                director = sim.scheduler.spawn("director", Owner(), lambda: self._direct(steps))
                sim.scheduler.run(lambda: director.ended)
        finally:
            shutil.rmtree(base)
        self._judge()

    def _make_hub(self, base: Path, view: View, number: int) -> Hub:
        hub = Hub(self.sim, base / f"node-{number}", node=number)
        hub.clock.ahead = self.random.randrange(10**15)
        hub.join(view)
        self._start(hub)
        return hub

    def _start(self, hub: Hub) -> None:
        Peer(self, hub).start()

    def peer(self, hub: Hub) -> Peer | None:
        return next((one for one in hub.processes if isinstance(one, Peer) and one.ready), None)

    def _direct(self, steps: int) -> None:
        scheduler = self.sim.scheduler
        for _ in range(steps):
            self._act(self.random.random(), self.random.choice(self.hubs))
            scheduler.pause(self.random.choice((0.0, 0.001, 0.01, 0.3)))
        self.sim.note("quiet")
        self.network.heal()
        for hub in self.hubs:
            self._revive(hub)
        scheduler.pause(QUIET_SECONDS)
        for _ in range(self.nodes):  # the first rounds bring links and the newest view
            self.quiet_from = self._bodies
            for hub in self.hubs:
                self._ask(hub)
            scheduler.pause(2 * PATIENCE_SECONDS)

    def _revive(self, hub: Hub) -> None:
        if not any(isinstance(one, Peer) for one in hub.processes):
            self._start(hub)

    def _act(self, luck: float, hub: Hub) -> None:
        rng, network = self.random, self.network
        peer = self.peer(hub)
        one, other = rng.sample(range(1, self.nodes + 1), 2)
        if peer is None:
            self._revive(hub)
        elif luck < 0.6:
            self._ask(hub)
        elif luck < 0.7:
            newest = self.views[max(self.views)]
            if peer.view is newest or rng.random() < 0.3:
                self._change(peer, newest)
        elif luck < 0.76:
            network.cut(one, other, both=rng.random() < 0.5)
        elif luck < 0.84:
            network.heal()
        elif luck < 0.88:
            network.stall(rng.choice((0.5, 2.0, 5.0)))
        elif luck < 0.92:
            self.sim.scheduler.stop(peer, rng.choice((0.5, 1.5, 6.0)))
        elif luck < 0.96:
            self.died += 1
            if rng.random() < 0.5:
                peer.end(KILLED)
            else:
                network.power_fails(hub.node)
                hub.cut_power(rng, rng.choice(MODES))
        else:
            self.sim.scheduler.pause(rng.choice((1.0, 4.0)))

    def _change(self, peer: Peer, newest: View) -> None:
        """One node makes the next view, as the winner of a compare-and-swap does."""
        view = newest.changed(alone=self.random.choice(("refuse", "accept")))
        self.saw(view)
        peer.loop.call_soon_threadsafe(lambda: self._adopt(peer, view))

    def _adopt(self, peer: Peer, view: View) -> None:
        try:
            peer.adopt(view)
        except ClusterError:
            assert peer.view.epoch >= view.epoch

    def _ask(self, hub: Hub) -> None:
        peer = self.peer(hub)
        whom = self.random.choice([n for n in range(1, self.nodes + 1) if n != hub.node])
        if peer is not None:
            peer.loop.call_soon_threadsafe(lambda: peer.ask(whom))

    # -- what must hold

    def _judge(self) -> None:
        for body, told in self.told.items():
            assert len(told) == 1, f"{self.asked[body]} was answered {len(told)} times"
            self._judge_answer(body, told[0])
        unanswered = len(self.asked) - len(self.told)
        assert not unanswered or self.died, f"{unanswered} requests were never answered"
        late = [body for body in self.told if int.from_bytes(body[:8], "big") > self.quiet_from]
        assert len(late) == self.nodes
        for body in late:
            answer = self.told[body][0].answer
            assert isinstance(answer, Answered), f"in quiet: {self.asked[body]}: {answer}"

    def _judge_answer(self, body: bytes, told: Told) -> None:
        asked = self.asked[body]
        if isinstance(told.answer, Answered):
            assert told.answer.body == b"done " + body
            assert self.done[body] == (asked.whom, asked.epoch)
            assert told.epoch == asked.epoch, f"{asked} is believed in epoch {told.epoch}"
        else:
            assert isinstance(told.answer, EpochChanged | LinkFailed), told.answer
