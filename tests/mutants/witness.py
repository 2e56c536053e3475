"""Tests that only mutants need: the good program has a second guard for what they check."""

from __future__ import annotations

from pathlib import Path

from metad.store.log import header
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


def test_an_empty_successor_keeps_its_word(tmp_path: Path) -> None:
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.osio.watch = kit.store.logs
        kit.start()
        kit.put([1], b"good")
        kit.osio.faults = Faults("sync", 1)
        kit.put([1], b"refused")
        kit.osio.faults = None
        successor = kit.writers[0].committer.writer
        assert successor is not None
        assert not successor.sequence
        said = (successor.log.predecessor_life, successor.log.predecessor_end)
        assert all(said)
        kit.stop()
        fd = kit.osio.open(header.log_path(kit.store.logs, successor.number), 0)
        log = header.read(kit.osio, fd, kit.store.secret)
        assert log is not None
        assert log.state != header.FREE
        assert (log.predecessor_life, log.predecessor_end) == said
