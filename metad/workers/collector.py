"""The collector's process: when it works, on what, and how fast.

    resting -> a round (idle, short of space, or requested) -> log by log, step by step -> resting
            -> a scan of the mailboxes, every hour: expired mail, mail of removed users
            -> a step of the walk through the index, until its end

Rules of this file:

* Under load it works a small share of the time.  A step takes some milliseconds; between two steps
  it checks whether it must stop.
* It never runs at a lower priority than the workers: it would hold the index's lock for longer
  than they can wait.
* A log that could not be collected is left alone for a while; nothing is retried in a tight loop.
* Signals are blocked and polled: no handler runs anywhere.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import lmdb

from metad.config.model import Config
from metad.errors import MetadError
from metad.loglines import LogLines
from metad.store.gc.collector import Collector, NotCollectableError
from metad.store.gc.copy import Step, Tools
from metad.store.gc.policy import GcPolicy, choose, has_garbage
from metad.store.gc.survivor_logs import SurvivorLogs
from metad.store.identity import open_store
from metad.store.ids import HubClock, IdMaker
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.patrol import Patrol
from metad.store.log.alignment import alignment
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_space import needed_space
from metad.store.log_table import LogState, LogTable, Row, Semaphore
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.users.policy import Policies
from metad.workers.expiry_scan import ExpiryScan
from metad.workers.load import Load, Space, space

STOP_SIGNALS = {signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP}
REST_SECONDS = 0.25
CHECK_SECONDS = 1.0
# The share of its time that it works while the hub is busy.
BUSY_SHARE = 0.15
# The same when no space is left at all, and in proportion before that: slower service is better
# for senders than deferred mail.
PRESSED_SHARE = 0.6
LONGEST_PAUSE = 0.25
AVOID_SECONDS = 60.0
AVOID_SHORT_SECONDS = 5.0  # when mail is deferred, or soon: the disk may have had no block for it
READER_CHECK_SECONDS = 60.0
SCARCE = 0.15  # garbage worth collecting when space is short


class Work(IntEnum):
    """What the collector is doing, as in `Cell.WORK`."""

    RESTING = 0
    IDLE = 1
    SHORT = 2
    ASKED = 3
    WAITING = 4  # for the end of a backup
    EXPIRING = 5


@dataclass(frozen=True, slots=True)
class CollectorSetup:
    """What the master gives to the collector.  `asked`: the row in which it requests rounds."""

    config: Config
    area: SharedArea
    semaphore: Semaphore
    row: ProcessRow
    asked: ProcessRow
    ready: Callable[[], None]


class StoppedError(Exception):
    """The process is to end."""


class CollectorWorker:
    """The process after its fork."""

    def __init__(self, setup: CollectorSetup) -> None:
        config, row = setup.config, setup.row
        self._setup = setup
        self._row = row
        self._log = LogLines(as_json=config.log_format == "json")
        self._settings = config.collector
        self._store_settings = config.store
        osio = Osio()
        store = open_store(osio, config.data)
        self._logs = config.data / "logs"
        self._needed = needed_space(osio, store.logs, config.store.log_size)
        self._clock = HubClock(osio, setup.area.clock_cell)
        self._table = LogTable(setup.area, setup.semaphore, row)
        self._index = Index(store.index)
        self._index.on_lock = partial(row.__setitem__, Cell.INDEX_LOCK)
        self._survivors = SurvivorLogs(partial(self._make_source, osio))
        tools = Tools(
            osio=osio,
            store=store,
            index=self._index,
            table=self._table,
            survivors=self._survivors,
            next_id=IdMaker(self._clock, store.node).next,
            report=self._report,
            backup_lease=config.collector.backup_lease,
        )
        self._collector = Collector(tools)
        self._patrol = Patrol(self._index)
        self._expiry_scan = ExpiryScan(config.data / "users", Policies(config), tools, self._clock)
        self._expiry_scan.clock_is_suspect = lambda: setup.area.clock_suspect
        self._began = time.monotonic()
        self._load = Load(setup.area, config.collector.idle_load, time.monotonic)
        self._avoid: dict[int, float] = {}
        self._checked = self._space_checked = self._tidied = time.monotonic()
        self._free = 100.0  # per cent of the space for logs, when last measured

    def _make_source(self, osio: Osio, generation: int) -> LogAllocator:
        settings = self._store_settings
        store = open_store(osio, self._setup.config.data)
        align = alignment(osio, store.logs, settings.align)
        logs = LogSettings(settings.log_size, align, settings.sync, generation)
        return LogAllocator(osio, store, self._table, logs, self._clock, self._report)

    def _report(self, text: str) -> None:
        self._log.line("collector", text)

    # -- the life

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._setup.ready()
        try:
            self._drive(self._collector.tidy())
            while True:
                self._one_round()
                self._row[Cell.WORK] = Work.RESTING
                self._walk_on()
                self._pause(REST_SECONDS)
        except StoppedError:
            return 0
        finally:
            self._expiry_scan.close()
            self._collector.close()
            self._index.close()

    def _pause(self, seconds: float) -> None:
        """Wait, or only check for signals.  Raises StoppedError when it is time to end."""
        self._row[Cell.HEARTBEAT] = time.monotonic_ns()
        if signal.sigtimedwait(STOP_SIGNALS, seconds) is not None:
            raise StoppedError
        self._load.look()
        self._log.tick()
        if time.monotonic() - self._checked > READER_CHECK_SECONDS:
            self._checked = time.monotonic()
            self._index.reader_check()

    def _walk_on(self) -> None:
        """A step of the walk through the index: some milliseconds in each quarter of a second."""
        if self._patrol.done:
            return
        try:
            self._patrol.step()
        except (MetadError, lmdb.Error, *index_state.NONSENSE) as error:
            self._report(f"warning: the index is damaged: {error}")

    # -- rounds

    def _one_round(self) -> None:
        asked = self._setup.asked[Cell.ROUND]
        if asked != self._row[Cell.ROUND]:
            return self._asked_round(asked)
        if time.monotonic() - self._space_checked < CHECK_SECONDS:
            return None
        self._space_checked = time.monotonic()
        if self._space().share * 100 < self._settings.low_space:
            self._short_round()
        elif self._load.quiet_seconds >= self._settings.idle_seconds:
            self._idle_round()
        self._row[Cell.WORK] = Work.EXPIRING
        self._expire(self._expiry_scan.steps(time.monotonic() - self._began))
        return None

    def _expire(self, steps: Iterator[Step]) -> None:
        """Delete expired mail.  A failure is reported, and collection goes on."""
        try:
            self._drive(steps)
        except (MetadError, OSError, lmdb.Error, ValueError) as error:
            self._report(f"warning: expired mail was not deleted: {error}")

    def _asked_round(self, asked: int) -> None:
        """A round of `metad gc`.  `asked`: twice its number, plus one if it is full."""
        self._row[Cell.WORK] = Work.ASKED
        self._avoid.clear()
        self._expire(self._expiry_scan.scan(time.monotonic() - self._began))
        self._drive(self._collector.tidy())
        rows = self._table.rows()
        now = self._now()
        if asked & 1:
            kept = self._survivors.kept
            sealed = [row for row in rows if row.state == LogState.SEALED]
            victims = [row for row in sealed if has_garbage(row, kept.get(row.number, 0))]
        else:
            policy = self._policy()
            victims = [r for r in rows if r.state == LogState.SEALED and policy.is_worth(r)]
            victims.sort(key=lambda row: policy.score(row, now), reverse=True)
        for left, row in zip(range(len(victims), 0, -1), victims, strict=True):
            self._row[Cell.LEFT] = left
            if self._table.row(row.number).life == row.life:
                self._collect(row)
        self._row[Cell.LEFT] = 0
        self._row[Cell.ROUND] = asked

    def _idle_round(self) -> None:
        """While the hub is idle, collect every log that is worth it."""
        self._row[Cell.WORK] = Work.IDLE
        self._tidy_now_and_then()
        while self._load.is_low and self._not_asked():
            row = self._best(self._policy())
            if row is None:
                return
            self._collect(row)

    def _tidy_now_and_then(self) -> None:
        """Finish what recoveries leave to the collector: it takes too long for a start."""
        if time.monotonic() - self._tidied < AVOID_SECONDS:
            return
        self._tidy()

    def _tidy(self) -> None:
        """A failure is reported, and collection goes on."""
        self._tidied = time.monotonic()
        try:
            self._drive(self._collector.tidy())
        except (MetadError, OSError, lmdb.Error) as error:
            self._report(f"warning: a log that was being freed is left as it is: {error}")

    def _short_round(self) -> None:
        """Until there is enough space, collect every log that gives any."""
        self._row[Cell.WORK] = Work.SHORT
        self._tidy()
        while self._space().share * 100 < self._settings.enough_space and self._not_asked():
            row = self._best(self._policy(SCARCE, 1.0))
            if row is None:
                return
            self._collect(row)

    def _not_asked(self) -> bool:
        return self._setup.asked[Cell.ROUND] == self._row[Cell.ROUND]

    def _policy(self, garbage: float | None = None, older: float = 0.75) -> GcPolicy:
        share = self._settings.garbage / 100 if garbage is None else garbage
        return GcPolicy(self._store_settings.log_size, share, older, self._survivors.kept)

    def _best(self, policy: GcPolicy) -> Row | None:
        now = time.monotonic()
        self._avoid = {number: until for number, until in self._avoid.items() if until > now}
        return choose(self._table.rows(), policy, self._now(), self._avoid)

    def _now(self) -> int:
        """Hub time in seconds, the measure of lives."""
        return self._clock.now_us() // 1_000_000

    def _space(self) -> Space:
        return space(self._table.rows(), self._store_settings, self._logs, self._needed)

    # -- one log

    def _collect(self, row: Row) -> None:
        """Collect one log.  After a failure, which is reported, it is left alone for a while."""
        try:
            self._drive(self._collector.collect(row.number))
        except NotCollectableError:
            self._avoid[row.number] = time.monotonic() + AVOID_SECONDS
        except (MetadError, OSError, lmdb.Error, ValueError) as error:
            self._row.add(Cell.UNCOLLECTED)
            self._report(f"warning: log {row.number} could not be collected: {error}")
            is_short = self._row[Cell.WORK] == Work.SHORT
            seconds = AVOID_SHORT_SECONDS if is_short else AVOID_SECONDS
            self._avoid[row.number] = time.monotonic() + seconds

    def _drive(self, steps: Iterator[Step]) -> None:
        """Run the steps with pauses; a stop takes effect between two steps."""
        work = self._row[Cell.WORK]
        step = Step.LOOKED
        try:
            began = time.monotonic()
            for step in steps:
                self._show()
                self._row[Cell.WORK] = Work.WAITING if step is Step.WAITS else work
                self._pause(self._rest(step, time.monotonic() - began))
                began = time.monotonic()
        except StoppedError:
            if step is Step.DROPPED:  # the log is free: the rest takes a moment
                deque(steps, maxlen=0)
            raise
        finally:
            if isinstance(steps, Generator):
                steps.close()
            self._row[Cell.WORK] = work
            self._show()

    def _rest(self, step: Step, took: float) -> float:
        """Seconds until the next step."""
        if step is Step.WAITS:
            return REST_SECONDS
        if self._load.is_low:
            return 0.0
        return min(took * (1 / self._share() - 1), LONGEST_PAUSE)

    def _share(self) -> float:
        """The share of its time that it may work under load."""
        if self._row[Cell.WORK] != Work.SHORT:
            return BUSY_SHARE
        now = time.monotonic()
        if now - self._space_checked > CHECK_SECONDS:
            self._space_checked = now
            self._free = self._space().share * 100
        pressed = 1 - min(self._free / self._settings.low_space, 1.0)
        return BUSY_SHARE + pressed * (PRESSED_SHARE - BUSY_SHARE)

    def _show(self) -> None:
        figures, row = self._collector.figures, self._row
        row[Cell.FREED] = figures.logs
        row[Cell.FREED_OCTETS] = figures.octets
        row[Cell.MOVED_OCTETS] = figures.moved_octets
        row[Cell.DAMAGED] = figures.damaged
        row[Cell.DAMAGED_LOG] = figures.damaged_log
        row[Cell.EXPIRED] = self._expiry_scan.figures.messages
        row[Cell.IN_USE] = self._expiry_scan.figures.in_use
        row[Cell.ORPHANED] = self._expiry_scan.orphans


def main(setup: CollectorSetup) -> int:
    """The collector's life, in a forked child."""
    return CollectorWorker(setup).run()
