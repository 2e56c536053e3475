"""Tasks of which exactly one runs, and a scheduler that picks the next one by a seed.

Rules of this file:

* A task gives way only at a switch point (`point`) or where it waits (`wait`).  Everything between
  two of them is one step, as a system call is.
* Nothing here reads a real clock.  When every task waits, the time of the next deadline comes.
* A task of a dead process never runs again.  Its stack is dropped at the end of the simulation,
  when its `finally` clauses no longer have any effect.
"""

from __future__ import annotations

import random
from bisect import bisect, insort
from collections.abc import Callable, Sized
from itertools import accumulate, compress
from math import log
from operator import attrgetter
from typing import Any

import greenlet

from tests.support.osio_kit import FakeClock

LOOK_SECONDS = 0.1  # of `look_for`
# After this many steps, a simulation does not come to rest.
MOST_STEPS = 400_000
NEVER = 1 << 63
# How often a task is chosen: some are slow.
WEIGHTS = (1.0, 1.0, 1.0, 0.2, 0.01)


class KilledError(BaseException):
    """Ends the stack of a task whose process is dead."""


class StuckError(AssertionError):
    """Every task waits, and nothing can ever happen."""


class Owner:
    """What a task belongs to: a process, or nothing that can die."""

    name = "world"
    role = ""  # the kind of a process
    dead = False
    stopped_until = 0  # the scheduler's time

    def __init__(self) -> None:
        self.tasks: list[Task] = []


class Task:
    """One thread.  `weight`: how often it is chosen, beside others."""

    def __init__(self, name: str, owner: Owner, weight: float) -> None:
        self.name = name
        self.owner = owner
        self.weight = weight
        self.number = 0  # they are asked in this order
        self.ask: Callable[[], object] | None = None  # whether it need not wait any more
        self.deadline: int | None = None
        self.stack: Any = None
        self.ended = False


class Scheduler:
    """`stay`: how many switch points a task passes on average before it gives way; `moody`: the
    probability that it then becomes fast or slow, so that others overtake it."""

    def __init__(
        self, seed: object, clock: FakeClock, stay: float = 4.0, moody: float = 0.0
    ) -> None:
        self._moody = moody
        self._random = random.Random(f"schedule {seed}")
        self._draw = self._random.random
        self._leaving = 1 / stay
        self.clock = clock
        # What each task waits for.  Nearly all wait nearly always, and each switch looks at all,
        # by what is fast.
        self._queues: dict[Task, Sized] = {}  # something in it: it runs or may run
        self._asking: list[Task] = []
        self._deadlines: dict[Task, int] = {}  # NEVER also if it is over: then it may run
        self._soonest = NEVER  # no deadline is over before
        self._made = 0
        self._stopped_until = 0  # until then some owner may be
        self.current: Task | None = None
        self.steps = 0
        self.trace: list[str] | None = None
        # Called at each switch point with the owner and its next action.
        self.on_point: Callable[[Owner, str], None] = lambda owner, what: None
        # Called each time that another task is chosen.
        self.on_switch: Callable[[], None] = lambda: None
        self._left = 0
        self._main = greenlet.getcurrent()
        self._buried: list[Task] = []
        self._error: BaseException | None = None
        self._closed = False

    # -- tasks

    def spawn(
        self, name: str, owner: Owner, work: Callable[[], object], weight: float = 1.0
    ) -> Task:
        task = Task(name, owner, weight)
        task.stack = greenlet.greenlet(lambda: self._life(task, work), self._main)
        self._made += 1
        task.number = self._made
        owner.tasks.append(task)
        self._runs(task)
        return task

    def _runs(self, task: Task) -> None:
        self._queues[task] = _AWAKE
        self._deadlines[task] = NEVER
        if task.ask is not None:
            task.ask = None
            self._asking.remove(task)

    def _forget(self, task: Task) -> None:
        self._runs(task)
        del self._queues[task], self._deadlines[task]

    def _life(self, task: Task, work: Callable[[], object]) -> None:
        try:
            work()
        except KilledError:
            pass
        except BaseException as error:
            if not self._closed:
                self._error = error
        task.ended = True
        if not task.owner.dead:
            self._forget(task)
            task.owner.tasks.remove(task)

    def bury(self, owner: Owner) -> None:
        """The tasks of a dead process stop where they are."""
        self._buried += owner.tasks
        for task in owner.tasks:
            self._forget(task)
        owner.tasks.clear()

    def stop(self, owner: Owner, seconds: float) -> None:
        """Its tasks stand still for so long, as by SIGSTOP."""
        owner.stopped_until = self.clock.monotonic + int(seconds * 1e9)
        self._stopped_until = max(self._stopped_until, owner.stopped_until)

    # -- called by tasks

    def point(self, what: str) -> None:
        """A moment in which another task may run, or the process may be killed."""
        task = self.current
        if task is None:
            if self._closed:
                raise KilledError
            return  # outside the simulation: before or after it
        if task.owner.dead:
            self._give_way(task)
        self.steps += 1
        if self.trace is not None:
            self.trace.append(f"{self.steps:6} {task.owner.name}: {task.name}: {what}")
        self.on_point(task.owner, what)
        self._left -= 1
        if task.owner.dead or self._left <= 0:
            self._give_way(task)

    def wait(self, ready: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait until `ready`; False if that took longer than `seconds`."""
        task = self.current
        if task is None:
            if self._closed:
                raise KilledError
            if ready():
                return True
            raise StuckError("outside of the simulation something waits")
        if seconds is not None:
            task.deadline = self.clock.monotonic + int(seconds * 1e9)
        try:
            while not ready():
                if task.deadline is not None and self.clock.monotonic >= task.deadline:
                    return False
                self._wait(task, _NOTHING, None if ready is _never else ready)
        finally:
            task.deadline = None
        return True

    def wait_for(self, queue: Sized, seconds: float | None = None) -> None:
        """Wait until something is in `queue`, for so long at most, or until `wake`.  It costs less
        than `wait`: what nearly all tasks do nearly always."""
        task = self.current
        assert task is not None
        if queue:
            return
        if seconds is not None:
            task.deadline = self.clock.monotonic + int(seconds * 1e9)
            if not seconds:
                return
        try:
            self._wait(task, queue, None)
        finally:
            task.deadline = None

    def _wait(self, task: Task, queue: Sized, ask: Callable[[], object] | None) -> None:
        if not task.owner.dead:
            self._queues[task] = queue
            if ask is not None:
                task.ask = ask
                insort(self._asking, task, key=_NUMBER)
            if task.deadline is not None:
                self._deadlines[task] = task.deadline
                if task.deadline < self._soonest:
                    self._soonest = task.deadline
        self._give_way(task)

    def wake(self, task: Task) -> None:
        """It ceases to wait for a queue."""
        if self._queues.get(task, _NOTHING) is not _NOTHING:
            self._queues[task] = _AWAKE

    def look_for(self, what: Callable[[], object], seconds: float) -> bool:
        """As `wait`, but asked now and then only: for what is slow to find out."""
        end = self.clock.monotonic + int(seconds * 1e9)
        while not what():
            if self.clock.monotonic >= end:
                return False
            self.pause(LOOK_SECONDS)
        return True

    def pause(self, seconds: float) -> None:
        self.wait(_never, seconds)

    def _give_way(self, task: Task) -> None:
        if self._moody and self._draw() < self._moody:
            task.weight = self._random.choice(WEIGHTS)
        self._main.switch()
        if task.owner.dead or self._closed:
            raise KilledError

    # -- the main loop

    def run(self, until: Callable[[], bool]) -> None:
        """Run tasks until `until`.  Re-raises exceptions of tasks."""
        while not until():
            runnable = self._runnable()
            if not runnable:
                self._advance()
                continue
            if self.steps > MOST_STEPS:
                raise StuckError("it does not come to rest")
            self.on_switch()
            task = self._choose(runnable)
            self._resume(task)
            if self._error is not None:
                error, self._error = self._error, None
                raise error

    def _resume(self, task: Task) -> None:
        self._runs(task)
        # As expovariate, which costs more.
        self._left = 1 + int(-log(1.0 - self._draw()) / self._leaving)
        self.current = task
        try:
            task.stack.switch()
        finally:
            self.current = None

    def _choose(self, runnable: list[Task]) -> Task:
        if len(runnable) == 1:
            return runnable[0]
        sums = list(accumulate([task.weight for task in runnable]))
        return runnable[bisect(sums, self._draw() * sums[-1], 0, len(sums) - 1)]

    def _runnable(self) -> list[Task]:
        """Asked at every switch.  To be asked whether it is ready may move the clock."""
        clock, queues, ready = self.clock, self._queues, []
        now = clock.monotonic
        if now >= self._soonest:
            self._fall_due(0)
        for task in tuple(self._asking):
            if now < self._stopped_until and task.owner.stopped_until > now:
                continue
            ask = task.ask
            if ask is not None and ask():
                ready.append(task)
            if clock.monotonic > now:
                now = clock.monotonic
                self._fall_due(task.number)
        for task in ready:
            queues[task] = _AWAKE
        found = list(compress(queues, queues.values()))
        for task in ready:
            queues[task] = _NOTHING
        if now < self._stopped_until:
            return [task for task in found if task.owner.stopped_until <= now]
        return found

    def _fall_due(self, after: int) -> None:
        """Tasks with a greater number whose deadline is over wait no more."""
        now = self.clock.monotonic
        for task, deadline in self._deadlines.items():
            if deadline <= now and task.number > after:
                self._runs(task)
        self._soonest = min(self._deadlines.values(), default=NEVER)

    def _advance(self) -> None:
        """The clock goes on to what comes next."""
        now = self.clock.monotonic
        soonest = min(self._deadlines.values(), default=NEVER)
        if soonest <= now:
            soonest = min((at for at in self._deadlines.values() if at > now), default=NEVER)
        if now < self._stopped_until:
            stops = (task.owner.stopped_until for task in self._queues)
            soonest = min([soonest, *(at for at in stops if at > now)])
        if soonest < NEVER:
            self.clock.monotonic += soonest - now
            self.clock.real += soonest - now
        elif not any(task.deadline is not None for task in self._queues):
            names = ", ".join(f"{task.owner.name}: {task.name}" for task in self._queues)
            raise StuckError(f"every task waits: {names or 'there is none'}")

    def close(self) -> None:
        """Drop all stacks.  Whatever they call raises `KilledError`."""
        self._closed = True
        self.current = None
        for task in [*self._buried, *self._queues]:
            if task.stack and not task.stack.dead:
                task.stack.throw(KilledError)
        self._queues.clear()
        self._deadlines.clear()
        self._asking.clear()
        self._buried.clear()


_AWAKE: Sized = (True,)
_NOTHING: Sized = ()
_NUMBER = attrgetter("number")


def _never() -> bool:
    return False


class Lock:
    """A lock between the tasks of one process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def __enter__(self) -> None:
        self._scheduler.point("lock")
        self._scheduler.wait(lambda: not self._held)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        self._scheduler.point("unlocked")
