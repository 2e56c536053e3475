"""One simulated etcd: the view by compare-and-swap, leases, an identity.

Rules of this file:

* A request takes a while, there and back.  Whoever does not reach etcd, or gets no answer, does not
  know whether it was carried out; it may be carried out later.
* A change of the view compares identity, epoch and lease in one step, as a transaction does.
* `wipe` and `roll_back` leave no trace but what a node remembers: `Seen`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tests.sim.scheduler import Owner

if TYPE_CHECKING:
    from metad.cluster.view import View
    from tests.sim.simulation import Simulation

LEASE_SECONDS = 10.0
PATIENCE_SECONDS = 3.0
LATENCY_SECONDS = 0.002
T = TypeVar("T")


class AwayError(Exception):
    """No answer."""


class Seen(NamedTuple):
    """What a node has seen last of etcd, durably."""

    identity: str = ""
    generation: int = 0
    revision: int = 0
    epoch: int = 0

    def follows(self, before: Seen) -> bool:
        """Whether etcd is the same and has not gone back."""
        if not self.identity or not before.identity:
            return bool(self.identity)
        if self.identity != before.identity or self.generation != before.generation:
            return self.identity == before.identity and self.generation > before.generation
        return self.revision >= before.revision and self.epoch >= before.epoch


class Found(NamedTuple):
    """What a node reads: `leases`: the members whose lease runs."""

    seen: Seen
    view: View
    leases: frozenset[int]


class Etcd(Owner):
    """`cuts`: nodes that do not reach it."""

    name = "etcd"

    def __init__(self, sim: Simulation, view: View) -> None:
        super().__init__()
        self.sim = sim
        self.random = random.Random(f"etcd {sim.plan.seed}")
        self.view = view
        self.views = {view.epoch: view}
        self.identity, self.generation, self.revision = "first", 1, 1
        self.cuts: set[int] = set()
        self.is_down = False
        self.latency = LATENCY_SECONDS
        self.history = [(1, view)]  # revisions at which the view changed
        self._leases: dict[int, int] = {}  # node, until

    # -- on the way

    def ask(self, node: int, work: Callable[[], T]) -> T:
        """Carry out a request of a node.  Raises AwayError."""
        scheduler = self.sim.scheduler
        self._travel()
        if not scheduler.wait(lambda: self.reaches(node), PATIENCE_SECONDS):
            if self.random.random() < 0.3:
                scheduler.spawn("late request", self, lambda: self._late(node, work))
            raise AwayError
        answer = work()
        self._travel()
        if not scheduler.wait(lambda: self.reaches(node), PATIENCE_SECONDS):
            raise AwayError
        return answer

    def _late(self, node: int, work: Callable[[], object]) -> None:
        self.sim.scheduler.wait(lambda: self.reaches(node))
        work()

    def _travel(self) -> None:
        self.sim.scheduler.pause(self.random.expovariate(1 / self.latency))

    def reaches(self, node: int) -> bool:
        return not self.is_down and node not in self.cuts

    # -- requests

    def renew(self, node: int) -> Found:
        """Keep the lease of a node alive, and read everything."""
        self._leases[node] = self.sim.clock.monotonic + int(LEASE_SECONDS * 1e9)
        self.revision += 1
        return self._found()

    def swap(self, seen: Seen, view: View, ended: int = 0) -> str:
        """Make a view the next one: "", or why not.  `ended`: a member that must have no lease."""
        if self._seen()[:2] != seen[:2] or view.epoch != self.view.epoch + 1:
            return "another view is there"
        if ended in self._living():
            return f"node {ended} lives"
        known = self.views.setdefault(view.epoch, view)
        assert known.digest == view.digest, f"two views of epoch {view.epoch}"
        self.view = view
        self.revision += 1
        self.history.append((self.revision, view))
        states = ", ".join(
            f"{one.number} {one.state}{' healed' * one.healed}" for one in view.members
        )
        self.sim.note(f"epoch {view.epoch}: {states}; copies {view.copies}, {view.read_copies}")
        return ""

    def _living(self) -> frozenset[int]:
        now = self.sim.clock.monotonic
        return frozenset(node for node, until in self._leases.items() if until > now)

    def _seen(self) -> Seen:
        return Seen(self.identity, self.generation, self.revision, self.view.epoch)

    def _found(self) -> Found:
        return Found(self._seen(), self.view, self._living())

    # -- what befalls it

    def roll_back(self, snapshot: tuple[int, View]) -> None:
        self.revision, self.view = snapshot
        self._leases.clear()

    def wipe(self) -> None:
        self.identity, self.revision = "", 1
        self._leases.clear()

    def set_right(self, view: View) -> None:
        """`metad cluster restore-directory`, on the node with the greatest epoch."""
        self.identity = "first"
        self.generation += 1
        self.view = view
        self.history = [(self.revision, view)]
        self.views = {epoch: one for epoch, one in self.views.items() if epoch <= view.epoch}
