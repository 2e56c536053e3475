"""One simulated process: its tasks, descriptors, locks and memory, and their end.

Rules of this file:

* A kill takes effect at a switch point.  The kernel then closes the descriptors and drops the
  locks; the semaphore stays as it was.
* An exception that would kill a real process is a failure of the simulation, unless the process
  reports its failure to the master (`work` returns the exit code).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from metad.store.background import Job
from metad.store.runtime import Runtime
from metad.system.shared_memory import Cell, ProcessRow
from tests.sim.databases import Handle, SimIndex
from tests.sim.scheduler import Owner, Scheduler, Task
from tests.sim.system import SimOsio
from tests.support.osio_kit import KitOsio

if TYPE_CHECKING:
    from tests.sim.hub import Hub

KILLED = -9


class Process(Owner):
    """`role` names its kind in plans; `row` is its row of shared memory."""

    role = "process"
    stopping = False

    def __init__(self, hub: Hub, row: ProcessRow) -> None:
        super().__init__()
        self.hub = hub
        self.row = row
        self.scheduler: Scheduler = hub.sim.scheduler
        self.pid = hub.sim.next_pid()
        self.name = f"{self.role} {self.pid}"
        self.threads: list[Thread] = []
        self.indexes: list[SimIndex] = []
        self.handles: list[Handle] = []
        self.osio = SimOsio(self)
        self.code: int | None = None
        row[Cell.PID] = self.pid
        hub.processes.append(self)

    def start(self, weight: float = 1.0) -> None:
        self._task = self.scheduler.spawn("main", self, self._main, weight)

    def end_soon(self) -> None:
        """Its own work ends once it looks."""
        self.stopping = True
        self.scheduler.wake(self._task)

    def _main(self) -> None:
        code = self.work()
        self.end(code)

    def work(self) -> int:
        """The whole life.  Returns the exit code."""
        raise NotImplementedError

    def end(self, code: int) -> None:
        """Exit, or be killed (`KILLED`)."""
        if self.dead:
            return
        self.dead = True
        self.hub.sim.deaths += 1
        self.code = code
        self.scheduler.bury(self)
        for handle in list(self.handles):
            handle.close()
        for index in self.indexes:
            index.release()
            self.hub.sim.left_open.append(index)
        for fd in list(self.osio.names):
            KitOsio.close(self.osio, fd)
        self.hub.ended(self)

    def kill(self) -> None:
        self.hub.sim.note(f"kill -9 of {self.name}")
        self.end(KILLED)

    def report(self, text: str) -> None:
        # A process survives a bug of its own; a run must not.
        assert not text.startswith("panic: "), f"{self.name}: {text}"
        self.hub.sim.note(f"{self.name}: {text}")

    def runtime(self) -> Runtime:
        return Runtime(
            osio=self.osio,
            open_index=partial(SimIndex, self),
            start_thread=partial(Thread, self),
            now=self.now,
        )

    def now(self) -> float:
        return self.osio.monotonic_ns() / 1e9


class Thread:
    """A thread that runs one job after another (metad.store.background.JobThread)."""

    def __init__(
        self, process: Process, name: str, idle: Job = lambda: None, every: float | None = None
    ) -> None:
        self._scheduler = process.scheduler
        self._jobs: deque[Job | None] = deque()
        self._idle = idle
        self._every = every
        self._works = False
        process.threads.append(self)
        self._task = self._scheduler.spawn(name, process, self._run, process.hub.sim.weight())

    @property
    def waits(self) -> bool:
        """Whether it is in no job and has none."""
        return not self._works and not self._jobs

    def put(self, job: Job) -> None:
        self._jobs.append(job)

    def stop(self) -> None:
        self._jobs.append(None)
        self._scheduler.wait(lambda: self._task.ended)

    def _run(self) -> None:
        while True:
            self._scheduler.wait_for(self._jobs, self._every)
            job = self._jobs.popleft() if self._jobs else self._idle
            if job is None:
                return
            self._works = True
            self._scheduler.point("job")
            job()
            self._works = False


class Loop:
    """An event loop; `run` until `stop`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[int, int, Callable[[], object]]] = []
        self._made = 0
        self._task: Task | None = None
        self.stopped = False
        self._works = False

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._calls.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self._made += 1
        due = self._scheduler.clock.monotonic + int(delay * 1e9)
        self._timers.append((due, self._made, callback))
        self._timers.sort(key=lambda timer: timer[:2])

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        self._calls.append(partial(callback, *args))

    def stop(self) -> None:
        self.stopped = True
        if self._task is not None:
            self._scheduler.wake(self._task)

    def run(self) -> None:
        self._task = self._scheduler.current
        while not self.stopped:
            self._fire()
            self._scheduler.wait_for(self._calls, self._until_timer())
            if self._calls:
                self._scheduler.point("call")
                self._works = True
                self._calls.popleft()()
                self._works = False

    @property
    def waits(self) -> bool:
        """Whether it is in no call, and none is due."""
        return not self._works and not self._calls and self._until_timer() != 0

    def run_rest(self) -> None:
        """What is ready now."""
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _until_timer(self) -> float | None:
        if not self._timers:
            return None
        return max(self._timers[0][0] - self._scheduler.clock.monotonic, 0) / 1e9

    def _fire(self) -> None:
        now = self._scheduler.clock.monotonic
        while self._timers and self._timers[0][0] <= now:
            self._calls.append(self._timers.pop(0)[2])
