"""The workers: one per slot; the serving generation, and older ones that finish their sessions.

    empty slot -> starting -> ready -> [reload: retired, its successor takes the slot] -> dead

Rules of this file:

* Listening sockets belong to the slot: each of its workers, of any generation, inherits them, so
  that a change of worker never refuses a connection.
* A worker that dies is replaced at once; one that dies soon after its start, with back-off.
* At most two generations start or serve at a time; any number may still be finishing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from metad.config.model import Config
from metad.errors import MetadError, OsError
from metad.listeners import Bound
from metad.master.children import Child, ChildSpec, ChildTable
from metad.system.backoff import Backoff
from metad.system.shared_memory import Role
from metad.workers.child import describe

QUICK_DEATH_SECONDS = 5.0
BACKOFF = Backoff(0.2, 10.0)
HOPELESS_DEATHS = 4  # of a first worker, without a reason: about 0.6 s from first to last
# How long a finishing worker may pass its own deadlines before it is killed.
GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Slot:
    """A place for one worker: when the next may start, and how many in a row died quickly.

    Times are monotonic seconds.
    """

    number: int
    child: Child | None = None
    not_before: float = 0.0
    quick_deaths: int = 0

    def back_off(self, started: float, now: float) -> None:
        """Its process, started then, has died: the first quick death costs no delay."""
        quick = now - started < QUICK_DEATH_SECONDS
        self.quick_deaths = self.quick_deaths + 1 if quick else 0
        self.not_before = now + BACKOFF.delay(self.quick_deaths - 1)


@dataclass(slots=True)
class Generation:
    """What all workers of one configuration share."""

    number: int
    config: Config
    bound: list[Bound]


class WorkerPool:
    """`spec(slot, generation)`: how a worker is made; `report(text)` writes to the log."""

    def __init__(
        self,
        children: ChildTable,
        generation: Generation,
        spec: Callable[[int, Generation], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._children = children
        self._spec = spec
        self._report = report
        self.generation = generation
        self.slots = [Slot(number) for number in range(generation.config.store.workers)]
        self.successors: list[Child] = []

    # -- serving

    def manage(self, now: float) -> None:
        """Start a worker in each empty slot whose back-off is over."""
        for slot in self.slots:
            if slot.child is None and now >= slot.not_before:
                try:
                    slot.child = self._children.fork(self._spec(slot.number, self.generation))
                except OsError as error:
                    self._report(f"warning: worker {slot.number}: {error}")
                    slot.back_off(now, now)

    def cannot_begin(self, slot: int) -> bool:
        """Whether the workers of that slot die as soon as they start."""
        return self.slots[slot].quick_deaths >= HOPELESS_DEATHS

    def all_ready(self) -> bool:
        return all(slot.child is not None and slot.child.ready for slot in self.slots)

    def died(self, child: Child, code: int, *, expected: bool) -> None:
        """A worker ended.  `expected`: it was told to."""
        if child in self.successors:
            self.successors.remove(child)
        slot = self.slots[child.slot]
        if slot.child is child:
            slot.child = None
        if child.killed or (code == 0 and (expected or child.retired)):
            return
        why = f": {child.boot_error}" if child.boot_error else ""
        self._report(f"warning: {child.name} died: {describe(code)}{why}")
        if slot.child is None:
            slot.back_off(child.started, time.monotonic())

    # -- a change of generation

    def spawn_generation(self, generation: Generation) -> None:
        """Fork the next generation.  Raises OsError or TryAgainError; then there is none."""
        need = len(self.slots) + 2  # and rows for a recovery and the collector
        if self._children.free_rows() < need:
            self.signal_retired(signal.SIGTERM)
            raise TryAgainError("workers of earlier generations are still finishing")
        try:
            for slot in self.slots:
                spec = self._spec(slot.number, generation)
                self.successors.append(self._children.fork(spec))
        except OsError:
            self.kill_successors()
            raise

    def successors_ready(self) -> bool:
        return len(self.successors) == len(self.slots) and all(c.ready for c in self.successors)

    def kill_successors(self) -> None:
        for child in self.successors:
            child.killed = True
            child.signal(signal.SIGKILL)
        self.successors.clear()

    def promote_successors(self, generation: Generation) -> None:
        """The successors take the slots; the old workers finish their sessions."""
        for slot in self.slots:
            old, slot.child = slot.child, self.successors[slot.number]
            slot.quick_deaths = 0
            if old is not None:
                old.retired = time.monotonic()
                old.signal(signal.SIGHUP)
        self.successors = []
        self.generation = generation

    def retired(self) -> list[Child]:
        return [child for child in self._children.of(Role.WORKER) if child.retired]

    def signal_retired(self, number: int) -> None:
        for child in self.retired():
            child.signal(number)

    def end_overdue(self, seconds: float, now: float) -> None:
        """Kill each worker that has been finishing for more than `seconds`."""
        for child in self.retired():
            if now - child.retired > seconds + GRACE_SECONDS:
                self._report(f"warning: {child.name} did not finish in time: killing it")
                child.signal(signal.SIGKILL)


class TryAgainError(MetadError):
    """Not now."""

    exit_code = 75
    remedy = "try again in a moment"
