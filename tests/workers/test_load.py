"""How busy a hub is, and how much room its logs have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.config.model import StoreConfig
from metad.store.log_table import LogState, Row
from metad.system.shared_memory import Cell, Role, SharedArea
from metad.workers.load import Load, Space, space
from tests.support.store_kit import shared

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def area() -> Iterator[SharedArea]:
    area, _ = shared("load")
    yield area


def worker(area: SharedArea, index: int, **cells: int) -> None:
    row = area.process(index)
    row[Cell.ROLE] = Role.WORKER
    for name, value in cells.items():
        row.add(Cell[name], value)


def test_the_rate_is_that_of_all_workers_together(area: SharedArea) -> None:
    clock = Clock()
    worker(area, 1, MESSAGES=1000)
    load = Load(area, 50, clock)
    worker(area, 1, MESSAGES=60, RETRIEVED=20)
    worker(area, 2, LOGINS=40)
    clock.now += 2
    load.look()
    assert load.rate == 60
    assert not load.is_low
    assert load.quiet_seconds == 0


def test_it_is_measured_once_a_second(area: SharedArea) -> None:
    clock = Clock()
    load = Load(area, 50, clock)
    worker(area, 1, MESSAGES=1000)
    clock.now += 0.5
    load.look()
    assert load.rate == 0


def test_quiet_is_counted_from_the_last_busy_second(area: SharedArea) -> None:
    clock = Clock()
    load = Load(area, 50, clock)
    for messages in (500, 0, 10, 0):
        worker(area, 1, MESSAGES=messages)
        clock.now += 1
        load.look()
    assert load.is_low
    assert load.quiet_seconds == 3


def test_figures_that_died_with_a_worker_are_no_load(area: SharedArea) -> None:
    clock = Clock()
    worker(area, 1, MESSAGES=10_000)
    load = Load(area, 50, clock)
    area.process(1).clear()
    clock.now += 1
    load.look()
    assert load.rate == 0


def test_the_collector_s_own_row_is_no_load(area: SharedArea) -> None:
    clock = Clock()
    load = Load(area, 50, clock)
    area.process(3)[Cell.ROLE] = Role.COLLECTOR
    area.process(3)[Cell.MESSAGES] = 9999
    clock.now += 1
    load.look()
    assert load.rate == 0


def rows(*states: LogState) -> list[Row]:
    return [Row(number, state, 1, 0, 0, 0, 0, 0) for number, state in enumerate(states, 1)]


def test_room_below_the_limit(tmp_path: Path) -> None:
    config = StoreConfig(log_size=MIB, size_limit=10 * MIB + 5)
    found = space(rows(LogState.FREE, LogState.SEALED, LogState.ACTIVE), config, tmp_path)
    assert found == Space(10, 8)
    assert found.share == 0.8


def test_no_room_beyond_the_limit(tmp_path: Path) -> None:
    config = StoreConfig(log_size=MIB, size_limit=2 * MIB)
    assert space(rows(LogState.SEALED, LogState.SEALED, LogState.FREE), config, tmp_path) == Space(
        3, 1
    )


def test_free_logs_are_no_room_while_the_disk_has_none_for_the_index(tmp_path: Path) -> None:
    """Regression: 452 for new mail, and a collector that rested because it found enough free
    logs."""
    config = StoreConfig(log_size=MIB)
    logs = rows(LogState.FREE, LogState.SEALED)
    disk = shutil.disk_usage(tmp_path).free
    assert space(logs, config, tmp_path, needed=disk // 2).free > 1
    assert space(logs, config, tmp_path, needed=disk * 2).free == 0


def test_room_on_the_disk(tmp_path: Path) -> None:
    config = StoreConfig(log_size=2 << 30)
    found = space(rows(LogState.SEALED), config, tmp_path)
    assert found.total == found.free + 1
    assert Space(0, 0).share == 1.0
