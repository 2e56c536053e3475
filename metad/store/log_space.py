"""Space for logs: what the disk has, what new mail needs, and which free logs to unlink.

Rules of this file:

* New mail needs blocks for its index entries besides those of its log.  Below `needed` bytes of
  free disk it is deferred; deletions continue.
* Free logs are space.  If the disk is short of it they are unlinked, as long as some are left for
  the collector; those beyond a reserve are unlinked in any case.  A free log does not help mail
  whose index entries lack blocks.
* A log is unlinked only if its own header, read under its lock, says that it is free in the life
  that the table names.
* Space allocated in advance is proportional to the disk: a new hub takes a small share of it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from metad.errors import MetadError, RefusedError
from metad.store.identity import Store
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log_table import LogState, LogTable, Room
from metad.system.osio import BLOCK, Osio

MOST_AHEAD = 8 << 20
LEAST_AHEAD = 256 << 10
INDEX_RESERVE = 32 << 20
# Free logs that are kept: enough for workers and collector, or an eighth of all logs.
KEPT_FREE = 4
KEPT_SHARE = 8
# On a disk short of space: this many more than the collector's spare ones, for deletions, unless
# mail is taken again without them.
KEPT_WHEN_SHORT = 1


class Figures(NamedTuple):
    """Space for mail, in bytes and numbers of logs."""

    free: int
    needed: int
    logs: int
    free_logs: int
    most_logs: int
    log_size: int

    def __str__(self) -> str:
        text = (
            f"{self.free:,} bytes of the disk are free, {self.needed:,} are needed; "
            f"{self.logs} logs of {self.log_size:,} bytes, {self.free_logs} of them free"
        )
        return text if self.most_logs >= 1 << 16 else f"{text}, {self.most_logs} allowed"


def needed_space(osio: Osio, logs: str, size: int) -> int:
    """Bytes of free disk below which new mail is deferred; `size` of a log.  Raises OSError."""
    total = osio.total_space(logs)
    return min(INDEX_RESERVE, total // 32) + min(size // 4, total // 64)


class LogSpace:
    """Checks the disk of one store, and unlinks free logs."""

    def __init__(self, osio: Osio, store: Store, table: LogTable, size: int, room: Room) -> None:
        self._osio = osio
        self._store = store
        self._table = table
        self._size = size
        self._room = room
        self.needed = needed_space(osio, store.logs, size)
        # Blocks that a log has ready beyond its end.
        self.ahead = max(LEAST_AHEAD, min(MOST_AHEAD, osio.total_space(store.logs) // 256))

    def figures(self) -> Figures:
        states = [row.state for row in self._table.rows()]
        free = self._osio.free_space(self._store.logs)
        free_logs = states.count(LogState.FREE)
        return Figures(free, self.needed, len(states), free_logs, self._room.most, self._size)

    def look(self) -> bool:
        """Whether the disk has room for new mail.  Unlinks one free log if that helps, or if there
        are more than the reserve.  Raises OSError."""
        free = self._osio.free_space(self._store.logs)
        is_short = free <= self.needed
        free_logs = self._table.count(LogState.FREE)
        keep = self._room.spare + (KEPT_WHEN_SHORT if is_short else KEPT_FREE)
        if free_logs > keep and not is_short:
            keep = max(keep, len(self._table.rows()) // KEPT_SHARE)
        if is_short and free_logs == keep and free + self._least_free_log() > self.needed:
            keep = self._room.spare
        gone = free_logs > keep and self._give_back(keep)
        if is_short and gone:
            return self._osio.free_space(self._store.logs) > self.needed
        return not is_short

    def _least_free_log(self) -> int:
        """Bytes of disk that the smallest of the free logs has, 0 if that is not known."""
        free = (row.number for row in self._table.rows() if row.state is LogState.FREE)
        paths = [log_path(self._store.logs, number) for number in free]
        try:
            return min((self._osio.stat(path).st_blocks * BLOCK for path in paths), default=0)
        except OSError:
            return 0

    def _give_back(self, keep: int) -> bool:
        """Unlink a free log, if more than `keep` are there."""
        try:
            given = self._table.allocate(0, 0, Room(0, keep))
        except RefusedError:
            return False
        number = given.number
        try:
            self._discard(number, given.old_life)
        except (OSError, MetadError):
            self._table.give_up(number, LogState.COLLECTING)  # like one that cannot be reused
            return False
        self._table.give_up(number, LogState.NONE)
        return True

    def _discard(self, number: int, life: int) -> None:
        """Unlink a log whose own header says that it is free in that life."""
        osio, store = self._osio, self._store
        fd = log_files.lock_log(osio, store.logs, number)
        try:
            log = header.read(osio, fd, store.secret)
            if log is None or (log.state, log.number, log.life) != (header.FREE, number, life):
                raise log_files.LogBusyError(f"log {number} is not marked free in its own header")
            osio.unlink(log_path(store.logs, number))
            osio.fsync_directory(store.logs)
        finally:
            osio.close(fd)


def is_sparse(osio: Osio, fd: int) -> bool:
    """Whether a file lacks blocks for a part of its size."""
    stat: os.stat_result = osio.fstat(fd)
    return stat.st_blocks * BLOCK < stat.st_size
