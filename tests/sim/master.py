"""The master: recovery first, then workers and a collector; dead processes are recovered and
replaced.

The list of recoveries is the real one (metad.master.recovery_jobs), over simulated children; so are
the repair of the semaphore and hub time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmdb

from metad.errors import MetadError
from metad.master.children import Child
from metad.master.recovery_jobs import RecoveryJobs
from metad.store import hub_time
from metad.store.index import state as index_state
from metad.store.log_table import IDLE, LogTable, repair
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, ProcessRow, Role
from metad.users.database import UserDatabase
from tests.sim.collector import CollectorProcess
from tests.sim.process import KILLED, Process
from tests.sim.worker import Worker

if TYPE_CHECKING:
    from tests.sim.hub import Hub

TICK_SECONDS = 0.5
_FAILED = 1


class FirstRecovery(Process):
    """Before the first worker (metad.workers.recovery.recover_hub)."""

    role = "first"
    error: BaseException | None = None

    def work(self) -> int:
        hub = self.hub
        table = LogTable(hub.area, hub.semaphore, self.row)
        recovery = Recovery(self.osio, hub.store, self.report, self.runtime().open_index)
        try:
            newest = recovery.run(table, hub.boot)
            hub_time.begin(self.osio, hub.area, newest)
            with UserDatabase(hub.data / "users", create=True) as users:
                index = self.runtime().open_index(hub.store.index)
                users.reserve(index.greatest_mailbox())
                index.close()
        except (MetadError, OSError, lmdb.Error) as error:
            self.error = error
            self.report(f"the hub cannot be recovered: {error!r}")
            return _FAILED
        return 0


class DeadRecovery(Process):
    """The logs of one dead process (metad.workers.recovery.recover_process)."""

    role = "recovery"

    def __init__(self, hub: Hub, row: ProcessRow, dead: int) -> None:
        super().__init__(hub, row)
        self._dead_row = dead

    def work(self) -> int:
        hub = self.hub
        table = LogTable(hub.area, hub.semaphore, self.row)
        recovery = Recovery(self.osio, hub.store, self.report, self.runtime().open_index)
        try:
            recovery.recover_process(table, self._dead_row)
        except (MetadError, OSError, lmdb.Error) as error:
            self.report(f"recovery failed: {error!r}")
            return _FAILED
        return 0


class Master(Process):
    """It replaces metad.master.master.  `deaths`: processes that it has not reaped yet."""

    role = "master"

    def __init__(self, hub: Hub, row: ProcessRow) -> None:
        super().__init__(hub, row)
        self.deaths: list[Process] = []
        self.kept_rows: set[int] = set()
        self.serving = False
        self.stopping = False
        self._children: dict[int, tuple[Child, Process]] = {}
        self._jobs = RecoveryJobs(self, self._spec, self.report)  # type: ignore[arg-type]
        self._semaphores: list[Process] = []

    # -- what RecoveryJobs knows of a ChildTable

    def _spec(self, row: ProcessRow) -> Any:
        return row

    def fork(self, row: Any) -> Child:
        """The child that recovers the process which had that row."""
        process = DeadRecovery(self.hub, self.hub.free_row(), row.index)
        child = Child(process.pid, Role.RECOVERY, 0, process.row, self.now())
        self._children[process.pid] = child, process
        process.start(self.hub.sim.plan.recovery_weight)
        return child

    # -- the life

    def work(self) -> int:
        hub = self.hub
        self._time = hub_time.HubTime(self.osio, hub.area, self.report)
        if not self._recover():
            return _FAILED
        self.serving = True
        while not self.stopping:
            self._reap()
            if hub.index_is_suspect():
                self._rebuild()
            self._manage()
            self._time.look()
            if not self.stopping:
                self.scheduler.wait_for(self.deaths, TICK_SECONDS)
        self.serving = False
        codes = self._stop_all()
        if not len(self._jobs) and not any(codes):
            self._close_index()
        return 0

    def _close_index(self) -> None:
        """It is synced and noted as clean (metad.workers.recovery.close_index)."""
        index = self.runtime().open_index(self.hub.store.index)
        index.sync()
        index.close()
        index_state.mark(Osio(), self.hub.store.index, self.hub.boot, clean=True)

    def _recover(self) -> bool:
        for _ in range(3):
            first = FirstRecovery(self.hub, self.hub.free_row())
            first.start()
            self.scheduler.wait(lambda first=first: first.dead)  # type: ignore[misc]
            self._repair(first)
            first.row.clear()
            self.deaths.remove(first)
            if first.code == 0:
                return True
            if first.error is not None and not self.hub.sim.faults.hits:
                raise AssertionError(f"the hub does not start: {first.error!r}") from first.error
        return False

    def _reap(self) -> None:
        while self.deaths:
            process = self.deaths[0]  # until it is done: its row is given to no other
            self._repair(process)
            now = self.now()
            if process.pid in self._children:
                child, _ = self._children.pop(process.pid)
                self._jobs.died(child, process.code or 0, now)
            self._release(process, now)
            del self.deaths[0]

    def _release(self, process: Process, now: float) -> None:
        """Free its row, unless the log table still names it as an owner."""
        if self.hub.table().owned_by(process.row.index):
            role = Role.WORKER if isinstance(process, Worker) else Role.COLLECTOR
            self._jobs.add(Child(process.pid, role, 0, process.row, 0.0))
            self._jobs._dead[-1].not_before = now + self.hub.sim.plan.recovery_delay
        else:
            process.row.clear()

    def _repair(self, process: Process) -> None:
        if process.row[Cell.SEMAPHORE] == IDLE:
            return
        hub = self.hub
        # No pid: no simulated process is stopped by a signal.
        living = [(one.row.index, 0) for one in hub.processes]
        for _ in range(100):
            if repair(hub.semaphore, hub.area, living):  # type: ignore[arg-type]
                return
            if hub.semaphore._value > 0:
                return

    def _manage(self) -> None:
        hub = self.hub
        for slot in range(hub.slots):
            there = any(isinstance(one, Worker) and one.slot == slot for one in hub.processes)
            if not there:
                Worker(hub, hub.free_row(), slot).start()
        if hub.collector() is None:
            CollectorProcess(hub, hub.free_row()).start()
        hub.start_others()
        self._jobs.manage(self.now())

    @property
    def recovering(self) -> int:
        """Dead processes whose logs wait."""
        return len(self._jobs) + len(self.deaths)

    def _rebuild(self) -> None:
        """A suspect index: all children end, then a recovery as at a start."""
        self.report("the index is suspect: it is rebuilt")
        self.serving = False
        self._stop_all()
        self._jobs.forget()
        if not self._recover():
            raise AssertionError("a suspect index could not be rebuilt")
        self.serving = True

    def _stop_all(self) -> list[int]:
        """Children are told to end; a recovery may be killed at any point.  Their exit codes."""
        for process in list(self.hub.processes):
            if isinstance(process, DeadRecovery):
                process.end(KILLED)
            elif isinstance(process, Worker):
                process.loop.stop()
            elif process.role in ("collector", "directory"):
                process.end_soon()
        self.scheduler.wait(
            lambda: all(one is self or one.role == "backup" for one in self.hub.processes), 60.0
        )
        for process in list(self.hub.processes):
            if process is not self and process.role != "backup":
                process.end(KILLED)
        codes = [process.code or 0 for process in self.deaths]
        self._reap()
        return codes

    # -- stop

    def stop(self) -> None:
        self.end_soon()
