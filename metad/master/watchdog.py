"""Who hangs, and whom to kill for it.

Rules of this file:

* Holders before waiters: who waits for the index's write lock is not hung, its holder may be.
* SIGABRT, for its trace, only to a process that runs; one that is stopped could not answer, and
  gets SIGKILL at once.
* A master that was itself stopped, or could not run, has seen nobody's heartbeat meanwhile: the
  limit counts from when it looks again.
* Only monotonic time counts: no jump of the clock kills anybody.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable

import posix_ipc

from metad.master.children import Child
from metad.store import log_table
from metad.system.shared_memory import Cell, Role, SharedArea

ABORT_SECONDS = 2.0
# Opening index and log of a large hub on a slow disk is no hang, nor is sealing the log at the
# end, nor a long step of the collector: nobody waits for them.
BOOT_SECONDS = 30.0
# The loop looks four times a second: more than this, and it did not run.
GAP_SECONDS = 2.0
# Roles whose own loop moves the heartbeat.
BEATING = (Role.WORKER, Role.COLLECTOR)
Report = Callable[[str], None]


class Watchdog:
    """Looks at the children's cells; `clock` gives monotonic nanoseconds."""

    def __init__(self, report: Report, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._report = report
        self._clock = clock
        self._looked = self._since = clock()

    def look(self, children: Iterable[Child], limit: float) -> None:
        """Kill whom it has to be; to be called often.  `limit`: seconds."""
        now = self._clock()
        if now - self._looked > GAP_SECONDS * 1e9:
            self._since = now
        self._looked = now
        hung = []
        for child in children:
            if child.aborted:
                if now / 1e9 - child.aborted > ABORT_SECONDS:
                    child.signal(signal.SIGKILL)
            elif self._hangs(child, now, limit):
                hung.append(child)
        for child in to_kill(hung):
            self._kill(child, now)
        if any(holds_index(child) for child in hung):
            self._since = now  # who waited for it starts afresh

    def _hangs(self, child: Child, now: int, limit: float) -> bool:
        if child.stopped:
            return self._age(int(child.stopped * 1e9), now) > limit
        held = child.row[Cell.INDEX_LOCK]
        if held > WAITING and self._age(held, now) > limit:
            return True
        if child.role not in BEATING:
            return False
        waited_for = child.ready and child.role == Role.WORKER and not child.retired
        allowed = limit if waited_for else max(limit, BOOT_SECONDS)
        return self._age(child.row[Cell.HEARTBEAT], now) > allowed

    def _age(self, then: int, now: int) -> float:
        """Seconds since `then`, of which the master has been looking."""
        return (now - max(then, self._since)) / 1e9

    def _kill(self, child: Child, now: int) -> None:
        what = "is stopped" if child.stopped else "hangs"
        where = ", holding the index" if holds_index(child) else ""
        self._report(f"warning: {child.name} {what}{where}: killing it")
        child.aborted = now / 1e9
        child.signal(signal.SIGKILL if child.stopped else signal.SIGABRT)


IDLE, WAITING = 0, 1  # of Cell.INDEX_LOCK; more: the time since when it is held


def holds_index(child: Child) -> bool:
    return child.row[Cell.INDEX_LOCK] > WAITING


def to_kill(hung: list[Child]) -> list[Child]:
    """Of those that hang: the oldest holder alone; without one, those that wait for nobody; and
    everybody if all wait (their holder did not come to say that it is one)."""
    holders = [child for child in hung if holds_index(child)]
    if holders:
        return [min(holders, key=lambda child: child.row[Cell.INDEX_LOCK])]
    return [child for child in hung if child.row[Cell.INDEX_LOCK] != WAITING] or hung


class SemaphoreWatch:
    """Repairs the semaphore that a dead process took with it.  Only the master does."""

    RETRY_SECONDS = 2.0

    def __init__(self, semaphore: posix_ipc.Semaphore, area: SharedArea, report: Report) -> None:
        self._semaphore = semaphore
        self._area = area
        self._report = report
        self._suspect = False
        self._next = 0.0

    def died(self, child: Child) -> None:
        """To be told of every death, before its row is cleared."""
        if child.row[Cell.SEMAPHORE] != log_table.IDLE:
            self._suspect = True

    def look(self, children: Iterable[Child], now: float) -> None:
        """`now`: monotonic seconds.  Waits a second at most, and only if a death was suspicious."""
        if not self._suspect or now < self._next:
            return
        self._next = now + self.RETRY_SECONDS
        living = list(children)
        if self._semaphore.value > 0:
            self._suspect = False
        elif any(child.stopped for child in living):
            return  # what it was doing cannot be told; the heartbeat limit ends it
        elif log_table.repair(self._semaphore, self._area, [(c.row.index, c.pid) for c in living]):
            self._report("warning: semaphore of a dead process released")
            self._suspect = False
