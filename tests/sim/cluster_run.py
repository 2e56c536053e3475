"""A whole run of a cluster: operations and faults, then quiet, then the verdict on every node."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from metad.cluster.view import State, View
from tests.cluster.views import make_member, make_view
from tests.sim.cluster_clients import ClusterClients
from tests.sim.cluster_judge import ClusterJudge
from tests.sim.cluster_node import ClusterHub
from tests.sim.network import Network
from tests.sim.plan import BOXES, WAIT, Plan
from tests.sim.run import Verdict, at_rest
from tests.sim.scheduler import Owner
from tests.sim.simulation import Simulation
from tests.support.oracle import show
from tests.support.power_campaign import scratch

COPIES = 2
QUIET_SECONDS = 25.0
TRIES = 12


def first_view(seed: int, nodes: int) -> View:
    """Half of the seeds begin with a node that enters, empty, beside those that have everything."""
    if seed % 2:
        return make_view(*(make_member(number) for number in range(1, nodes + 1)))
    entering = make_member(nodes, State.ENTERING, healed=True)
    active = [make_member(number) for number in range(1, nodes)]
    return make_view(*active, entering, copies=min(COPIES, len(active)))


class ClusterRun:
    """One plan, run once; `go` raises AssertionError, or whatever metad raises."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan = plan
        self.trace: list[str] | None = [] if trace else None
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self.steps = 0

    def go(self) -> None:
        base = scratch()
        try:
            with Simulation(self.plan) as sim:
                sim.scheduler.trace = self.trace
                self.notes = sim.notes
                try:
                    self._go(sim, base)
                finally:
                    self.steps = sim.scheduler.steps
        finally:
            shutil.rmtree(base)

    def _go(self, sim: Simulation, base: Path) -> None:
        network = Network(sim)
        judge = ClusterJudge(sim)
        self.counts = judge.counts
        nodes = self.plan.nodes
        view = first_view(self.plan.seed, nodes)
        hubs = [ClusterHub(sim, base / f"node-{n}", n, view) for n in range(1, nodes + 1)]
        for hub in hubs:
            hub.network = network
            hub.judge = judge  # type: ignore[assignment]
            hub.start()
        clients = ClusterClients(hubs, network, judge)
        director = sim.scheduler.spawn("director", Owner(), lambda: self._direct(clients))
        sim.scheduler.run(lambda: director.ended)
        for hub in hubs:
            Verdict(hub, judge).give_store()  # type: ignore[arg-type]

    def _direct(self, clients: ClusterClients) -> None:
        scheduler = clients.sim.scheduler
        scheduler.wait(lambda: all(hub.serving for hub in clients.hubs))
        for op in self.plan.ops:
            task = clients.begin(op)
            if op.gap == WAIT:
                scheduler.wait(lambda task=task: task.ended)  # type: ignore[misc]
            else:
                for _ in range(op.gap):
                    scheduler.point("gap")
        scheduler.wait(lambda: not clients.tasks, 3600.0)
        assert not clients.tasks, f"clients wait for ever: {[one.name for one in clients.tasks]}"
        self._quiet(clients)

    def _quiet(self, clients: ClusterClients) -> None:
        """Nothing fails any more: until all have met."""
        sim, hubs = clients.sim, clients.hubs
        sim.note("quiet")
        sim.faults.off = True
        clients.network.heal()
        for hub in hubs:
            if hub.master is None or hub.master.dead:
                hub.crash()
                clients.start(hub)
        sim.scheduler.wait(lambda: all(at_rest(hub) for hub in hubs), 600.0)
        sim.scheduler.pause(QUIET_SECONDS)
        for hub in hubs:
            found = hub.durable_view()
            assert len(found.active) == len(hubs), found
            assert found.copies == found.read_copies == COPIES, found
            used = {worker.log.budget.used for worker in hub.workers()}
            assert used == {0}, f"memory of messages that are gone counts: {used}"
            assert not (hub.data / "cluster" / "refused").exists(), (
                "its disk is taken for an old one"
            )
        clients.judge.all_have_met()
        for box in range(1, BOXES + 1):
            lists = [self._list(clients, hub, box) for hub in hubs]
            one = lists[0]
            for other in lists:
                assert one == other, (
                    f"mailbox {box} differs: {show({a for a, _ in set(one) ^ set(other)})}"
                )
            clients.judge.have(box, [hub.entries(box) for hub in hubs], COPIES)
        assert all(at_rest(hub) for hub in hubs), "it does not come to rest"

    def _list(self, clients: ClusterClients, hub: ClusterHub, box: int) -> list[tuple[bytes, int]]:
        """A session that succeeds, soon."""
        rng = random.Random(f"quiet {hub.node} {box}")
        for _ in range(TRIES):
            worker = hub.worker(0)
            if worker is not None:
                found = clients.session(worker, hub, box, rng, quits=False)
                if found is not None:
                    return found
            clients.sim.scheduler.pause(1.0)
        raise AssertionError(f"mailbox {box} cannot be opened at {hub.name} in quiet")
