"""One simulated etcd: rows, revisions, transactions and leases, as each node reaches it.

Rules of this file:

* A request takes a while, there and back.  A node that does not reach etcd, or gets no answer,
  does not know whether it was carried out; it may be carried out later.
* What `metad.cluster.etcd.Etcd` offers is called from a task, and driven to its end at once: it
  waits in the scheduler.
* A wipe and a rollback leave no trace but what a node remembers (metad.cluster.seen).
"""

from __future__ import annotations

import random
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from metad.cluster.directory_keys import Keys
from metad.cluster.etcd_json import EtcdError, Json, Outcome, Row
from metad.cluster.view import View
from tests.sim.scheduler import Owner
from tests.support.etcd_fake import FakeEtcd, State

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

PATIENCE_SECONDS = 3.0
LATENCY_SECONDS = 0.002
T = TypeVar("T")


class Store(FakeEtcd):
    """Rows.  A row goes with its lease."""

    def __init__(self, sim: Simulation, cluster: str) -> None:
        super().__init__()
        self._sim = sim
        self._leases: dict[int, tuple[int, int]] = {}  # seconds, until
        self._made = 0
        self._view_key = Keys(cluster).view
        self.views: dict[int, View] = {}
        self.history: list[State] = []  # a snapshot of each view
        self.watchers: list[deque[None]] = []  # get something with each other view

    @property
    def view_row(self) -> Row | None:
        return self.state.rows.get(self._view_key)

    @property
    def view(self) -> View | None:
        row = self.view_row
        return View.decode(row.value) if row is not None else None

    def expire(self) -> None:
        now = self._sim.clock.monotonic
        ended = {lease for lease, (_, until) in self._leases.items() if until <= now}
        for lease in ended:
            del self._leases[lease]
        gone = [
            key
            for key, row in self.state.rows.items()
            if row.lease and row.lease not in self._leases
        ]
        if gone:
            self._apply(dict.fromkeys(gone))

    def grant_now(self, seconds: int) -> int:
        self._made += 1
        self._leases[self._made] = seconds, 0
        self.keep_now(self._made)
        return self._made

    def keep_now(self, lease: int) -> int:
        """0: it has ended."""
        if lease not in self._leases:
            return 0
        seconds = self._leases[lease][0]
        self._leases[lease] = seconds, self._sim.clock.monotonic + seconds * 10**9
        return seconds

    def _write(self, requests: Sequence[Json]) -> None:
        before = self.view_row
        super()._write(requests)
        self.state.history.clear()  # nothing is watched
        for request in requests:
            put = request.get("request_put", {})
            if int(put.get("lease", 0)):
                self._bind(put["key"], int(put["lease"]))
        if self.view_row is not before:
            self._tell()
            if view := self.view:
                self._made_view(view)

    def start(self, state: State | None = None) -> None:
        super().start(state)
        self._tell()

    def _tell(self) -> None:
        for news in self.watchers:
            news.append(None)

    def _bind(self, key: str, lease: int) -> None:
        name = b64decode(key).decode()
        self.state.rows[name] = self.state.rows[name]._replace(lease=lease)

    def _made_view(self, view: View) -> None:
        known = self.views.setdefault(view.epoch, view)
        assert known.digest == view.digest, f"two views of epoch {view.epoch}"
        states = ", ".join(
            f"{one.number} {one.state}{' healed' * one.healed}" for one in view.members
        )
        self._sim.note(f"epoch {view.epoch}: {states}; copies {view.copies}, {view.read_copies}")
        self.history.append(self.snapshot())

    def views_are_lost(self, after: int) -> None:
        """No node has a view of a later epoch, nor has etcd: another one may have that number."""
        self.views = {epoch: view for epoch, view in self.views.items() if epoch <= after}

    # -- what befalls it

    def wipe(self) -> None:
        self._leases.clear()
        self.start(State())

    def roll_back(self, snapshot: State) -> None:
        self._leases.clear()
        self.start(snapshot)


class Etcd(Owner):
    """The network to it.  `cuts`: nodes that do not reach it; `held`: nodes whose transactions are
    late."""

    name = "etcd"

    def __init__(self, sim: Simulation, cluster: str) -> None:
        super().__init__()
        self.sim = sim
        self.random = random.Random(f"etcd {sim.plan.seed}")
        self.store = Store(sim, cluster)
        self.cuts: set[int] = set()
        self.held: set[int] = set()
        self.is_down = False
        self.latency = LATENCY_SECONDS

    def ask(self, node: int, work: Callable[[], T]) -> T:
        """Carry out a request of a node.  Raises EtcdError."""
        scheduler = self.sim.scheduler
        self._travel()
        if not scheduler.wait(lambda: self.reaches(node), PATIENCE_SECONDS):
            if self.random.random() < 0.3:
                scheduler.spawn("late request", self, lambda: self._late(node, work))
            raise EtcdError("etcd does not answer")
        self.store.expire()
        answer = work()
        self._travel()
        if not scheduler.wait(lambda: self.reaches(node), PATIENCE_SECONDS):
            raise EtcdError("etcd does not answer")
        return answer

    def _late(self, node: int, work: Callable[[], object]) -> None:
        self.sim.scheduler.wait(lambda: self.reaches(node))
        self.store.expire()
        work()

    def _travel(self) -> None:
        self.sim.scheduler.pause(self.random.expovariate(1 / self.latency))

    def reaches(self, node: int) -> bool:
        return not self.is_down and node not in self.cuts


class NodeEtcd:
    """What one node has of it: metad.cluster.etcd.Etcd."""

    endpoint = "simulated"

    def __init__(self, etcd: Etcd, node: int) -> None:
        self._etcd = etcd
        self._node = node
        self.transacts = False  # whether a transaction is on its way

    async def read(self, *requests: Json) -> Outcome:
        store = self._etcd.store
        return self._etcd.ask(self._node, lambda: drive(store.read(*requests)))

    async def transact(
        self, compare: Sequence[Json], then: Sequence[Json], otherwise: Sequence[Json] = ()
    ) -> Outcome:
        etcd, store = self._etcd, self._etcd.store
        self.transacts = True
        try:
            etcd.sim.scheduler.wait(lambda: self._node not in etcd.held, PATIENCE_SECONDS)
            return etcd.ask(self._node, lambda: drive(store.transact(compare, then, otherwise)))
        finally:
            self.transacts = False

    async def grant(self, seconds: int) -> int:
        return self._etcd.ask(self._node, lambda: self._etcd.store.grant_now(seconds))

    async def keep_alive(self, lease: int) -> int:
        return self._etcd.ask(self._node, lambda: self._etcd.store.keep_now(lease))


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing but the scheduler."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            value: T = end.value
            return value
