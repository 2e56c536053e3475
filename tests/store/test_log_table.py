"""The log table: changes that a kill leaves whole, and the semaphore's repair."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from metad.errors import RefusedError
from metad.store import log_table as table_module
from metad.store.log_table import (  # fmt: skip
    HOLDING,
    IDLE,
    WAITING,
    Allocation,
    LogState,
    LogTable,
    Room,
    Row,
    TableBusyError,
    is_stopped,
    repair,
)
from metad.system import shared_memory
from metad.system.shared_memory import Cell, SharedArea
from tests.support.store_kit import shared


class Shared:
    """A table that several processes share."""

    def __init__(self) -> None:
        self.area, self.semaphore = shared("table")

    def table(self, slot: int, failpoint: Callable[[str], None] = lambda name: None) -> LogTable:
        return LogTable(self.area, self.semaphore, self.area.process(slot), failpoint)

    def cell(self, slot: int) -> int:
        return self.area.process(slot)[Cell.SEMAPHORE]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(table_module, "ACQUIRE_SECONDS", 0.05)
    monkeypatch.setattr(table_module, "REPAIR_SECONDS", 0.02)
    return Shared()


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its wait status."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


# -- without kills


def test_logs_are_numbered_from_one_and_lives_rise(both: Shared) -> None:
    table = both.table(0)
    assert table.allocate(0, 1000) == Allocation(1, 1000, True)
    assert table.allocate(1, 1000) == Allocation(2, 1001, True)
    assert table.allocate(0, 5000) == Allocation(3, 5000, True)
    assert table.allocate(0, 10) == Allocation(4, 5001, True)
    assert table.greatest_life() == 5001
    assert [(r.number, r.state, r.generation, r.owner) for r in table.rows()] == [
        (1, LogState.PREPARING, 0, 1), (2, LogState.PREPARING, 1, 1),
        (3, LogState.PREPARING, 0, 1), (4, LogState.PREPARING, 0, 1),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_log_that_is_given_up_while_the_semaphore_is_held_is_so_with_the_next_change(
    both: Shared,
) -> None:
    mine, other = both.table(0), both.table(1)
    for _ in range(3):
        mine.allocate(0, 1000)
    both.semaphore.acquire()
    mine.give_up(1, LogState.SEALED)
    mine.give_up(2, LogState.FREE, life=7)
    mine.give_up(3, LogState.COLLECTING)
    assert {row.state for row in mine.rows()} == {LogState.PREPARING}
    with pytest.raises(TableBusyError):
        mine.catch_up()
    both.semaphore.release()
    other.change(other.allocate(0, 1000).number, LogState.ACTIVE)
    assert mine.row(1).state == LogState.PREPARING
    assert mine.allocate(0, 2000) == Allocation(2, 2000, False, old_life=7)
    assert [(r.state, r.life, r.owner) for r in mine.rows()] == [
        (LogState.SEALED, 1000, 0), (LogState.PREPARING, 2000, 1),
        (LogState.COLLECTING, 1002, 1), (LogState.ACTIVE, 1003, 2),
    ]  # fmt: skip
    mine.change(1, LogState.COLLECTING)
    mine.catch_up()  # nothing is made twice
    assert mine.row(1).state == LogState.COLLECTING


def test_a_free_log_is_used_before_a_new_one(both: Shared) -> None:
    table = both.table(0)
    for _ in range(3):
        table.allocate(0, 1000)
    table.change(2, LogState.FREE)
    assert table.allocate(0, 1000) == Allocation(2, 1003, False, 1001)
    assert table.allocate(0, 1000) == Allocation(4, 1004, True)


def test_the_number_of_a_log_that_could_not_be_made_is_used_again(both: Shared) -> None:
    """A full disk must not use up the table by one number per attempt."""
    table = both.table(0)
    for life in range(1000, 1050):
        assert table.allocate(0, 1000)[:3] == (1, life, True)
        table.change(1, LogState.NONE)
    assert table.rows() == []


def test_a_log_never_begins_a_life_twice(both: Shared) -> None:
    table, other = both.table(0), both.table(1)
    lives = []
    for number in range(40):
        given = (table if number % 3 else other).allocate(0, 1000 - number)
        lives.append(given.life)
        table.change(given.number, LogState.FREE)
    assert lives == sorted(set(lives))


def test_states_have_owners_while_a_process_writes(both: Shared) -> None:
    table = both.table(5)
    table.allocate(0, 1000)
    for state in (LogState.PREPARING, LogState.ACTIVE, LogState.COLLECTING):
        table.change(1, state)
        assert table.row(1).owner == 6
        assert [row.number for row in table.owned_by(5)] == [1]
    for state in (LogState.SEALED, LogState.FREE, LogState.NONE):
        table.change(1, state)
        assert table.row(1).owner == 0
        assert table.owned_by(5) == []


def test_figures_are_kept_beside_the_state(both: Shared) -> None:
    table = both.table(0)
    table.allocate(3, 1000)
    table.set_tail(1, 4096)
    table.set_live(1, 7, 7000)
    table.change(1, LogState.SEALED)
    assert table.row(1) == Row(1, LogState.SEALED, 1000, 3, 0, 4096, 7, 7000)
    table.set_live(1, -1, -5)
    assert table.row(1)[6:] == (0, 0)


def test_recovery_restores_rows(both: Shared) -> None:
    table = both.table(0)
    table.restore(Row(5, LogState.SEALED, 900, 2, 0, 7777, 0, 0))
    table.restore(Row(3, LogState.FREE, 950, 0, 0, 0, 0, 0))
    assert [(r.number, r.state, r.life, r.tail) for r in table.rows()] == [
        (3, LogState.FREE, 950, 0), (5, LogState.SEALED, 900, 7777),
    ]  # fmt: skip
    assert table.allocate(0, 1) == Allocation(3, 951, False, 950)


def test_a_full_table_is_refused(both: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "LOGS", 4)
    table = both.table(0)
    for _ in range(3):
        table.allocate(0, 1)
    with pytest.raises(RefusedError):
        table.allocate(0, 1)
    assert both.cell(0) == IDLE
    table.change(1, LogState.FREE)
    assert table.allocate(0, 1).number == 1


@pytest.mark.slow
def test_a_semaphore_that_is_not_to_be_had_is_an_error_in_time(both: Shared) -> None:
    both.semaphore.acquire()
    with pytest.raises(TableBusyError):
        both.table(0).allocate(0, 1)
    assert both.cell(0) == IDLE
    both.semaphore.release()
    assert both.table(0).allocate(0, 1).number == 1


# -- killed at every step


def points(both: Shared, work: Callable[[LogTable], object]) -> list[str]:
    """The steps that `work` goes through."""
    seen: list[str] = []
    work(both.table(0, seen.append))
    return seen


def allocate(table: LogTable) -> object:
    return table.allocate(1, 2000)


def seal(table: LogTable) -> object:
    return table.change(1, LogState.SEALED)


def killer(step: int) -> Callable[[str], None]:
    left = step

    def failpoint(_name: str) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return failpoint


def old_or_new(work: Callable[[LogTable], object]) -> tuple[list[Row], list[Row]]:
    fresh = Shared()
    table = fresh.table(0)
    table.allocate(0, 1000)
    old = table.rows()
    work(table)
    return old, table.rows()


@pytest.mark.slow
@pytest.mark.parametrize("work", [allocate, seal])
def test_a_change_killed_at_any_step_is_whole_or_undone(
    both: Shared, work: Callable[[LogTable], object]
) -> None:
    old, new = old_or_new(work)
    steps = points(Shared(), lambda t: (t.allocate(0, 1000), work(t)))
    first = points(Shared(), lambda t: t.allocate(0, 1000))
    count = len(steps) - len(first)
    assert count >= 10
    outcomes = set()
    for step in range(count):
        here = Shared()
        here.table(0).allocate(0, 1000)
        status = in_child(lambda: work(here.table(0, killer(step))))  # noqa: B023
        assert os.WTERMSIG(status) == signal.SIGKILL
        after = here.table(1)
        held = here.cell(0) != IDLE
        if held:
            repair(here.semaphore, here.area, [(1, os.getpid())])
        here.area.process(0).clear()
        with after._change():  # the next process rolls forward
            rows = after.rows()
        assert rows in (old, new), f"step {step}"
        outcomes.add(rows == new)
        given = after.allocate(0, 1)
        assert given.life > max(row.life for row in rows)
        assert given.number not in {row.number for row in rows}
        assert not here.table(0)._cells[shared_memory.PLAN]
    assert outcomes == {True, False}


@pytest.mark.slow
def test_a_kill_at_every_step_leaves_the_semaphore_repairable_once(both: Shared) -> None:
    """After the repair it is free exactly once: two holders at a time are as bad as none."""
    for step in range(len(points(Shared(), allocate))):
        here = Shared()
        in_child(lambda: allocate(here.table(0, killer(step))))  # noqa: B023
        repair(here.semaphore, here.area, [])
        assert here.semaphore.value == 1, f"step {step}"


# -- a limit


def logs(both: Shared, *made: tuple[LogState, int]) -> LogTable:
    """A table with these logs: their states and generations."""
    table = both.table(0)
    for number, (state, generation) in enumerate(made, 1):
        table.restore(Row(number, state, 1, generation, 0, 0, 0, 0))
    return table


WORKERS_LOG = (LogState.ACTIVE, 0)
COLLECTORS_LOG = (LogState.ACTIVE, 1)
MADE_LOG = (LogState.PREPARING, 2)
FREE_LOG = (LogState.FREE, 0)
SEALED_LOG = (LogState.SEALED, 1)


@pytest.mark.parametrize(
    ("made", "has_room"),
    [
        ([WORKERS_LOG], True),
        ([WORKERS_LOG, WORKERS_LOG], False),
        ([WORKERS_LOG, SEALED_LOG], False),  # the collector no longer writes to it
        ([WORKERS_LOG, FREE_LOG, COLLECTORS_LOG], True),
        ([WORKERS_LOG, FREE_LOG, COLLECTORS_LOG, MADE_LOG], True),
        ([WORKERS_LOG, WORKERS_LOG, FREE_LOG, COLLECTORS_LOG], False),
        ([WORKERS_LOG, WORKERS_LOG, FREE_LOG, FREE_LOG], True),  # a free one
        ([WORKERS_LOG, COLLECTORS_LOG, COLLECTORS_LOG, MADE_LOG, MADE_LOG], False),
    ],
)
def test_the_collector_s_own_logs_leave_workers_their_room(
    both: Shared, made: list[tuple[LogState, int]], has_room: bool
) -> None:
    """Five logs: two for workers, three besides.  Regression: 452 until a restart, with almost all
    mail deleted."""
    room = Room(2, spare=1, besides=3)
    table = logs(both, *made)
    assert table.has_room(room) is has_room
    if has_room:
        table.allocate(0, 1, room)
        assert len(table.rows()) <= 5
    else:
        with pytest.raises(RefusedError):
            table.allocate(0, 1, room)


# -- repair


def child_that(both: Shared, slot: int, failpoint_name: str) -> tuple[int, Callable[[], None]]:
    """A child that changes the table and waits inside at the step named; its pid."""
    reached, go = os.pipe(), os.pipe()

    def wait(name: str) -> None:
        if name == failpoint_name:
            os.write(reached[1], b"x")
            os.read(go[0], 1)

    child = os.fork()
    if not child:
        try:
            both.table(slot, wait).allocate(0, 1)
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.read(reached[0], 1)

    def finish() -> None:
        os.write(go[1], b"x")
        for fd in (*reached, *go):
            os.close(fd)

    return child, finish


@pytest.fixture
def children() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.mark.slow
def test_a_dead_holder_is_repaired(both: Shared, children: list[int]) -> None:
    child, _ = child_that(both, 0, "holding")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert both.cell(0) == HOLDING
    assert repair(both.semaphore, both.area, [(1, os.getpid())])
    assert both.table(1).allocate(0, 1).number == 1


@pytest.mark.slow
def test_a_holder_that_died_before_it_could_say_so_is_repaired(
    both: Shared, children: list[int]
) -> None:
    child, _ = child_that(both, 0, "acquired")
    assert both.cell(0) == WAITING
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert repair(both.semaphore, both.area, [])
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_a_living_holder_is_left_alone(both: Shared, children: list[int]) -> None:
    child, finish = child_that(both, 0, "planned")
    children.append(child)
    assert not repair(both.semaphore, both.area, [(0, child)])
    assert both.semaphore.value == 0
    finish()
    assert os.waitpid(child, 0)[1] == 0
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_a_stopped_holder_is_left_alone_until_it_goes_on_or_dies(
    both: Shared, children: list[int]
) -> None:
    """Stopped between the semaphore and its own cell, it has it without saying so."""
    child, _ = child_that(both, 0, "acquired")
    children.append(child)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    assert is_stopped(child)
    assert not repair(both.semaphore, both.area, [(0, child)])
    assert both.semaphore.value == 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert repair(both.semaphore, both.area, [])
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_a_dead_waiter_takes_nothing_with_it(both: Shared, children: list[int]) -> None:
    holder, finish = child_that(both, 0, "holding")
    children.append(holder)
    waiter = os.fork()
    if not waiter:
        table_module.ACQUIRE_SECONDS = 60.0
        both.table(1).allocate(0, 1)
        os._exit(0)
    deadline = time.monotonic() + 20
    while both.cell(1) != WAITING and time.monotonic() < deadline:
        os.sched_yield()
    os.kill(waiter, signal.SIGKILL)
    os.waitpid(waiter, 0)
    assert not repair(both.semaphore, both.area, [(0, holder)])
    finish()
    assert os.waitpid(holder, 0)[1] == 0
    assert both.semaphore.value == 1
    assert not repair(both.semaphore, both.area, [])
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_a_waiter_gets_what_a_dead_holder_had(both: Shared, children: list[int]) -> None:
    holder, _ = child_that(both, 0, "applying")
    waiter = os.fork()
    if not waiter:
        table_module.ACQUIRE_SECONDS = 60.0
        given = both.table(1).allocate(0, 1)
        os._exit(given.number)
    children.append(waiter)
    deadline = time.monotonic() + 20
    while both.cell(1) != WAITING and time.monotonic() < deadline:
        os.sched_yield()
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    both.area.process(0).clear()
    repaired = repair(both.semaphore, both.area, [(1, waiter)])
    assert repaired
    assert os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]) == 2
    assert both.semaphore.value == 1
    assert [row.owner for row in both.table(2).rows()] == [1, 2]


@pytest.fixture
def interrupted(both: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Signals with a handler arrive, one each millisecond; ends with whether there were some."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    monkeypatch.setattr(table_module, "REPAIR_SECONDS", 0.05)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    yield lambda: bool(seen)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_a_repair_that_signals_interrupt_is_made(
    both: Shared, interrupted: Callable[[], bool]
) -> None:
    """Regression: the death of another child ended the wait with an exception, and the master."""
    both.semaphore.acquire()
    assert repair(both.semaphore, both.area, [(1, os.getpid())])
    assert interrupted()
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_a_change_that_signals_interrupt_waits_on(
    both: Shared, interrupted: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    both.semaphore.acquire()
    with pytest.raises(TableBusyError):
        both.table(0).allocate(0, 1)
    assert interrupted()
    assert both.cell(0) == IDLE
    monkeypatch.setattr(table_module, "ACQUIRE_SECONDS", 60.0)
    handler = signal.signal(signal.SIGALRM, lambda *_: both.semaphore.release())
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # once: the holder is done
    assert both.table(0).allocate(0, 1).number == 1
    signal.signal(signal.SIGALRM, handler)
    assert both.semaphore.value == 1


def test_a_free_semaphore_is_not_posted(both: Shared) -> None:
    assert not repair(both.semaphore, both.area, [])
    assert both.semaphore.value == 1


@pytest.mark.slow
def test_random_kills_never_break_the_table(both: Shared) -> None:
    """Row 4 of the reliability page for the table: many changes, each killed somewhere."""
    here = both
    seen: set[int] = set()
    for step in range(60):
        in_child(lambda: allocate(here.table(0, killer(step % 23))))  # noqa: B023
        repair(here.semaphore, here.area, [])
        here.area.process(0).clear()
        given = here.table(1).allocate(0, 1)
        assert given.life not in seen
        seen.add(given.life)
        here.table(1).change(given.number, LogState.FREE)
    assert here.semaphore.value == 1
    lives = [row.life for row in here.table(1).rows()]
    assert len(lives) == len(set(lives))


def test_areas_are_separate_by_name() -> None:
    one, two = shared("a")[0], shared("b")[0]
    one.cells[20] = 5
    assert two.cells[20] == 0
    assert isinstance(one, SharedArea)
