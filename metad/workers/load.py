"""How busy the hub is, and how much space its logs have: the collector's basis for decisions.

Rule of this file: it only reads, from shared memory and the file system.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from metad.config.model import StoreConfig
from metad.store.log_table import LogState, Row
from metad.system import shared_memory
from metad.system.shared_memory import Cell, Role, SharedArea

# What counts as work: a message stored or sent, a login.
WORK = (Cell.MESSAGES, Cell.RETRIEVED, Cell.LOGINS)


class Load:
    """The rate of work of all workers, and since when it is low.  `clock`: monotonic seconds."""

    def __init__(self, area: SharedArea, idle_below: float, clock: Callable[[], float]) -> None:
        self._area = area
        self._idle_below = idle_below
        self._clock = clock
        self._then = clock()
        self._before = self._sum()
        self._quiet_since = self._then
        self.rate = 0.0

    def look(self) -> None:
        """Call this often; it measures at most once a second."""
        now = self._clock()
        if now - self._then < 1.0:
            return
        total = self._sum()
        # The counters of a worker that died are gone: that second counts as idle.
        self.rate = max(total - self._before, 0) / (now - self._then)
        self._before, self._then = total, now
        if self.rate >= self._idle_below:
            self._quiet_since = now

    @property
    def is_low(self) -> bool:
        return self.rate < self._idle_below

    @property
    def quiet_seconds(self) -> float:
        return self._clock() - self._quiet_since

    def _sum(self) -> int:
        rows = (self._area.process(index) for index in range(shared_memory.PROCESSES))
        return sum(row[cell] for row in rows if row[Cell.ROLE] == Role.WORKER for cell in WORK)


class Space(NamedTuple):
    """The logs that exist or may still be made: all of them, and the free ones."""

    total: int
    free: int

    @property
    def share(self) -> float:
        """Free, as a share of all."""
        return self.free / self.total if self.total else 1.0


def space(rows: Iterable[Row], settings: StoreConfig, logs: Path, needed: int = 0) -> Space:
    """The space for logs: below size_limit, or what the disk still has.  Raises OSError.

    `needed`: bytes of free disk below which new mail is deferred, however many logs are free.
    """
    states = [row.state for row in rows]
    disk = shutil.disk_usage(logs).free
    if settings.size_limit is not None:
        more = settings.size_limit // settings.log_size - len(states)
    else:
        more = disk // settings.log_size
    more = max(more, 0)
    free = states.count(LogState.FREE) + more
    return Space(len(states) + more, free if disk > needed else 0)
