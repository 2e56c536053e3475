"""Which children hang and which to kill, with a clock and children that are only numbers."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

import pytest

from metad.master.watchdog import BOOT_SECONDS, WAITING, Watchdog, to_kill
from metad.master.worker_pool import BACKOFF, Slot
from metad.system.shared_memory import Cell, Role

LIMIT = 30.0


class Clock:
    """Monotonic nanoseconds, advanced by hand."""

    def __init__(self, start: float = 1000.0) -> None:
        self.seconds = start

    def __call__(self) -> int:
        return int(self.seconds * 1e9)


@dataclass
class FakeChild:
    """Like metad.master.children.Child; signals are only recorded."""

    name: str = "worker 0 (pid 1)"
    role: Role = Role.WORKER
    ready: bool = True
    stopped: float = 0.0
    aborted: float = 0.0
    retired: float = 0.0
    row: dict[int, int] = field(default_factory=lambda: dict.fromkeys(Cell, 0))
    signals: list[int] = field(default_factory=list)

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def beat(self, clock: Clock) -> FakeChild:
        self.row[Cell.HEARTBEAT] = clock()
        return self


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock) -> Watchdog:
    return Watchdog(lambda text: None, clock)


def let_pass(watch, clock, seconds: float, *children: FakeChild, beating: tuple = ()) -> None:
    """Time passes as in the master's loop: four checks a second."""
    for _ in range(round(seconds * 4)):
        clock.seconds += 0.25
        for child in beating:
            child.beat(clock)
        watch.look([*children, *beating], LIMIT)


def test_a_heart_that_beats_is_left_alone(watch, clock):
    child = FakeChild().beat(clock)
    let_pass(watch, clock, 100, beating=(child,))
    assert child.signals == []


def test_one_that_hangs_gets_abort_and_then_kill(watch, clock):
    child = FakeChild().beat(clock)
    let_pass(watch, clock, 30, child)
    assert child.signals == []
    let_pass(watch, clock, 0.5, child)
    assert child.signals == [signal.SIGABRT]
    let_pass(watch, clock, 3, child)
    assert set(child.signals[1:]) == {signal.SIGKILL}


def test_one_that_is_stopped_is_killed_at_once_after_the_limit_whatever_its_role(watch, clock):
    child = FakeChild(role=Role.RECOVERY, stopped=clock.seconds)
    let_pass(watch, clock, 30, child)
    assert child.signals == []
    let_pass(watch, clock, 0.5, child)
    assert child.signals == [signal.SIGKILL]


def test_a_master_that_did_not_look_kills_no_process_for_that_time(watch, clock):
    child = FakeChild().beat(clock)
    clock.seconds += 3600
    watch.look([child], LIMIT)
    assert child.signals == []
    let_pass(watch, clock, 29, child)
    assert child.signals == []
    let_pass(watch, clock, 2, child)
    assert child.signals[0] == signal.SIGABRT


def test_one_that_begins_has_more_time(clock, watch):
    child = FakeChild(ready=False).beat(clock)
    for _ in range(round(BOOT_SECONDS * 4)):
        clock.seconds += 0.25
        watch.look([child], 1.0)
    assert child.signals == []
    clock.seconds += 0.5
    watch.look([child], 1.0)
    assert child.signals == [signal.SIGABRT]


def test_a_collector_has_more_time_too(clock, watch):
    child = FakeChild(role=Role.COLLECTOR).beat(clock)
    for _ in range(round(BOOT_SECONDS * 4)):
        clock.seconds += 0.25
        watch.look([child], 1.0)
    assert child.signals == []
    clock.seconds += 0.5
    watch.look([child], 1.0)
    assert child.signals == [signal.SIGABRT]


def test_only_the_holder_goes_and_who_waited_for_it_starts_afresh(watch, clock):
    holder, waiter = FakeChild().beat(clock), FakeChild().beat(clock)
    holder.row[Cell.INDEX_LOCK] = clock()
    waiter.row[Cell.INDEX_LOCK] = WAITING
    let_pass(watch, clock, 30.5, holder, waiter)
    assert holder.signals == [signal.SIGABRT]
    assert waiter.signals == []
    let_pass(watch, clock, 20, waiter)
    assert waiter.signals == []


def test_a_lock_held_too_long_is_a_hang_though_the_heart_beats(watch, clock):
    child = FakeChild(role=Role.COLLECTOR)
    child.row[Cell.INDEX_LOCK] = clock()
    let_pass(watch, clock, 30.5, beating=(child,))
    assert child.signals == [signal.SIGABRT]


def test_of_several_holders_the_oldest_goes():
    old, young, other = FakeChild(), FakeChild(), FakeChild()
    old.row[Cell.INDEX_LOCK], young.row[Cell.INDEX_LOCK] = 1000, 2000
    assert to_kill([young, other, old]) == [old]  # type: ignore[list-item]


def test_without_a_holder_waiters_are_spared_unless_all_wait():
    waiter, other = FakeChild(), FakeChild()
    waiter.row[Cell.INDEX_LOCK] = WAITING
    assert to_kill([waiter, other]) == [other]  # type: ignore[list-item]
    assert to_kill([waiter]) == [waiter]  # type: ignore[list-item]
    assert to_kill([]) == []


def test_a_clock_that_stands_still_or_goes_back_kills_no_process(watch, clock):
    child = FakeChild().beat(clock)
    for step in (0, 0, -500, 0):
        clock.seconds += step
        watch.look([child], LIMIT)
    assert child.signals == []


def test_the_first_death_costs_nothing_and_a_loop_ever_more():
    slot, delays = Slot(0), []
    for _ in range(12):
        slot.back_off(started=100.0, now=101.0)
        delays.append(slot.not_before - 101.0)
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert delays[-1] == BACKOFF.longest
    slot.back_off(started=100.0, now=500.0)
    assert slot.not_before == 500.0
