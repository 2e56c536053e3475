"""One run: the clock, the scheduler, the faults, the hubs, and notes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.databases import Shared, SimIndex, installed
from tests.sim.process import Process
from tests.sim.scheduler import WEIGHTS, Owner, Scheduler
from tests.sim.system import Faults
from tests.support.osio_kit import FakeClock

if TYPE_CHECKING:
    from tests.sim.hub import Hub
    from tests.sim.plan import Plan


class Simulation:
    """Everything below one seed.  Used as a context, within which metad runs simulated."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = FakeClock()
        self.clock.step = plan.clock_step
        self.scheduler = Scheduler(plan.seed, self.clock, plan.stay, plan.moody)
        self.scheduler.on_point = self._point
        self.scheduler.on_switch = self._switched
        self.on_switch: list[Callable[[], None]] = []
        self.faults = Faults()
        self.faults.planned = {fault[:3]: fault[3] for fault in plan.failures}
        self.log_size = plan.log_size
        self.environments: dict[str, Shared] = {}
        self.left_open: list[SimIndex] = []
        self.hubs: list[Hub] = []
        self.notes: list[str] = []
        self.deaths = 0  # of processes
        self._points: dict[str, int] = {}  # switch points that processes of each role reached
        self._places: dict[tuple[str, str], int] = {}
        self.kills = set(plan.kills)
        self.stalls = {(role, count): seconds for role, count, seconds in plan.stalls}
        # At which points something happens.
        self._marked: dict[str, set[int]] = {}
        for role, place, count in plan.kills:
            if not place:
                self._marked.setdefault(role, set()).add(count)
        for role, count, _ in plan.stalls:
            self._marked.setdefault(role, set()).add(count)
        self._pids = 100
        self._random = random.Random(f"weights {plan.seed}")
        self._installed = installed(self)

    def __enter__(self) -> Simulation:
        self._installed.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        for hub in self.hubs:
            hub.crash()
        self.scheduler.close()
        for index in self.left_open:
            index.end()
        self._installed.__exit__(None, None, None)

    @property
    def current_process(self) -> Process | None:
        task = self.scheduler.current
        owner = task.owner if task is not None else None
        return owner if isinstance(owner, Process) else None

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def weight(self) -> float:
        """How often a thread is chosen: some are slow."""
        return self._random.choice(WEIGHTS)

    def note(self, text: str) -> None:
        for hub in self.hubs:  # the same whatever directory it runs in
            text = text.replace(str(hub.data), "DATA")
        self.notes.append(f"{self.scheduler.steps:6} {text}")
        if self.scheduler.trace is not None:
            self.scheduler.trace.append(f"       -- {text}")

    def _switched(self) -> None:
        for look in self.on_switch:
            look()

    # -- kills

    def _point(self, owner: Owner, what: str) -> None:
        """A process reaches a switch point.  Nearly always that is all."""
        role = owner.role
        if role in self._marked:
            count = self._points[role] = self._points.get(role, 0) + 1
            if count in self._marked[role] and not self.faults.off:
                self._happens(owner, count)

    def _happens(self, owner: Owner, count: int) -> None:
        """The plan kills or stops that process at this point."""
        assert isinstance(owner, Process)
        if (owner.role, "", count) in self.kills:
            owner.kill()
        else:
            seconds = self.stalls[owner.role, count]
            self.note(f"{owner.name} stops for {seconds} s")
            self.scheduler.pause(seconds)

    def reach(self, process: Process, place: str) -> None:
        """A process reaches a named place: the plan may kill it there."""
        key = process.role, place
        count = self._places[key] = self._places.get(key, 0) + 1
        if not self.faults.off and (*key, count) in self.kills:
            process.kill()
