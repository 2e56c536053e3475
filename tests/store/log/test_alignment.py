"""A write touches no block that holds acknowledged mail."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from metad.store.log import alignment
from metad.store.log.alignment import ALIGNS, DEFAULT_ALIGN
from metad.system.osio import Osio
from tests.support import power_campaign, power_kit
from tests.support.oracle import Ledger
from tests.support.osio_kit import KitOsio
from tests.support.store_kit import StoreKit


class Disks(Osio):
    def __init__(self, block: int, sector: int) -> None:
        self._block, self._sector = block, sector

    def block_size(self, path: str) -> int:
        return self._block

    def sector_size(self, path: str) -> int:
        return self._sector


@pytest.mark.parametrize(
    ("block", "sector", "align"),
    [(4096, 512, 4096), (1024, 0, 4096), (4096, 16384, 16384), (65536, 4096, 65536),
     (4096, 5000, 8192), (1 << 20, 512, 65536)],
)  # fmt: skip
def test_the_larger_of_block_and_sector_counts(block: int, sector: int, align: int) -> None:
    assert alignment.alignment(Disks(block, sector), "/") == align


def test_the_setting_overrides() -> None:
    assert alignment.alignment(Disks(4096, 4096), "/", 512) == 512


def test_a_real_directory_has_a_block_and_perhaps_a_sector(tmp_path: Path) -> None:
    osio = Osio()
    assert osio.block_size(str(tmp_path)) >= 512
    assert osio.sector_size(str(tmp_path)) >= 0
    assert alignment.alignment(osio, str(tmp_path)) in ALIGNS[1:]


def spoiled(align: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Power cuts that lose acknowledged mail, on a disk that writes blocks of 4 KiB and destroys
    the one being written."""
    monkeypatch.setattr(power_kit, "SECTOR", 4096)
    data = power_campaign.scratch()
    osio = KitOsio(record=True, watch=str(data / "logs"))
    rng = random.Random(3)
    judge = power_campaign.Judge()
    spoiled = 0
    try:
        with StoreKit(data, osio, size=256 * 1024, align=align) as kit:
            kit.start()
            for number in range(12):
                kit.put([1], b"m%d" % number * rng.randrange(1, 300))
            kit.stop()
        for _, disk, ledger in power_campaign.boundaries(osio.ops, {}, Ledger()):
            try:
                judge.judge(disk.state(rng, "torn"), osio.watch, ledger)
            except AssertionError:
                spoiled += 1
    finally:
        judge.close()
        shutil.rmtree(data)
    return spoiled


@pytest.mark.slow
def test_a_spoiled_block_under_way_costs_no_acknowledged_mail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert spoiled(DEFAULT_ALIGN, monkeypatch) == 0


@pytest.mark.slow
def test_with_512_a_spoiled_block_costs_acknowledged_mail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the test above would prove nothing."""
    assert spoiled(512, monkeypatch) > 0
