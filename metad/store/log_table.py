"""The log table in shared memory: each log's owner, state, fill and live mail.

A row per log, 8 cells: state, life, generation, owner (process row + 1), tail, live messages, live
octets, reserved.  The index is authoritative for counts, and the logs for mail; recovery recreates
the table at each start.

Rules of this file:

* *Changes of a log's state* happen under the semaphore, through a plan: first the plan's cells are
  written, then its flag, then the row; then the flag is cleared.  The next process that takes the
  semaphore first completes a plan that another left unfinished.
* POSIX semaphores are not released when their holder is killed.  So each process shows in its row
  what it does (idle, waiting, holding), every acquire has a timeout and none runs on an event loop,
  and only the master calls `repair`.
* A log that its owner has given up must not depend on that timeout: `give_up` notes the change, and
  the owner's next change makes it.
* Figures (tail, live counts) are plain stores, by one writer at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NamedTuple, Protocol

import posix_ipc

from metad.errors import NoSpaceError, RefusedError
from metad.system import shared_memory
from metad.system.shared_memory import LOG_CELLS, PLAN, Cell, ProcessRow, SharedArea

ACQUIRE_SECONDS = 10.0
REPAIR_SECONDS = 1.0
IDLE, WAITING, HOLDING = 0, 1, 2
_GREATEST_LIFE = 8
_ROWS_IN_USE = 9


class LogState(IntEnum):
    """States of a log.  NONE: no such log.  PREPARING: being made for its owner."""

    NONE = 0
    FREE = 1
    PREPARING = 2
    ACTIVE = 3
    SEALED = 4
    COLLECTING = 5


class Row(NamedTuple):
    number: int
    state: LogState
    life: int
    generation: int
    owner: int
    tail: int
    live_messages: int
    live_octets: int


class Allocation(NamedTuple):
    """A log given to a writer.  `fresh`: its file does not exist yet; otherwise its header must
    say that it is free, in the life `old_life`."""

    number: int
    life: int
    fresh: bool
    old_life: int = 0


class Room(NamedTuple):
    """What a writer may take: new logs while there are fewer than `most`, and free ones while
    `spare` others are left, because the collector must write before it can free.

    Up to `besides` logs that the collector writes to, and its spare ones, do not count.
    """

    most: int = shared_memory.LOGS
    spare: int = 0
    besides: int = 0


ROOM = Room()


class TableBusyError(RefusedError):
    """The semaphore could not be acquired in time."""


class Semaphore(Protocol):
    def acquire(self, timeout: float | None = None) -> None: ...
    def release(self) -> None: ...


class LogTable:
    """The table as one process sees it.  `me` is that process's row, `failpoint` for tests."""

    def __init__(
        self,
        area: SharedArea,
        semaphore: Semaphore,
        me: ProcessRow,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._cells = area.cells
        self._logs = area.log_cells()
        self._semaphore = semaphore
        self._me = me
        self._failpoint = failpoint
        # Rows of ours as they are to be, which the semaphore has refused so far.
        self._owed: dict[int, Row] = {}

    # -- figures

    def row(self, number: int) -> Row:
        start = number * LOG_CELLS
        state, life, generation, owner, tail, messages, octets = self._logs[start : start + 7]
        return Row(number, LogState(state), life, generation, owner, tail, messages, octets)

    def rows(self) -> list[Row]:
        """All existing logs."""
        rows = [self.row(number) for number in range(1, self._cells[_ROWS_IN_USE] + 1)]
        return [row for row in rows if row.state != LogState.NONE]

    def set_tail(self, number: int, tail: int) -> None:
        self._logs[number * LOG_CELLS + 4] = tail

    def set_live(self, number: int, messages: int, octets: int) -> None:
        start = number * LOG_CELLS
        self._logs[start + 5] = max(messages, 0)
        self._logs[start + 6] = max(octets, 0)

    def greatest_life(self) -> int:
        return int(self._cells[_GREATEST_LIFE])

    def count(self, state: LogState) -> int:
        """Logs in that state."""
        used = self._cells[_ROWS_IN_USE]
        return self._logs[LOG_CELLS : (used + 1) * LOG_CELLS : LOG_CELLS].tolist().count(state)

    # -- changes of state

    def next_life(self, now_seconds: int) -> int:
        """Take a life without a log.  Raises TableBusyError."""
        with self._change():
            life = max(self._cells[_GREATEST_LIFE] + 1, now_seconds)
            self._cells[_GREATEST_LIFE] = life
        return int(life)

    def restore(self, row: Row, was: Row | None = None) -> bool:
        """Enter the state that was read from disk.

        `was`: the row as it was when that was read: if the log has another owner or life by now,
        nothing is changed, and the result is False.  None: there is no writer yet.
        """
        with self._change():
            now = self.row(row.number)
            if was is not None and (now.owner, now.life) != (was.owner, was.life):
                return False
            self._logs[row.number * LOG_CELLS + 4] = row.tail
            self._plan(row.number, row.state, row.life, row.generation, row.owner)
        return True

    def put_back(self, given: Allocation, state: LogState) -> None:
        """An allocation was not used: the log is as before, in its old life."""
        was = self.row(given.number)
        if was.life == given.life:
            life = given.life if state == LogState.NONE else given.old_life
            self.restore(was._replace(state=state, owner=0, life=life), was)

    def is_mine(self, row: Row) -> bool:
        """Whether this process is the owner."""
        return row.owner == self._me.index + 1

    def allocate(
        self, generation: int, now_seconds: int, room: Room = ROOM, owner: int | None = None
    ) -> Allocation:
        """Give this process (or the one with row `owner`) a log and a life for it: a free one, or
        a new number.

        Raises TableBusyError, or RefusedError if the table is full or `room` grants no more.
        """
        with self._change():
            used = self._cells[_ROWS_IN_USE]
            states = self._logs[LOG_CELLS : (used + 1) * LOG_CELLS : LOG_CELLS].tolist()
            free = states.count(LogState.FREE) - room.spare
            wanted = (LogState.FREE, LogState.NONE) if free > 0 else (LogState.NONE,)
            number = next((states.index(s) + 1 for s in wanted if s in states), used + 1)
            if free <= 0 and self._counted(states, room) >= room.most:
                raise NoSpaceError("the logs have reached their limit")
            if number >= shared_memory.LOGS:
                raise RefusedError("the log table is full")
            life = max(self._cells[_GREATEST_LIFE] + 1, now_seconds)
            fresh = number > used or self._logs[number * LOG_CELLS] == LogState.NONE
            old_life = int(self._logs[number * LOG_CELLS + 1])
            its = self._me.index if owner is None else owner
            self._plan(number, LogState.PREPARING, life, generation, its + 1)
        return Allocation(number, life, fresh, old_life)

    def has_room(self, room: Room) -> bool:
        """Whether `allocate` would find a log now, within `room`."""
        used = self._cells[_ROWS_IN_USE]
        states = self._logs[LOG_CELLS : (used + 1) * LOG_CELLS : LOG_CELLS].tolist()
        return self._counted(states, room) < room.most or states.count(LogState.FREE) > room.spare

    def _counted(self, states: list[int], room: Room) -> int:
        """How many logs count against `room.most`."""
        there = len(states) - states.count(LogState.NONE)
        if there < room.most or not room.besides:
            return there
        generations = self._logs[LOG_CELLS + 2 : (len(states) + 1) * LOG_CELLS : LOG_CELLS].tolist()
        open_ = sum(
            bool(generation) and state in (LogState.PREPARING, LogState.ACTIVE)
            for state, generation in zip(states, generations, strict=True)
        )
        spare = min(states.count(LogState.FREE), room.spare)
        return there - min(open_ + spare, room.besides)

    def change(self, number: int, state: LogState) -> None:
        """Set the state of a log that we own, or whose lock we hold."""
        with self._change():
            row = self.row(number)
            self._plan(number, state, row.life, row.generation, self._owner_in(state))

    def give_up(self, number: int, state: LogState, life: int | None = None) -> None:
        """Like `change` (with another life, if given), of a log that we own and no longer use.  If
        the semaphore cannot be acquired, our next change or `catch_up` makes it."""
        self.owe(number, state, life)
        with suppress(TableBusyError):
            self.catch_up()

    def owe(self, number: int, state: LogState, life: int | None = None) -> None:
        """Like `give_up`, without a try: for one that has just failed."""
        row = self.row(number)
        self._owed[number] = row._replace(
            state=state, life=row.life if life is None else life, owner=self._owner_in(state)
        )

    def catch_up(self) -> None:
        """Make the changes that are owed.  Raises TableBusyError."""
        if self._owed:
            with self._change():
                pass

    def owned_by(self, process: int) -> list[Row]:
        """Logs that the process row `process` has and has not sealed."""
        return [row for row in self.rows() if row.owner == process + 1]

    @contextmanager
    def _change(self) -> Iterator[None]:
        cell = self._me
        cell[Cell.SEMAPHORE] = WAITING
        if not _acquired(self._semaphore, ACQUIRE_SECONDS):
            cell[Cell.SEMAPHORE] = IDLE
            raise TableBusyError("the log table's semaphore could not be acquired")
        self._failpoint("acquired")
        cell[Cell.SEMAPHORE] = HOLDING
        try:
            self._failpoint("holding")
            self._roll_forward()
            self._make_owed()
            yield
        finally:
            self._semaphore.release()
            self._failpoint("released")
            cell[Cell.SEMAPHORE] = IDLE

    def _make_owed(self) -> None:
        for number, row in list(self._owed.items()):
            self._plan(number, row.state, row.life, row.generation, row.owner)
            del self._owed[number]

    def _owner_in(self, state: LogState) -> int:
        """The owner of a log that we bring into this state."""
        ownerless = (LogState.SEALED, LogState.FREE, LogState.NONE)
        return 0 if state in ownerless else self._me.index + 1

    def _plan(self, number: int, state: LogState, life: int, generation: int, owner: int) -> None:
        plan = self._cells
        for at, value in enumerate((number, state, life, generation, owner), PLAN + 1):
            plan[at] = value
            self._failpoint("planning")
        plan[PLAN] = 1
        self._failpoint("planned")
        self._roll_forward()

    def _roll_forward(self) -> None:
        """Apply the plan, if there is one.  Idempotent."""
        plan = self._cells
        if not plan[PLAN]:
            return
        number, state, life, generation, owner = plan[PLAN + 1 : PLAN + 6]
        start = number * LOG_CELLS
        for at, value in enumerate((state, life, generation, owner), start):
            self._logs[at] = value
            self._failpoint("applying")
        plan[_ROWS_IN_USE] = max(plan[_ROWS_IN_USE], number)
        plan[_GREATEST_LIFE] = max(plan[_GREATEST_LIFE], life)
        self._failpoint("applied")
        plan[PLAN] = 0


def _acquired(semaphore: Semaphore, seconds: float) -> bool:
    """Whether it was acquired in that time.

    A signal with a handler ends sem_timedwait(3) (SignalError), such as the death of another child;
    Python waits on only in its own calls (PEP 475).
    """
    deadline = time.monotonic() + seconds
    left = seconds
    while True:
        try:
            semaphore.acquire(left)
            return True
        except posix_ipc.BusyError:
            return False
        except posix_ipc.SignalError:
            left = max(deadline - time.monotonic(), 0.0)


def repair(semaphore: Semaphore, area: SharedArea, living: list[tuple[int, int]]) -> bool:
    """Post the semaphore once if a dead process took it with it.  Only the master calls this,
    after it reaped a process whose cell was not idle.

    `living` are (process row, pid) of its children.  True: repaired.  False: nothing to repair, or
    not yet decidable; call again later.
    """
    if not _acquired(semaphore, REPAIR_SECONDS):
        for index, pid in living:
            if area.process(index)[Cell.SEMAPHORE] == HOLDING or is_stopped(pid):
                return False
        semaphore.release()
        return True
    semaphore.release()
    return False


def is_stopped(pid: int) -> bool:
    """True if `pid` is stopped by a signal or a tracer, so that its cells may lag."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")


def segment_name(store_id: bytes) -> str:
    """A name for the hub's segment and semaphore: one per store and master process."""
    return f"/metad-{store_id.hex()[:12]}-{os.getpid()}"
