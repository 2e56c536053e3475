"""Shared memory of one hub: counters and the log table, rebuildable at any time.

    cell    what
       0    layout number
       1    offset of hub time to the boot-time clock, in ns (two's complement)
       2    hub state: 1 starting, 2 serving, 3 draining
       3    1: the wall clock is implausibly far ahead (metad.store.hub_time)
       4    the epoch of the cluster's view that is in force (metad.cluster.current_view)
       5    the epoch under which this node last sent all that others lack (metad.cluster.walking)
       6    etcd's word: when the requests were sent that read the epoch, in ns (metad.cluster.word)
       7    etcd's word: the epoch that was read
     8-9    the greatest life and the rows in use (metad.store.log_table)
   10-11    the beat of this node, and 1 if it takes no part (metad.cluster.own_marks)
      12    since when the directory in etcd is not trusted, in Unix seconds; 0: it is
      13    process rows that children have had so far, counted from the first; 0: unknown
      14    when store.json was made again at this start (metad.store.lost_identity); 0: it was not
      15    when a session last waited for mail to be entered in the index, in monotonic ns
            (metad.store.unentered_mail)
    16-31   the plan of a change of the log table (metad.store.log_table)
    32 ..   one row of 128 cells per process
     ..     one row of 8 cells per log
     ..     three tables per process: counts per client network (metad.sessions.shared_counts)
     ..     16 cells per process: mailboxes with deletions that the index lacks
            (metad.store.pending_deletions)
     ..     per process, since when acknowledged mail waits for its entry in the index, then 16
            cells per process: the mailboxes that it is for (metad.store.unentered_mail)
     ..     16 cells: how a node of a cluster stands (metad.system.node_standing)

Every cell is an aligned 64-bit integer with one writer at a time, but for cell 15, stored through a
cast memoryview, so that no reader ever sees half of one.  The master creates the area before it
forks, and children inherit the mapping; its name is only for programs that show counters.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from enum import IntEnum

import posix_ipc

from metad.system import node_standing

LAYOUT = 8
HEAD_CELLS = 32
PROCESS_CELLS = 128
PROCESSES = 160
LOG_CELLS = 8
LOGS = 65536
UNENTERED_ASKED = 15
PLAN = 16
ETCD = 22
HISTOGRAM_CELLS = 18
TALLY_CELLS = 4096
TALLIES = HEAD_CELLS + PROCESSES * PROCESS_CELLS + LOGS * LOG_CELLS
PENDING_CELLS = 16
TALLY_TABLES = 3
PENDING = TALLIES + TALLY_TABLES * PROCESSES * TALLY_CELLS
UNENTERED_SINCE = PENDING + PROCESSES * PENDING_CELLS
UNENTERED = UNENTERED_SINCE + PROCESSES
STANDING = UNENTERED + PROCESSES * PENDING_CELLS
CELLS = STANDING + node_standing.CELLS
_MASK = (1 << 64) - 1


class Cell(IntEnum):
    """Cells of a process row."""

    PID = 0
    ROLE = 1
    SLOT = 2
    HEARTBEAT = 3
    SEMAPHORE = 4
    STARTED = 5
    CONNECTIONS = 6
    # The version of Landlock that confines this process; 0: none.
    LANDLOCK = 7
    SMTP_CONNECTIONS = 8
    SMTP_OPEN = 9
    MESSAGES = 10
    MESSAGE_OCTETS = 11
    RECIPIENTS = 12
    REFUSED = 13
    GROUPS = 14
    POP3_CONNECTIONS = 15
    POP3_OPEN = 16
    LOGINS = 17
    LOGIN_FAILURES = 18
    RETRIEVED = 19
    RETRIEVED_OCTETS = 20
    DELETED = 21
    LOG_LINES_DROPPED = 22
    DAMAGED = 23
    COMMIT_FAILURES = 24
    # The collector (metad.workers.collector): rounds requested (in the master's row) and done, what
    # it is doing, logs left in this round; since its start: logs freed, octets freed and moved.
    ROUND = 25
    WORK = 26
    LEFT = 27
    FREED = 28
    FREED_OCTETS = 29
    MOVED_OCTETS = 30
    # The index's write lock: 0 idle, 1 waiting, otherwise held since then (monotonic ns).
    INDEX_LOCK = 31
    # The collector again: expired messages (and those of removed users), mailboxes skipped because
    # they were in use, and orphaned mailboxes found by the last expiry scan.
    EXPIRED = 32
    IN_USE = 33
    ORPHANED = 34
    # Filters: messages checked, refusals, messages for second mailboxes, failures, and microseconds
    # that messages waited for their verdicts.
    FILTER_CHECKS = 35
    FILTER_REFUSED = 36
    FILTER_JUNK = 37
    FILTER_FAILURES = 38
    FILTER_TIME_US = 39
    # Refusals again, each in one of these by its reason (metad.system.refusals).
    REFUSED_CONNECTION = 40
    REFUSED_UNKNOWN = 41
    REFUSED_DISABLED = 42
    REFUSED_RELAY = 43
    REFUSED_QUOTA = 44
    REFUSED_SIZE = 45
    REFUSED_SPACE = 46
    REFUSED_FAILURE = 47
    REFUSED_RATE = 48
    REFUSED_SYNTAX = 49
    REFUSED_FILTER = 50
    REFUSED_OTHER = 51
    # Logins that failed, by the reason in the log.
    LOGIN_UNKNOWN = 52
    LOGIN_DISABLED = 53
    LOGIN_WRONG = 54
    LOGIN_GONE = 55
    LOGIN_REFUSED = 56
    # Handshakes by their outcome.
    TLS_1_2 = 57
    TLS_1_3 = 58
    TLS_FAILED = 59
    # In the master's row: processes that died, at the cell of their role.
    DEATHS = 60
    # Since when, in Unix seconds (0: not so): the index lacks groups of this worker; its writer
    # pauses after failed writes; it has no space for new mail.
    INDEX_BEHIND = 66
    WRITES_FAIL = 67
    NO_SPACE = 68
    # Since when it has given up a log because a write or sync failed.
    LOG_FAILED = 69
    # The log with the damaged record that this process found last.
    DAMAGED_LOG = 70
    # Collections that failed, since the collector's start.
    UNCOLLECTED = 71
    # Histograms (metad.system.histograms), each of `HISTOGRAM_CELLS`.
    COMMIT_TIME = 72
    SYNC_TIME = 90
    GROUP_SIZE = 108
    # Since when users may be missing that come back: the users database was lost.
    USERS_LOST = 126
    # Octets that groups of commits wrote to logs, alignment included.
    LOG_OCTETS = 127


class Role(IntEnum):
    NONE = 0
    WORKER = 1
    RECOVERY = 2
    COLLECTOR = 3
    MONITOR = 4
    DIRECTORY = 5


_NO_FIGURES = memoryview(bytes(8 * PROCESS_CELLS)).cast("Q")
_NONE_PENDING = memoryview(bytes(8 * PENDING_CELLS)).cast("Q")
_NO_TALLY = memoryview(bytes(8 * TALLY_CELLS)).cast("Q")


class Tally(IntEnum):
    """Which table: connections, or messages in this minute."""

    CONNECTIONS = 0
    MESSAGES = 1
    FAILURES = 2  # of logins, each count with the time of the last one


class ProcessRow:
    """The row of cells that one process writes."""

    def __init__(self, cells: memoryview, index: int) -> None:
        self.index = index
        start = HEAD_CELLS + index * PROCESS_CELLS
        self.cells = cells[start : start + PROCESS_CELLS]
        self._all = cells

    def add(self, cell: int, amount: int = 1) -> None:
        self.cells[cell] += amount

    def __getitem__(self, cell: int) -> int:
        return self.cells[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self.cells[cell] = value

    def clear(self) -> None:
        self.cells[:] = _NO_FIGURES
        start = PENDING + self.index * PENDING_CELLS
        self._all[start : start + PENDING_CELLS] = _NONE_PENDING
        self._all[UNENTERED_SINCE + self.index] = 0
        start = UNENTERED + self.index * PENDING_CELLS
        self._all[start : start + PENDING_CELLS] = _NONE_PENDING
        self.forget_clients()

    def tally(self, which: Tally) -> memoryview:
        start = TALLIES + (which * PROCESSES + self.index) * TALLY_CELLS
        return self._all[start : start + TALLY_CELLS]

    def forget_clients(self) -> None:
        """Its connections are gone and no longer count."""
        self.cells[Cell.CONNECTIONS] = 0
        for which in Tally:
            self.clear_tally(which)

    def clear_tally(self, which: Tally) -> None:
        self.tally(which)[:] = _NO_TALLY


class SharedArea:
    """The mapped area.  Made by `create` in the master, inherited by its children."""

    def __init__(self, name: str, mapped: mmap.mmap) -> None:
        self.name = name
        self._mapped = mapped
        self.cells = memoryview(mapped).cast("Q")

    @classmethod
    def create(cls, name: str) -> SharedArea:
        """Raises posix_ipc.Error or OSError.  All pages are allocated now: a page without space
        would raise SIGBUS when it is first written to."""
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=CELLS * 8)
        return cls._map(name, memory, layout=LAYOUT)

    @classmethod
    def unnamed(cls) -> SharedArea:
        """One that nothing else can attach, for this process and its children: it ends with them.
        Its pages are allocated when they are first written to."""
        area = cls("", mmap.mmap(-1, CELLS * 8))
        area.cells[0] = LAYOUT
        return area

    @classmethod
    def attach(cls, name: str) -> SharedArea:
        """Raises posix_ipc.ExistentialError if it is gone, ValueError for another layout."""
        area = cls._map(name, posix_ipc.SharedMemory(name))
        if area.cells[0] != LAYOUT:
            raise ValueError(f"shared memory layout {area.cells[0]}, not {LAYOUT}")
        return area

    @classmethod
    def _map(cls, name: str, memory: posix_ipc.SharedMemory, layout: int = 0) -> SharedArea:
        try:
            if layout:
                os.posix_fallocate(memory.fd, 0, CELLS * 8)
            area = cls(name, mmap.mmap(memory.fd, CELLS * 8))
        finally:
            os.close(memory.fd)
        if layout:
            area.cells[0] = layout
        return area

    def unlink(self) -> None:
        unlink(self.name)

    @property
    def clock_offset(self) -> int:
        value: int = self.cells[1]
        return value - (1 << 64) if value >> 63 else value

    @clock_offset.setter
    def clock_offset(self, value: int) -> None:
        self.cells[1] = value & _MASK

    @property
    def clock_suspect(self) -> int:
        return int(self.cells[3])

    @clock_suspect.setter
    def clock_suspect(self, value: int) -> None:
        self.cells[3] = value

    @property
    def store_remade(self) -> int:
        """When store.json was made again from the logs' headers, in Unix seconds; 0: never."""
        return int(self.cells[14])

    @store_remade.setter
    def store_remade(self, when: int) -> None:
        self.cells[14] = when

    @property
    def clock_cell(self) -> memoryview:
        """The cell of the offset, signed, for frequent readers of hub time."""
        return self.cells[1:2].cast("B").cast("q")

    @property
    def epoch_cell(self) -> memoryview:
        """The cell of the epoch in force."""
        return self.cells[4:5]

    @property
    def walked_cell(self) -> memoryview:
        """The cell of the epoch of the last walk."""
        return self.cells[5:6]

    @property
    def word_cells(self) -> tuple[memoryview, memoryview]:
        """The cells of etcd's word: when it was asked, and the epoch."""
        return self.cells[6:7], self.cells[7:8]

    @property
    def frozen_cell(self) -> memoryview:
        """The cell that tells since when the directory in etcd is not trusted."""
        return self.cells[12:13]

    @property
    def etcd_cell(self) -> memoryview:
        """The cell that tells which etcd is trusted (its `cluster_id`); 0: none, or not known."""
        return self.cells[ETCD : ETCD + 1]

    @property
    def etcd_refuses_cell(self) -> memoryview:
        """The cell that tells since when etcd refuses what this node writes, in Unix seconds."""
        return self.cells[ETCD + 1 : ETCD + 2]

    @property
    def refused_cell(self) -> memoryview:
        """The second of them."""
        return self.cells[11:12]

    @property
    def marks_cells(self) -> memoryview:
        """The cells of this node's own marks."""
        return self.cells[10:12]

    @property
    def rows_used(self) -> int:
        """Process rows behind this number have never had a child."""
        return self.cells[13] or PROCESSES

    def use_row(self, row: ProcessRow) -> None:
        """A child is about to have this row."""
        self.cells[13] = max(self.cells[13], row.index + 1)

    def process(self, index: int) -> ProcessRow:
        return ProcessRow(self.cells, index)

    def column(self, cell: Cell) -> memoryview:
        """One cell of every process row."""
        end = HEAD_CELLS + PROCESSES * PROCESS_CELLS
        return self.cells[HEAD_CELLS + cell : end : PROCESS_CELLS]

    def log_cells(self) -> memoryview:
        return self.cells[HEAD_CELLS + PROCESSES * PROCESS_CELLS : TALLIES]

    def pending_cells(self) -> memoryview:
        """Of every process, `PENDING_CELLS` each."""
        return self.cells[PENDING:UNENTERED_SINCE]

    def unentered_cells(self) -> tuple[memoryview, memoryview]:
        """Of every process: a cell, and `PENDING_CELLS`."""
        return self.cells[UNENTERED_SINCE:UNENTERED], self.cells[UNENTERED:STANDING]

    def standing_cells(self) -> memoryview:
        """How this node of a cluster stands (metad.system.node_standing)."""
        return self.cells[STANDING:CELLS]


def unlink(name: str) -> None:
    """Remove a segment and the semaphore of the same name, if they are there."""
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)
    with suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(name)
