"""Ids and hub time: unique and in order, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.store.ids import HubClock, IdMaker
from tests.support.osio_kit import FakeClock, KitOsio


def maker(clock: FakeClock, node: int = 3, life: int = 0x12345) -> IdMaker:
    made = IdMaker(HubClock(KitOsio(clock=clock), 0), node)
    made.start_life(life)
    return made


def test_an_id_holds_time_node_life_and_sequence() -> None:
    clock = FakeClock(monotonic=5_000_000_000)
    clock.step = 0
    assert maker(clock).next().hex() == "00000000004c4b400003234500000001"


def test_ids_rise_while_the_clock_stands_still() -> None:
    clock = FakeClock()
    clock.step = 0
    made = maker(clock)
    ids = [made.next() for _ in range(1000)]
    assert ids == sorted(set(ids))


@pytest.mark.slow
@given(st.lists(st.integers(-(10**12), 10**12), max_size=50))
def test_ids_rise_while_the_clock_jumps(steps: list[int]) -> None:
    clock = FakeClock(monotonic=10**15)
    made = maker(clock)
    ids = []
    for step in steps:
        clock.monotonic += step
        ids.append(made.next())
    assert ids == sorted(set(ids))


def test_a_new_life_gives_other_ids_at_the_same_time() -> None:
    clock = FakeClock()
    clock.step = 0
    assert maker(clock, life=1).next() != maker(clock, life=2).next()
