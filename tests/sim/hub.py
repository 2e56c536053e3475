"""One node: its data, its shared memory, its disk, and the master, which starts everything.

Rules of this file:

* A crash of the hub kills all processes; a power cut also destroys unsynced data, and the page
  cache with the index.
* Shared memory is created at each start, as by the master.
* A start that fails without a reason in the plan is a failure of the simulation.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metad.layers.logs import LogLayer
from metad.store import hub_time
from metad.store.index import state as index_state
from metad.store.log_table import LogTable
from metad.system.osio import Osio
from metad.system.shared_memory import (
    HEAD_CELLS,
    LOG_CELLS,
    PENDING,
    PENDING_CELLS,
    PROCESS_CELLS,
    UNENTERED,
    UNENTERED_SINCE,
    ProcessRow,
)
from tests.sim.collector import CollectorProcess
from tests.sim.master import Master
from tests.sim.process import KILLED, Process
from tests.sim.system import Semaphore
from tests.sim.users import make_users
from tests.sim.worker import Worker
from tests.support.osio_kit import FakeClock
from tests.support.power_kit import Disk, lay_out
from tests.support.store_kit import make_identity, shared

if TYPE_CHECKING:
    from metad.cluster.view import View
    from tests.sim.judge import Judge
    from tests.sim.simulation import Simulation

ROWS = 60
# By process: children of a campaign run side by side, and a mapping is shared over a fork.
_areas: dict[int, list] = {}


class Hub:
    """`slots`: how many workers.  `node`: its number in a cluster; 0: it is alone."""

    def __init__(self, sim: Simulation, data: Path, slots: int = 2, node: int = 0) -> None:
        self.sim = sim
        self.data = data
        self.slots = slots
        self.node = node
        self.clock = NodeClock(sim.clock)
        self.store = make_identity(data, node or 1, clustered=bool(node))
        make_users(data / "users")
        self.disk = Disk()
        self.cluster_disk = Disk()  # of DATA/cluster, whose names are synced by themselves
        self.sync_seconds = 0.0  # of a slow disk
        self.boots = 1
        self.processes: list[Process] = []
        # Acknowledged but listed later: mail that a worker's index refused.
        self.refused_by_index: set[bytes] = set()
        self.master: Master | None = None
        self.judge: Judge
        areas = _areas.setdefault(os.getpid(), [])
        if len(areas) == len(sim.hubs):
            areas.append(shared("sim")[0])
        self.area = areas[len(sim.hubs)]
        sim.hubs.append(self)

    @property
    def boot(self) -> str:
        return f"boot-{self.boots}"

    def join(self, view: View) -> None:
        """Make this hub a member, before its first start."""
        path = self.data / "cluster" / "view"
        path.parent.mkdir()
        path.write_bytes(view.encode())
        self.cluster_disk = Disk({str(path): view.encode()})

    # -- lives

    def start(self) -> None:
        """A new master; `serving` once its first recovery is done."""
        self._clear_area()
        self.semaphore = Semaphore(self.sim.scheduler)
        self.master = Master(self, self.area.process(0))
        self.master.start()

    @property
    def serving(self) -> bool:
        return self.master is not None and self.master.serving

    def crash(self) -> None:
        """Every process is killed."""
        for process in list(self.processes):
            process.end(KILLED)
        self.master = None

    def cut_power(self, rng: random.Random, mode: str) -> None:
        """A crash that destroys the page cache: unsynced data is lost, partly or completely."""
        self.crash()
        state = self.disk.state(rng, mode)
        logs = self.store.logs
        lay_out(state, logs, logs)
        self.disk = Disk(state)
        if self.cluster_disk.names:
            state, there = self.cluster_disk.state(rng, mode), str(self.data / "cluster")
            lay_out(state, there, there)
            self.cluster_disk = Disk(state)
        self.boots += 1

    def copy_disk(self, to: Path) -> None:
        """A snapshot of a machine that is off."""
        shutil.copytree(self.data, to)

    def restore_disk(self, copy: Path) -> None:
        """The machine, which is off, gets the disk of that day."""
        shutil.rmtree(self.data)
        shutil.copytree(copy, self.data)
        self.disk = Disk(_files(Path(self.store.logs)))
        self.cluster_disk = Disk(_files(self.data / "cluster"))
        self.boots += 1

    def ended(self, process: Process) -> None:
        self.processes.remove(process)
        if self.master is not None and process is not self.master:
            self.master.deaths.append(process)

    def _clear_area(self) -> None:
        area = self.area
        cells, logs = area.cells, area.log_cells()
        used = cells[9]
        _clear(cells, 1, 31)
        _clear(logs, 0, (used + 2) * LOG_CELLS)
        _clear(cells, HEAD_CELLS, ROWS * PROCESS_CELLS)
        _clear(cells, PENDING, ROWS * PENDING_CELLS)
        _clear(cells, UNENTERED_SINCE, ROWS)
        _clear(cells, UNENTERED, ROWS * PENDING_CELLS)

    def make_layer(self, worker: Worker) -> Any:
        """The layer of that worker."""
        return LogLayer()

    def start_others(self) -> None:
        """What a kind of hub has besides: called again and again."""

    # -- who is there

    def worker(self, slot: int) -> Worker | None:
        """The worker of a slot, if it serves."""
        for process in self.processes:
            if isinstance(process, Worker) and process.slot == slot and process.ready:
                return process
        return None

    def workers(self) -> list[Worker]:
        return [one for one in self.processes if isinstance(one, Worker) and one.ready]

    def collector(self) -> CollectorProcess | None:
        for process in self.processes:
            if isinstance(process, CollectorProcess):
                return process
        return None

    def table(self) -> LogTable:
        return LogTable(self.area, self.semaphore, self.area.process(0))

    def free_row(self) -> ProcessRow:
        used = {process.row.index for process in self.processes}
        kept: set[int] = set()
        if self.master is not None:  # it has not looked at all that died
            kept = self.master.kept_rows | {dead.row.index for dead in self.master.deaths}
        index = next(at for at in range(1, ROWS) if at not in used and at not in kept)
        row: ProcessRow = self.area.process(index)
        row.clear()
        return row

    # -- time, and the index

    def begin_time(self, newest: int) -> None:
        hub_time.begin(Osio.__new__(ClockOnly).using(self), self.area, newest)

    def index_is_suspect(self) -> bool:
        return index_state.suspicion(Osio(), self.store.index) is not None


def _clear(cells: memoryview, first: int, count: int) -> None:
    cells[first : first + count] = memoryview(bytes(count * 8)).cast("Q")


def _files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}


class NodeClock(FakeClock):
    """The clocks of one machine: the simulation's, so many nanoseconds ahead."""

    def __init__(self, base: FakeClock) -> None:
        self._base = base
        self.ahead = 0
        self.real_ahead = 0

    def monotonic_ns(self) -> int:
        return self._base.monotonic_ns() + self.ahead

    def time_ns(self) -> int:
        return self._base.time_ns() + self.real_ahead

    @property  # type: ignore[override]
    def real(self) -> int:
        return self._base.real + self.real_ahead

    @real.setter
    def real(self, value: int) -> None:
        self.real_ahead = value - self._base.real


class ClockOnly(Osio):
    """The simulation's clock without switch points."""

    def using(self, hub: Hub) -> ClockOnly:
        clock = hub.clock
        self.monotonic_ns = clock.monotonic_ns  # type: ignore[method-assign]
        self.boottime_ns = clock.monotonic_ns  # type: ignore[method-assign]
        self.time_ns = clock.time_ns  # type: ignore[method-assign]
        return self
