"""A log that the start had to leave out may become readable later (docs/store-model.md)."""

from __future__ import annotations

from pathlib import Path

from metad.store.log.header import log_path
from tests.support.collector_kit import collect_all, fill_log, make_collector, sealed
from tests.support.osio_kit import BLOCK, KitOsio
from tests.support.store_kit import StoreKit


def test_deleted_mail_came_back_with_a_log_that_could_not_be_read_for_a_while(tmp_path: Path):
    with StoreKit(tmp_path / "data", KitOsio(), align=BLOCK, size=128 * 1024) as kit:
        kit.start()
        fill_log(kit, size=5000)
        (number,) = sealed(kit)
        kit.delete(1, [message_id for message_id, _ in kit.listing(1)])
        fill_log(kit, 2, size=5000)
        kit.crash()
        path = log_path(kit.store.logs, number)
        for offset in range(0, kit.size, BLOCK):
            kit.osio.spoil(path, offset)

        kit.drop_index()
        kit.start()
        assert not kit.listing(1)
        collector = make_collector(kit)
        collect_all(kit, collector)
        collector.close()
        kit.crash()

        kit.osio.unreadable.clear()
        kit.drop_index()
        kit.start()
        assert not kit.listing(1)
