"""What the committer measures about its groups."""

from __future__ import annotations

from pathlib import Path

from metad.store.commit.figures import CommitFigures
from metad.system.histograms import COMMIT_TIME, GROUP_SIZE, SYNC_TIME, read
from metad.system.shared_memory import Cell
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


def test_a_group_is_measured_once_with_its_bytes(tmp_path: Path) -> None:
    with StoreKit(tmp_path) as kit:
        kit.start()
        row = kit.area.process(5)
        kit.writers[0].committer.figures = CommitFigures(row)
        writer = kit.writers[0].committer.writer
        assert writer is not None
        before = writer.end
        for number in range(3):
            kit.submit([1], b"x%d" % number)
        kit.run()
        assert read([row], GROUP_SIZE).buckets[:3] == (0, 0, 1)
        assert read([row], GROUP_SIZE).total == 3
        assert sum(read([row], COMMIT_TIME).buckets) == sum(read([row], SYNC_TIME).buckets) == 1
        assert read([row], COMMIT_TIME).total >= read([row], SYNC_TIME).total > 0
        assert row[Cell.LOG_OCTETS] == writer.end - before > 0


def test_a_commit_takes_as_long_as_its_oldest_message_waits(tmp_path: Path) -> None:
    now = [100.0]
    with StoreKit(tmp_path) as kit:
        kit.start()
        row = kit.area.process(5)
        kit.writers[0].committer.figures = CommitFigures(row)
        kit.writers[0].committer._now = lambda: now[0]
        kit.submit([1], b"first")
        now[0] += 0.25
        kit.submit([1], b"second")
        kit.run()
        assert abs(read([row], COMMIT_TIME).total - 250_000) <= 1
        assert read([row], SYNC_TIME).total == 0


def test_a_group_whose_sync_fails_has_waited_but_is_not_counted_as_synced(tmp_path: Path) -> None:
    osio = KitOsio()
    with StoreKit(tmp_path, osio) as kit:
        kit.start()
        row = kit.area.process(5)
        kit.writers[0].committer.figures = CommitFigures(row)
        osio.faults = Faults("sync", 1)
        kit.put([1], b"x")
        assert sum(read([row], COMMIT_TIME).buckets) == 1
        assert sum(read([row], SYNC_TIME).buckets) == row[Cell.LOG_OCTETS] == 0
