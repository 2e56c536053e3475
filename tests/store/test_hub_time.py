"""Hub time follows the wall clock forward, but does not trust it blindly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store import hub_time
from metad.store.hub_time import DAY_NS, HubTime
from metad.store.ids import HubClock, IdMaker, time_of
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea
from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import StoreKit, fresh_area


@pytest.fixture
def clock() -> FakeClock:
    made = FakeClock()
    made.step = 0
    return made


@pytest.fixture
def area() -> Iterator[SharedArea]:
    made, _ = fresh_area()
    yield made


def microseconds(clock: FakeClock) -> int:
    return clock.real // 1000


def test_a_first_start_takes_the_wall_clock(clock: FakeClock, area: SharedArea) -> None:
    osio = KitOsio(clock=clock)
    hub_time.begin(osio, area, 0)
    assert HubClock(osio, area.clock_cell).now_us() == microseconds(clock)
    assert not area.clock_suspect


def test_hub_time_is_above_every_id_of_this_node(clock: FakeClock, area: SharedArea) -> None:
    osio = KitOsio(clock=clock)
    greatest = microseconds(clock) + 10**12
    hub_time.begin(osio, area, greatest)
    assert HubClock(osio, area.clock_cell).now_us() == greatest + 1


def test_a_clock_years_ahead_at_a_start_does_not_bind_the_store(
    clock: FakeClock, area: SharedArea
) -> None:
    osio = KitOsio(clock=clock)
    newest = microseconds(clock)
    clock.real += 400 * DAY_NS
    hub_time.begin(osio, area, newest)
    assert HubClock(osio, area.clock_cell).now_us() == newest + 1
    assert area.clock_suspect
    reports: list[str] = []
    kept = HubTime(osio, area, reports.append)
    for _ in range(3):
        kept.look()
    assert len(reports) == 1
    assert area.clock_suspect
    clock.real -= 400 * DAY_NS - 10**9  # a time server corrects it
    kept.look()
    assert not area.clock_suspect
    assert HubClock(osio, area.clock_cell).now_us() == microseconds(clock)


def test_a_jump_is_believed_once_it_is_confirmed(clock: FakeClock, area: SharedArea) -> None:
    osio = KitOsio(clock=clock)
    hub_time.begin(osio, area, 0)
    kept = HubTime(osio, area, lambda text: None)
    clock.real += 3 * DAY_NS
    kept.look()
    assert kept.answer(accept=False)["suspect"]
    found = kept.answer(accept=True)
    assert not found["suspect"]
    assert found["hub_time_us"] == found["clock_us"] == microseconds(clock)


def test_hub_time_follows_the_clock_forward_and_never_back(
    clock: FakeClock, area: SharedArea
) -> None:
    osio = KitOsio(clock=clock)
    hub_time.begin(osio, area, 0)
    kept = HubTime(osio, area, lambda text: None)
    ids = IdMaker(HubClock(osio, area.clock_cell), 1)
    before = time_of(ids.next())
    clock.real += 5 * 10**9
    kept.look()
    assert time_of(ids.next()) == microseconds(clock)
    clock.real -= 3600 * 10**9
    kept.look()
    assert time_of(ids.next()) >= before + 5_000_000
    assert not area.clock_suspect


def test_a_clock_before_the_boot_is_a_time_as_well(clock: FakeClock, area: SharedArea) -> None:
    clock.real = 5 * 10**9
    osio = KitOsio(clock=clock)
    hub_time.begin(osio, area, 0)
    assert area.clock_offset < 0
    assert HubClock(osio, area.clock_cell).now_us() == 5_000_000
    assert HubClock(osio, area.clock_offset).now_us() == 5_000_000


def test_hub_time_goes_on_while_the_machine_is_suspended() -> None:
    osio = Osio()
    assert osio.boottime_ns() >= osio.monotonic_ns() - 10**9
    assert HubClock(osio, 0).boottime_ns is osio.boottime_ns


def test_the_ids_of_another_node_bind_nothing(tmp_path: Path) -> None:
    with StoreKit(tmp_path) as kit:
        kit.start()
        mine = kit.put([1], b"x").id
        kit.writers[0].ids._node = 2
        foreign = kit.put([1], b"y").id
        assert kit.index.greatest_id(1) == mine
        assert kit.index.greatest_id(2) == foreign
        assert kit.index.greatest_id(3) == bytes(16)
