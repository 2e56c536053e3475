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
        self.points: dict[tuple[str, str], int] = {}
        self.kills = set(plan.kills)
        self.stalls = {(role, count): seconds for role, count, seconds in plan.stalls}
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
        if isinstance(owner, Process):
            self.reach(owner, "")

    def reach(self, process: Process, place: str) -> None:
        """A process reaches a switch point or a named place: the plan may kill it there."""
        role = process.role
        count = self.points[role, place] = self.points.get((role, place), 0) + 1
        if self.faults.off:
            return
        if (role, place, count) in self.kills:
            process.kill()
        elif not place and (seconds := self.stalls.get((role, count))):
            self.note(f"{process.name} stops for {seconds} s")
            self.scheduler.pause(seconds)
