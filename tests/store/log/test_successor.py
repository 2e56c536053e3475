"""The log that has another's unsynced last group, as the rest of the store sees it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.backup.backup import Backup, restore
from metad.store.gc.collector import NotCollectableError
from metad.store.log import header
from metad.store.log.header import LogHeader, log_path
from metad.store.log_table import LogState
from metad.store.recovery import hub
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio
from tests.support.collector_kit import collect, collect_all, make_collector
from tests.support.fsck_kit import assert_clean, work
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    """A store in which a disk died with the last group; recovered, not opened."""
    with StoreKit(tmp_path / "data", KitOsio()) as made:
        made.osio.watch = made.store.logs
        made.start()
        work(made, 3, 20)
        die(made)
        made.crash()
        made.osio.faults = None
        made.recover()
        yield made


def die(kit: StoreKit) -> None:
    kit.osio.faults = Faults("sync", 1, dead=True)
    listing = kit.listing(1)
    sent = [kit.submit([1, 2], b"refused"), kit.submit_deletion(1, [listing[0][0]])]
    kit.run()
    assert all(each.error is not None for each in sent)


def successors(kit: StoreKit) -> list[LogHeader]:
    """Logs that say where another one ends."""
    found = []
    for row in kit.table.rows():
        fd = kit.osio.open(log_path(kit.store.logs, row.number), 0)
        log = header.read(kit.osio, fd, kit.store.secret)
        kit.osio.close(fd)
        if log is not None and log.predecessor_life and log.state != header.FREE:
            found.append(log)
    return found


def test_it_is_small_and_sealed(kit: StoreKit) -> None:
    (successor,) = successors(kit)
    assert successor.size < kit.size // 4
    assert successor.seal_offset
    assert kit.table.row(successor.number).state == LogState.SEALED


@pytest.mark.parametrize("index", ["kept", "removed"])
def test_fsck_finds_nothing_wrong(kit: StoreKit, index: str) -> None:
    if index == "removed":
        kit.drop_index()
        kit.recover()
    assert_clean(kit)


def test_a_backup_has_both_logs(kit: StoreKit, tmp_path: Path) -> None:
    kit.open_index()
    boxes = {box: kit.listing(box) for box in range(4)}
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    restore(Osio(), tmp_path / "backup", tmp_path / "new")
    with StoreKit(tmp_path / "new") as copy:
        copy.ledger = kit.ledger.copy()
        copy.start()
        copy.check()
        assert {box: copy.listing(box) for box in range(4)} == boxes


def test_it_is_collected_after_the_log_that_it_ends(kit: StoreKit) -> None:
    kit.open()
    (successor,) = successors(kit)
    collector = make_collector(kit)
    with pytest.raises(NotCollectableError, match="says where log"):
        collect(collector, [successor.number])
    collect_all(kit, collector)
    collector.close()
    kit.check()
    assert successor not in successors(kit)
    kit.crash()
    kit.drop_index()
    kit.start()
    kit.check()


def test_its_number_is_used_for_a_whole_log_again(kit: StoreKit) -> None:
    kit.open()
    (successor,) = successors(kit)
    collector = make_collector(kit)
    collect_all(kit, collector)
    collector.close()
    work(kit, 4, 60)
    assert Path(log_path(kit.store.logs, successor.number)).stat().st_size == kit.size
    kit.check()


@pytest.mark.parametrize("trouble", ["none", "no room", "killed"])
def test_a_dead_workers_group_is_rewritten_beside_a_living_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """By the table's numbers; a recovery that was killed is done again by the next one."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.osio.watch = kit.store.logs
        kit.start(2)
        work(kit, 5, 20)
        die(kit)
        kit.osio.faults = None
        kill_writer(kit, 0)
        if trouble == "killed":
            with monkeypatch.context() as patch:
                patch.setattr(hub, "enter_messages", interrupted)
                with pytest.raises(InterruptedError):
                    recover_process(kit, None)
            assert LogState.PREPARING in [row.state for row in kit.table.owned_by(0)]
        full = Faults("allocate", 1, errno.ENOSPC) if trouble == "no room" else None
        recover_process(kit, full)
        kit.open_index()
        kit.writers[1].feed.index = kit.index
        assert kit.table.owned_by(0) == []
        assert len(successors(kit)) == (0 if trouble == "no room" else 1)
        kit.writers = [kit.writers[1], kit.writers[1]]
        assert kit.put([1], b"x", 1).acked
        kit.check()


def kill_writer(kit: StoreKit, slot: int) -> None:
    """The kernel drops its locks."""
    for row in kit.table.owned_by(slot):
        for fd in [f for f, path in kit.osio.names.items() if f"{row.number:08d}" in path]:
            kit.osio.close(fd)
    kit.index.close()


def interrupted(*_: object) -> None:
    raise InterruptedError


def recover_process(kit: StoreKit, faults: Faults | None) -> None:
    osio = KitOsio(kit.store.logs, faults=faults)
    try:
        Recovery(osio, kit.store, kit.reports.append).recover_process(kit.table, 0)
    finally:
        osio.close_all()
    assert faults is None or faults.hits == 1
