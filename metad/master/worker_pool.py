"""The workers: a slot for each, a generation that serves, older ones that finish their sessions.

    empty slot -> starting -> ready -> [reload: retired, its successor has the slot] -> dead

Rules of this file:

* A slot's listening sockets are the slot's: every worker of it, of any generation, has them, so
  no connection is ever refused by a change of worker.
* A worker that dies is replaced at once; those that die soon after their start, later each time.
* Two generations at most start or serve at a time; any number may still be finishing.
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
from metad.system.shared_memory import Role
from metad.workers.child import describe

QUICK_DEATH_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.2
MOST_BACKOFF_SECONDS = 10.0
HOPELESS_DEATHS = 4  # of the first workers, without a word: the last some 0.6 s after the first
# What a finishing worker gets beyond its own deadlines before it is killed.
GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Slot:
    """A place for one worker: when the next may start, how often the last ones died quickly."""

    number: int
    child: Child | None = None
    not_before: float = 0.0
    quick_deaths: int = 0


@dataclass(slots=True)
class Generation:
    """What the workers of one configuration have in common."""

    number: int
    config: Config
    bound: list[Bound]


class BackOff:
    """How long to wait with the successor of one that died.  Times are monotonic seconds."""

    @staticmethod
    def after(slot: Slot, started: float, now: float) -> None:
        quick = now - started < QUICK_DEATH_SECONDS
        slot.quick_deaths = slot.quick_deaths + 1 if quick else 0
        delay = 0.0
        if slot.quick_deaths > 1:
            delay = min(FIRST_BACKOFF_SECONDS * 2 ** (slot.quick_deaths - 2), MOST_BACKOFF_SECONDS)
        slot.not_before = now + delay


class WorkerPool:
    """`wanted(slot, generation)` says how a worker is made, `report(text)` writes the log."""

    def __init__(
        self,
        family: ChildTable,
        generation: Generation,
        wanted: Callable[[int, Generation], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._family = family
        self._wanted = wanted
        self._report = report
        self.generation = generation
        self.slots = [Slot(number) for number in range(generation.config.store.workers)]
        self.successors: list[Child] = []

    # -- serving

    def manage(self, now: float) -> None:
        """Start a worker wherever one is missing and may start."""
        for slot in self.slots:
            if slot.child is None and now >= slot.not_before:
                try:
                    slot.child = self._family.fork(self._wanted(slot.number, self.generation))
                except OsError as error:
                    self._report(f"warning: worker {slot.number}: {error}")
                    BackOff.after(slot, now, now)

    def cannot_begin(self, slot: int) -> bool:
        """Whether workers of that slot die as soon as they are born."""
        return self.slots[slot].quick_deaths >= HOPELESS_DEATHS

    def all_ready(self) -> bool:
        return all(slot.child is not None and slot.child.ready for slot in self.slots)

    def died(self, child: Child, code: int, *, expected: bool) -> None:
        """One of ours ended: `expected` if it was told to."""
        if child in self.successors:
            self.successors.remove(child)
        slot = self.slots[child.slot]
        if slot.child is child:
            slot.child = None
        if child.killed or (code == 0 and (expected or child.retired)):
            return
        why = f": {child.trouble}" if child.trouble else ""
        self._report(f"warning: {child.name} died: {describe(code)}{why}")
        if slot.child is None:
            BackOff.after(slot, child.started, time.monotonic())

    # -- a change of generation

    def spawn_generation(self, generation: Generation) -> None:
        """Fork the next generation.  Raises OsError; then there is none."""
        need = len(self.slots) + 2  # besides: a recovery, and whoever else
        if self._family.free_rows() < need:
            self.signal_retired(signal.SIGTERM)
            raise TryAgainError("earlier workers still finish their sessions; try again")
        try:
            for slot in self.slots:
                wanted = self._wanted(slot.number, generation)
                self.successors.append(self._family.fork(wanted))
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

    def succeed(self, generation: Generation) -> None:
        """The successors take the slots; who had them finishes what it has begun."""
        for slot in self.slots:
            old, slot.child = slot.child, self.successors[slot.number]
            slot.quick_deaths = 0
            if old is not None:
                old.retired = time.monotonic()
                old.signal(signal.SIGHUP)
        self.successors = []
        self.generation = generation

    def retired(self) -> list[Child]:
        return [child for child in self._family.of(Role.WORKER) if child.retired]

    def signal_retired(self, number: int) -> None:
        for child in self.retired():
            child.signal(number)

    def end_overdue(self, seconds: float, now: float) -> None:
        """Kill who finishes for more than `seconds` and does not end by itself."""
        for child in self.retired():
            if now - child.retired > seconds + GRACE_SECONDS:
                self._report(f"warning: {child.name} does not end: killing it")
                child.signal(signal.SIGKILL)


class TryAgainError(MetadError):
    """Not now."""

    exit_code = 75
