"""A recovery in a living hub whose disk fails, or beside a new collector that has the same logs.

Found by the simulator (tests/sim, seeds 793, 17400 and 32542).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.fsck.fsck import Fsck, Plan
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log.scan import find_seal
from metad.store.log_table import Allocation, LogState
from metad.store.recovery import hub
from metad.store.recovery.hub import Recovery
from metad.store.recovery.one_log import Numbers
from tests.support.osio_kit import Faults
from tests.support.store_kit import Sent, StoreKit

DEAD = 0


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        yield made


def die_with_a_group_in_doubt(kit: StoreKit) -> tuple[int, Sent]:
    """The worker is killed before the index was told of its last group: the log, and its mail."""
    kit.put([1], b"early")
    kit.writers[DEAD].feed.index.apply = lambda *_: None  # type: ignore[method-assign]
    late = kit.put([1], b"late")
    writer = kit.writers[DEAD].committer.writer
    assert writer is not None
    die(kit)
    return writer.number, late


def die(kit: StoreKit) -> None:
    kit.writers.clear()
    kit.osio.close_all()
    kit.index.close()


def leave_a_free_log(kit: StoreKit) -> int:
    """A log that the dead process had as a victim, and of which the header already says free."""
    kit.put([2], b"collected")
    writer = kit.writers[DEAD].committer.writer
    assert writer is not None
    kit.writers[DEAD].chain.retire()
    kit.background()
    kit.delete(2, [message_id for message_id, _ in kit.listing(2)])
    kit.writers[DEAD].table.change(writer.number, LogState.COLLECTING)
    fd = log_files.lock_log(kit.osio, kit.store.logs, writer.number)
    log = header.read(kit.osio, fd, kit.store.secret)
    assert log is not None
    log_files.mark_free(kit.osio, fd, log)
    kit.osio.close(fd)
    return writer.number


def recover_dead(kit: StoreKit) -> None:
    Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, DEAD)


def note_free(kit: StoreKit, number: int) -> None:
    """As the next collector does with a victim that it finds free."""
    was = kit.table.row(number)
    if was.state == LogState.COLLECTING:
        assert kit.table.restore(was._replace(state=LogState.FREE, owner=0, tail=0), was)


def take_the_number_of(kit: StoreKit, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next collector notes that it is free, and the recovery takes it for the last group."""
    take = Numbers.take

    def freed_before(self: Numbers, generation: int) -> Allocation:
        note_free(kit, free)
        given = take(self, generation)
        assert given.number == free
        return given

    monkeypatch.setattr(Numbers, "take", freed_before)


def has_seal(kit: StoreKit, number: int) -> bool:
    fd = os.open(log_path(kit.store.logs, number), os.O_RDONLY)
    try:
        log = header.read(kit.osio, fd, kit.store.secret)
        assert log is not None
        return find_seal(kit.osio, fd, log) is not None
    finally:
        os.close(fd)


def test_a_log_made_under_a_number_that_was_freed_meanwhile_is_in_the_table(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead process had a victim; the new collector freed it, and the recovery took its number
    for the last group of another log.  The row stayed "being made" until the hub was restarted."""
    free = leave_a_free_log(kit)
    _, late = die_with_a_group_in_doubt(kit)
    take_the_number_of(kit, free, monkeypatch)
    recover_dead(kit)
    assert kit.table.row(free).state == LogState.SEALED
    assert kit.table.owned_by(DEAD) == []
    kit.open_index()
    assert [place.log for place in kit.index.places(late.id)] == [free]
    assert kit.check() == 2


def test_a_free_log_that_a_recovery_could_not_replace_is_gone_from_the_table(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was removed for a log of another size, which the disk then did not take."""
    free = leave_a_free_log(kit)
    number, _ = die_with_a_group_in_doubt(kit)
    take_the_number_of(kit, free, monkeypatch)
    kit.osio.faults = Faults("sync", 1, only=".log.new", persistent=True)
    recover_dead(kit)
    kit.osio.faults = None
    assert not os.path.exists(log_path(kit.store.logs, free))
    assert kit.table.row(free).state == LogState.NONE
    assert os.path.exists(log_path(kit.store.logs, number))
    kit.open_index()
    assert kit.check() == 2


def test_a_free_log_whose_file_a_recovery_removed_is_gone_from_the_table_too(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its free header could not be synced.  The new collector had noted that it is free,
    so the next worker would have failed to use it."""
    free = leave_a_free_log(kit)
    kit.put([1], b"text")
    die(kit)
    recover_logs = Recovery.recover_logs

    def noted_before(self: Recovery, *given: object) -> object:
        note_free(kit, free)
        return recover_logs(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Recovery, "recover_logs", noted_before)
    kit.osio.faults = Faults("sync", 1, only=log_path(kit.store.logs, free))
    recover_dead(kit)
    kit.osio.faults = None
    kit.open_index()
    assert not os.path.exists(log_path(kit.store.logs, free))
    assert kit.table.row(free).state == LogState.NONE


def test_a_group_that_cannot_be_moved_for_a_failing_disk_gets_no_seal(kit: StoreKit) -> None:
    """A seal over it named records that a power cut may take, if its first sync had failed."""
    number, late = die_with_a_group_in_doubt(kit)
    kit.osio.faults = Faults("sync", 1, only=".log.new", persistent=True)
    recover_dead(kit)
    kit.osio.faults = None
    assert not has_seal(kit, number)
    kit.open_index()
    assert [place.log for place in kit.index.places(late.id)] == [number]
    assert kit.check() == 2
    kit.crash()
    kit.drop_index()
    kit.recover()  # the disk is well again
    kit.open_index()
    assert kit.check() == 2


def test_a_group_that_a_later_recovery_moves_has_no_place_where_it_was(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first recovery could not move it, entered it where it was, and could not go on."""
    number, late = die_with_a_group_in_doubt(kit)
    kit.osio.faults = Faults("sync", 1, only=".log.new", persistent=True)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "enter_deletions", _refused)
        with pytest.raises(lmdb.DiskError):
            recover_dead(kit)
    kit.osio.faults = None
    recover_dead(kit)
    kit.open_index()
    (place,) = kit.index.places(late.id)
    assert place.log != number
    assert kit.check() == 2
    kit.crash()
    findings: list[str] = []
    Fsck(kit.osio, kit.store, Plan(kit.boot), findings.append).run()
    assert findings == []


def _refused(*_: object) -> None:
    raise lmdb.DiskError("mdb_txn_commit: No space left on device")
