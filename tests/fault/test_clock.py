"""Reliability row 10: the clock jumps, stands still, runs back; over restarts too."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import power_campaign
from tests.support.osio_kit import SEED, FakeClock, KitOsio, scaled
from tests.support.store_kit import StoreKit

DAY = 86_400 * 10**9


@pytest.fixture
def data() -> Iterator[Path]:
    made = power_campaign.scratch()
    yield made
    shutil.rmtree(made)


def lives(kit: StoreKit) -> list[int]:
    return [row.life for row in kit.table.rows()]


@pytest.mark.parametrize("turn", range(scaled(6)))
def test_ids_are_unique_and_in_order_whatever_the_clocks_do(data: Path, turn: int) -> None:
    rng = random.Random(SEED + turn)
    clock = FakeClock()
    ids: list[bytes] = []
    last = {0: b"", 1: b""}
    seen: set[tuple[int, int]] = set()
    with StoreKit(data, KitOsio(clock=clock), size=power_campaign.SIZE) as kit:
        for _ in range(12):
            clock.real += rng.choice([0, 0, -400 * DAY, -DAY, 10**9, 30 * DAY])
            clock.real = max(clock.real, 0)
            clock.monotonic = rng.choice(
                [0, 10**9, clock.monotonic, 10**15]
            )  # with or without a boot
            clock.step = rng.choice([0, 1, 1000, 10**6])
            kit.start(2)
            for row in kit.table.rows():
                seen.add((row.number, row.life))
            for number in range(8):
                clock.real += rng.choice([0, -DAY, DAY])
                sent = kit.put([1], b"x" * rng.randrange(800), number % 2)
                assert sent.acked
                assert sent.id > last[number % 2], "order was not kept"
                last[number % 2] = sent.id
                ids.append(sent.id)
            assert len(set(lives(kit))) == len(lives(kit))
            rng.choice([kit.crash, kit.stop])()
            if rng.random() < 0.4:
                kit.drop_index()
        kit.start()
        assert len(set(ids)) == len(ids)
        assert kit.check() == len(ids)
    by_life: dict[int, set[int]] = {}
    for number, life in seen:
        by_life.setdefault(life, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_life.values()), "a life was given twice"


def test_mail_after_a_restart_is_after_mail_before_it(data: Path) -> None:
    """The real clock was set back by a year in between."""
    clock = FakeClock()
    with StoreKit(data, KitOsio(clock=clock), size=power_campaign.SIZE) as kit:
        kit.start()
        before = [kit.put([1], b"%d" % n).id for n in range(5)]
        kit.stop()
        clock.real -= 365 * DAY
        clock.monotonic = 5
        kit.boot = "boot-2"
        kit.start()
        after = [kit.put([1], b"%d" % n).id for n in range(5)]
        assert min(after) > max(before)
        assert [each for each, _ in kit.listing(1)] == before + after


def test_two_workers_share_one_order(data: Path) -> None:
    clock = FakeClock()
    with StoreKit(data, KitOsio(clock=clock), size=power_campaign.SIZE) as kit:
        kit.start(2)
        sent = []
        for number in range(20):
            clock.monotonic += 10**6
            sent.append(kit.put([1], b"%d" % number, number % 2).id)
        assert sent == sorted(sent)


def test_a_clock_that_stands_still_at_start_gives_new_lives(data: Path) -> None:
    clock = FakeClock()
    clock.step = 0
    seen: list[int] = []
    with StoreKit(data, KitOsio(clock=clock), size=power_campaign.SIZE) as kit:
        for _ in range(5):
            kit.start(2)
            kit.put([1], b"x", 0)
            kit.put([1], b"x", 1)
            seen += [writer.committer.writer.life for writer in kit.writers]  # type: ignore[union-attr]
            kit.crash()
        assert len(set(seen)) == len(seen)
        kit.start()
        assert kit.check() == 10
