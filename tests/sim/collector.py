"""The collector's process: the real Collector and Expiry, driven step by step on request.

It runs one job after another: `jobs` has the requests of the plan's operations, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import lmdb

from metad.errors import MetadError
from metad.store.gc.collector import Collector, NotCollectableError
from metad.store.gc.copy import Step, Tools
from metad.store.gc.expiry import Due, Expiry
from metad.store.gc.survivor_logs import SurvivorLogs
from metad.store.ids import HubClock, IdMaker
from metad.store.index.rows import DisagreementError
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_table import LogState, LogTable
from metad.store.mailbox_locks import MailboxLocks
from metad.system.shared_memory import ProcessRow
from tests.sim.process import Process
from tests.sim.users import make_scan

if TYPE_CHECKING:
    from tests.sim.hub import Hub

Job = Callable[["CollectorProcess"], None]
REST_SECONDS = 0.25
BACKUP_LEASE = 2.0  # seconds: shorter than some stalls of a backup


class CollectorProcess(Process):
    role = "collector"

    def __init__(self, hub: Hub, row: ProcessRow) -> None:
        super().__init__(hub, row)
        self.jobs: deque[Job] = deque()
        self.stopping = False
        self.idle = False
        self.settled = True
        self.begun = False

    def work(self) -> int:
        try:
            self._boot()
            self._drive(self.collector.tidy())
        except (MetadError, OSError, lmdb.Error) as error:
            self.report(f"cannot begin: {error!r}")
            return 1
        while not self.stopping:
            self.idle = not self.jobs
            self.scheduler.wait_for(self.jobs, REST_SECONDS * 4)
            self.idle = False
            if self.jobs:
                self.jobs.popleft()(self)
            elif not self.stopping:
                self._catch_up()
        self.expiry_locks.close()
        self.expiry_scan.close()
        self.settled = self.collector.close()
        self.index.close()
        return 0

    def _boot(self) -> None:
        hub, runtime = self.hub, self.runtime()
        clock = self.clock = HubClock(self.osio, hub.area.clock_cell)
        self.table = LogTable(hub.area, hub.semaphore, self.row)
        self.index = runtime.open_index(hub.store.index)

        def make_source(generation: int) -> LogAllocator:
            settings = LogSettings(hub.sim.log_size, 512, True, generation)
            return LogAllocator(self.osio, hub.store, self.table, settings, clock, self.report)

        self.survivors = SurvivorLogs(make_source)
        self.tools = Tools(
            osio=self.osio,
            store=hub.store,
            index=self.index,
            table=self.table,
            survivors=self.survivors,
            next_id=IdMaker(clock, hub.store.node).next,
            report=self.report,
            failpoint=self._failpoint,
            backup_lease=BACKUP_LEASE,
        )
        self.collector = Collector(self.tools)
        self.expiry_locks = MailboxLocks(self.osio, hub.store.locks)
        self.expiry = Expiry(self.tools, self.expiry_locks)
        self.expiry_scan = make_scan(self)
        self.begun = True

    def _failpoint(self, name: str) -> None:
        self.hub.sim.reach(self, name)
        self.scheduler.point(f"at {name}")

    def _drive(self, steps: Iterator[Step]) -> None:
        try:
            for step in steps:
                if step is Step.WAITS:
                    self.scheduler.pause(REST_SECONDS)
                self.scheduler.point("step")
                if self.stopping and step is not Step.DROPPED:
                    break
        finally:
            if hasattr(steps, "close"):
                steps.close()

    def _catch_up(self) -> None:
        try:
            self.tools.catch_up()
        except (MetadError, OSError, lmdb.Error) as error:
            self.report(f"catch-up: {error!r}")

    # -- jobs

    def collect(self, choice: int, most: int) -> None:
        """Empty up to `most` sealed logs, which `choice` names."""
        try:
            self._drive(self.collector.tidy())
        except (MetadError, OSError, lmdb.Error) as error:
            self.report(f"tidy: {error!r}")
            return
        for _ in range(most):
            sealed = [row.number for row in self.table.rows() if row.state == LogState.SEALED]
            if not sealed or self.stopping:
                return
            number = sealed[choice % len(sealed)]
            try:
                self._drive(self.collector.collect(number))
                self.hub.sim.note(f"{self.name}: log {number} is collected")
            except (NotCollectableError, DisagreementError) as error:
                self.report(f"log {number}: {error}")
                choice += 1
            except (MetadError, OSError, lmdb.Error, ValueError) as error:
                self.report(f"log {number}: {error!r}")
                choice += 1

    def expire(self, due: list[Due]) -> None:
        self._delete(self.expiry.steps(due))
        self.expiry.in_use.clear()

    def scan(self) -> None:
        """All mailboxes."""
        self._delete(self.expiry_scan.scan(0.0))

    def _delete(self, steps: Iterator[Step]) -> None:
        try:
            self._drive(steps)
        except (MetadError, OSError, lmdb.Error, ValueError) as error:
            self.report(f"expiry: {error!r}")
