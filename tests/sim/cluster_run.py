"""A whole run of a cluster: operations and faults, then quiet, then the verdict on every node."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import cast
from unittest.mock import patch

from metad.cluster import etcd as real_etcd
from metad.cluster.restoring import begin
from metad.cluster.view import Membership, View
from tests.cluster.views import make_member, make_view
from tests.sim.cluster_clients import ClusterClients
from tests.sim.cluster_judge import ClusterJudge
from tests.sim.cluster_node import FORGET_SECONDS, ClusterHub
from tests.sim.etcd import Etcd, drive
from tests.sim.etcd_clients import EtcdClients
from tests.sim.network import Network
from tests.sim.plan import BOXES, WAIT, Plan
from tests.sim.run import Run, Verdict, at_rest
from tests.sim.scheduler import Owner
from tests.sim.simulation import Simulation
from tests.sim.stage import Stage
from tests.support.oracle import show

COPIES = 2
Life = Callable[[Stage], None]
QUIET_SECONDS = 25.0
SETTLE_SECONDS = 120.0  # until a view holds in which all members are active
TRIES = 12


def first_view(seed: int, nodes: int, *, etcd: bool) -> View:
    """Half of the seeds begin with a node that enters, empty, beside those that have everything.
    With etcd, in half of them the last node is a machine that may join."""
    if etcd:
        nodes -= seed // 2 % 2
    if seed % 2:
        return make_view(*(make_member(number) for number in range(1, nodes + 1)))
    entering = make_member(nodes, Membership.ENTERING, healed=True)
    active = [make_member(number) for number in range(1, nodes)]
    return make_view(*active, entering, copies=min(COPIES, len(active)))


def _is_settled(hub: ClusterHub, nodes: int) -> bool:
    view = hub.durable_view()
    return len(view.active) == nodes and view.copies == view.read_copies == COPIES


class ClusterRun(Run):
    """The same of several nodes."""

    def __init__(
        self,
        plan: Plan,
        life: Life | None = None,
        first: View | None = None,
        *,
        trace: bool = False,
    ) -> None:
        """`life`: what happens instead of the operations of the plan; `first`: the view then."""
        super().__init__(plan, trace=trace)
        self._life = life
        self._first = first
        self.counts: dict[str, int] = {}

    def _go(self, sim: Simulation, base: Path) -> None:
        # All nodes read the same few.
        with patch.object(View, "decode", staticmethod(lru_cache(64)(View.decode))):
            self._live(sim, base)

    def _live(self, sim: Simulation, base: Path) -> None:
        network = Network(sim)
        judge = ClusterJudge(sim)
        self.counts = judge.counts
        nodes, etcd = self.plan.nodes, None
        view = self._first or first_view(self.plan.seed, nodes, etcd=self.plan.etcd)
        if self.plan.etcd:
            etcd = Etcd(sim, view.cluster)
            drive(begin(cast(real_etcd.Etcd, etcd.store), view, 1))
        hubs = [
            ClusterHub(sim, base / f"node-{number}", number, network, etcd)
            for number in range(1, nodes + 1)
        ]
        for hub in hubs:
            hub.judge = judge  # type: ignore[assignment]
            if view.member(hub.node) is not None:
                hub.join(view)
                hub.start()
        clients = (EtcdClients if etcd else ClusterClients)(hubs, network, judge)
        director = sim.scheduler.spawn("director", Owner(), lambda: self._direct(clients))
        sim.scheduler.run(lambda: director.ended)
        for hub in [one for one in hubs if one.is_member]:
            Verdict(hub, judge).give_store()  # type: ignore[arg-type]

    def _direct(self, clients: ClusterClients) -> None:
        scheduler = clients.sim.scheduler
        scheduler.wait(lambda: all(hub.serving for hub in clients.hubs if hub.is_member))
        if self._life is not None:
            self._life(Stage(clients))
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
        sim = clients.sim
        sim.note("quiet")
        sim.faults.off = True
        clients.make_well()
        hubs = [hub for hub in clients.hubs if hub.is_member]
        for hub in hubs:
            if hub.master is None or hub.master.dead:
                hub.crash()
                clients.start(hub)
        sim.scheduler.wait(lambda: all(at_rest(hub) for hub in hubs), 600.0)
        clients.look_after()
        sim.scheduler.look_for(
            lambda: all(_is_settled(hub, len(hubs)) for hub in hubs), SETTLE_SECONDS
        )
        sim.scheduler.pause(QUIET_SECONDS)
        for hub in hubs:
            found = hub.durable_view()
            assert _is_settled(hub, len(hubs)), found
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
        self._forgets(sim, hubs)
        assert all(at_rest(hub) for hub in hubs), "it does not come to rest"

    def _forgets(self, sim: Simulation, hubs: list[ClusterHub]) -> None:
        """No tombstone stays that could be forgotten; one that a lost node lacks cannot."""
        if hubs[0].durable_view().those(Membership.ABSENT):
            return
        for _ in range(TRIES):
            if any(hub.unforgotten() for hub in hubs):
                sim.scheduler.pause(FORGET_SECONDS)
        for hub in hubs:
            left = hub.unforgotten()
            assert not left, f"{hub.name} does not forget: {show(left)}"

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
