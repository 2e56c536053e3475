"""The watchdog: which children hang, and which of them to kill.

Rules of this file:

* Holders before waiters: a process that waits for the index's write lock is not hung; the holder
  may be.
* SIGABRT, which leaves a trace, goes only to a running process; a stopped one could not handle it
  and gets SIGKILL at once.
* A master that was itself stopped has seen no heartbeats in that time: the limit counts from when
  it runs again.
* Only monotonic time counts: a clock that jumps kills no process.
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
# Opening the index and log of a large hub on a slow disk may take this long, and so may sealing the
# log at the end or a long step of the collector.  No client waits for these.
BOOT_SECONDS = 30.0
# The loop runs four times a second: after a longer gap, it did not run.
GAP_SECONDS = 2.0
# Roles whose main loop updates the heartbeat.
BEATING = (Role.WORKER, Role.COLLECTOR, Role.DIRECTORY)
Report = Callable[[str], None]


class Watchdog:
    """Checks the children's cells.  `clock`: monotonic nanoseconds."""

    def __init__(self, report: Report, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._report = report
        self._clock = clock
        self._looked = self._since = clock()

    def look(self, children: Iterable[Child], limit: float) -> None:
        """Kill the children that hang.  Call it often.  `limit`: seconds."""
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
            self._since = now  # those that waited for it start afresh

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
        """Seconds since `then` during which the master was running."""
        return (now - max(then, self._since)) / 1e9

    def _kill(self, child: Child, now: int) -> None:
        what = "is stopped" if child.stopped else "hangs"
        where = ", holding the index" if holds_index(child) else ""
        self._report(f"warning: {child.name} {what}{where}: killing it")
        child.aborted = now / 1e9
        child.signal(signal.SIGKILL if child.stopped else signal.SIGABRT)


IDLE, WAITING = 0, 1  # of Cell.INDEX_LOCK; a larger value is the time since when it is held


def holds_index(child: Child) -> bool:
    return child.row[Cell.INDEX_LOCK] > WAITING


def to_kill(hung: list[Child]) -> list[Child]:
    """Of the children that hang: only the oldest lock holder.  Without a holder, those that do not
    wait for the lock.  If all of them are waiting, kill all: the holder was not yet recorded."""
    holders = [child for child in hung if holds_index(child)]
    if holders:
        return [min(holders, key=lambda child: child.row[Cell.INDEX_LOCK])]
    return [child for child in hung if child.row[Cell.INDEX_LOCK] != WAITING] or hung


class SemaphoreWatch:
    """Releases the semaphore if a process died holding it.  Only the master does this."""

    RETRY_SECONDS = 2.0

    def __init__(self, semaphore: posix_ipc.Semaphore, area: SharedArea, report: Report) -> None:
        self._semaphore = semaphore
        self._area = area
        self._report = report
        self._suspect = False
        self._next = 0.0

    def died(self, child: Child) -> None:
        """Call this for each dead child, before its row is cleared."""
        if child.row[Cell.SEMAPHORE] != log_table.IDLE:
            self._suspect = True

    def look(self, children: Iterable[Child], now: float) -> None:
        """Repair it if need be.  `now`: monotonic seconds.

        Waits at most a second, and only after a suspicious death.
        """
        if not self._suspect or now < self._next:
            return
        self._next = now + self.RETRY_SECONDS
        living = list(children)
        if self._semaphore.value > 0:
            self._suspect = False
        elif any(child.stopped for child in living):
            return  # it may hold the semaphore; the heartbeat limit will kill it
        elif log_table.repair(self._semaphore, self._area, [(c.row.index, c.pid) for c in living]):
            self._report("warning: released the semaphore of a dead process")
            self._suspect = False
