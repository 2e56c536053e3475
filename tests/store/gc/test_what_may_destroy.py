"""Nothing is destroyed without a verified record that permits it: each of these once lost mail."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.gc.collector import NotCollectableError
from metad.store.gc.evidence import Evidence
from metad.store.index import relocation
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.rows import Deleted, DisagreementError, unpack_deleted
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import FREE, log_path
from metad.store.log_table import LogState, LogTable, Row
from metad.store.recovery.hub import Recovery
from tests.support.collector_kit import collect, collect_all, fill_log, make_collector, sealed
from tests.support.osio_kit import Faults
from tests.support.store_kit import StoreKit

DEAD, WORKER = 6, 5  # process rows


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        yield made


def restart(kit: StoreKit) -> None:
    kit.crash()
    kit.drop_index()
    kit.start()
    kit.check()


def flip_key(kit: StoreKit, mailbox: int, message_id: bytes) -> None:
    """One bit in the key of a mailbox's entry, wherever its level is."""
    good = mailbox.to_bytes(4, "big") + message_id
    bad = good[:-1] + bytes([good[-1] ^ 0x40])
    with kit.index.writing() as txn:
        for table in kit.index.tables.mailboxes:
            value = txn.pop(good, db=table)
            if value is not None:
                txn.put(bad, value, db=table)


def place_of_deletion(kit: StoreKit, message_id: bytes) -> Deleted:
    with kit.index.reading() as txn:
        row = txn.get(message_id, b"", db=kit.index.tables.places)
    (found,) = unpack_deleted(bytes(row))
    return found


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 1]))


# -- the index has no authority


def test_a_flipped_bit_in_an_entry_s_key_loses_no_message(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    flip_key(kit, 1, ids[0])
    with pytest.raises(DisagreementError, match=ids[0].hex()):
        collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.SEALED
    reason = index_state.why_unusable(kit.osio, kit.store.index, kit.boot)
    assert reason is not None and "no record deletes it" in reason
    kit.crash()
    kit.start()  # without a person
    kit.check()
    collect_all(kit, make_collector(kit))
    restart(kit)


def test_a_deletion_elsewhere_is_read_before_its_message_goes(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (victim,) = sealed(kit)
    kit.delete(1, ids[:3])  # in the next log
    hint = place_of_deletion(kit, ids[0])
    assert hint.log != victim and hint.mailbox == 1
    flip(log_path(kit.store.logs, hint.log), hint.offset + 80)  # its body, and no seal yet
    with pytest.raises(DisagreementError):
        collect(make_collector(kit), [victim])
    flip(log_path(kit.store.logs, hint.log), hint.offset + 80)
    collect(make_collector(kit), [victim])
    restart(kit)


def test_the_footer_proves_a_deletion_whose_record_is_damaged(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (victim,) = sealed(kit)
    kit.delete(1, ids[:3])
    fill_log(kit, mailbox=2)
    hint = place_of_deletion(kit, ids[0])
    flip(log_path(kit.store.logs, hint.log), hint.offset + 80)
    collect(make_collector(kit), [victim])
    assert kit.table.row(victim).state == LogState.FREE


def spoil_row(kit: StoreKit, message_id: bytes, spoil: Callable[[bytes], bytes]) -> None:
    """The index has another row of places, or none."""
    with kit.index.writing() as txn:
        row = bytes(txn.pop(message_id, db=kit.index.tables.places) or b"")
        if made := spoil(row):
            txn.put(message_id, made, db=kit.index.tables.places)


def deleted_elsewhere(kit: StoreKit) -> tuple[list[bytes], int]:
    """Messages whose copies lie in one log, and the log that has the record of their deletion."""
    ids = fill_log(kit)
    (first,) = sealed(kit)
    kit.delete(1, ids[:3])
    fill_log(kit, mailbox=2)
    (second,) = set(sealed(kit)) - {first}
    return ids, second


def test_a_lost_row_of_places_brings_no_deleted_mail_back(kit: StoreKit) -> None:
    """Regression: nothing indicated a copy, so the deletion record was dropped."""
    ids, second = deleted_elsewhere(kit)
    spoil_row(kit, ids[1], lambda row: b"")
    with pytest.raises(DisagreementError, match=ids[1].hex()):
        collect(make_collector(kit), [second])
    assert kit.table.row(second).state == LogState.SEALED
    assert index_state.why_unusable(kit.osio, kit.store.index, kit.boot) is not None
    kit.crash()
    kit.start()
    kit.check()
    collect_all(kit, make_collector(kit))
    restart(kit)


@pytest.mark.parametrize("how", ["a note", "another log's", "the victim's"])
def test_a_place_that_a_flipped_bit_has_changed_brings_no_deleted_mail_back(
    kit: StoreKit, how: str
) -> None:
    ids, second = deleted_elsewhere(kit)

    def spoil(row: bytes) -> bytes:
        log = int.from_bytes(row[4:8], "big")
        wrong = {"a note": log ^ 1 << 31, "another log's": log ^ 8, "the victim's": second}[how]
        return row[:4] + wrong.to_bytes(4, "big") + row[8:]

    spoil_row(kit, ids[1], spoil)
    collect(make_collector(kit), [second])
    restart(kit)
    assert place_of_deletion(kit, ids[1]).log not in (second, 0)


def test_a_row_that_is_lost_while_its_deletion_record_moves_brings_no_deleted_mail_back(
    kit: StoreKit,
) -> None:
    """Regression: a new row was made for the record, and it indicated no copy."""
    ids, second = deleted_elsewhere(kit)
    (first,) = set(sealed(kit)) - {second}

    lost: list[bytes] = []

    def lose(name: str) -> None:
        if name == "copied" and not lost:
            lost.append(ids[1])
            spoil_row(kit, ids[1], lambda row: b"")

    collector = make_collector(kit, lose)
    collect(collector, [second])
    collector.close()
    moved = [number for number in sealed(kit) if number != first]
    collect(make_collector(kit), moved)
    restart(kit)


def test_an_entry_without_a_row_of_places_stops_its_deletion(kit: StoreKit) -> None:
    """A row that was made for the deletion would have hidden the copies."""
    sent = kit.put([1], b"kept")
    spoil_row(kit, sent.id, lambda row: b"")
    kit.delete(1, [sent.id])
    reason = index_state.why_unusable(kit.osio, kit.store.index, kit.boot)
    assert reason is not None and "fewer references" in reason
    restart(kit)


def test_rows_go_with_the_last_record_that_speaks_of_the_message(kit: StoreKit) -> None:
    ids, second = deleted_elsewhere(kit)
    (first,) = set(sealed(kit)) - {second}
    collector = make_collector(kit)
    collect(collector, [first])
    assert all(place_of_deletion(kit, each).log == second for each in ids[:3])
    collect(collector, [second])
    with kit.index.reading() as txn:
        rows = {bytes(key) for key, _ in txn.cursor(kit.index.tables.places)}
    assert rows.isdisjoint(ids[:3])
    restart(kit)


@pytest.mark.slow
def test_deletions_of_a_message_to_very_many_are_read_once_for_each_log(kit: StoreKit) -> None:
    """Regression: each of its records read all the others."""
    boxes = list(range(10, 60))
    sent = kit.put(boxes, b"to all")
    fill_log(kit)
    number = kit.index.places(sent.id)[0].log
    for box in boxes:
        kit.delete(box, [sent.id])
        if box == 35:
            fill_log(kit)
    fill_log(kit)
    collector = make_collector(kit)
    collect(collector, [number])
    reads: list[int] = []
    known = Evidence._is_proven

    def counted(self: Evidence, hint: Deleted, message_id: bytes) -> bool:
        reads.append(hint.offset)
        return known(self, hint, message_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evidence, "_is_proven", counted)
        for each in sealed(kit):
            collect(collector, [each])
    assert 0 < len(reads) <= 2 * len(boxes)
    restart(kit)


def test_a_note_follows_its_deletion_record(kit: StoreKit) -> None:
    """The collector copies a deletion record; from then on it is read at its new place."""
    ids = fill_log(kit)
    kit.delete(1, ids[:2])
    fill_log(kit, mailbox=2)
    first, second = sealed(kit)
    collector = make_collector(kit)
    collect(collector, [second])  # its deletion record moves
    hint = place_of_deletion(kit, ids[0])
    assert hint.log not in (first, second)
    collect(collector, [first])
    restart(kit)


def copies_in_a_free_log(kit: StoreKit) -> tuple[int, list[bytes]]:
    """A sealed log, and the ids in it.  Each message has a copy that still verifies, but may be
    overwritten at any moment."""
    ids = fill_log(kit)
    (victim,) = sealed(kit)
    before = Path(log_path(kit.store.logs, victim)).read_bytes()

    def stop(name: str) -> None:
        if name == "moved":
            raise InterruptedError

    collector = make_collector(kit, stop)
    with pytest.raises(InterruptedError):
        collect(collector, [victim])
    collector.close()
    copies = [row for row in kit.table.rows() if row.generation == 1]
    for row in copies:  # a second place each; now the copies' log says that it is free
        fd = log_files.lock_log(kit.osio, kit.store.logs, row.number)
        log = header.read(kit.osio, fd, kit.store.secret)
        assert log is not None
        log_files.mark_free(kit.osio, fd, log)
        kit.osio.close(fd)
    assert Path(log_path(kit.store.logs, victim)).read_bytes() == before
    return victim, ids


def test_a_copy_in_a_log_that_is_free_is_no_living_one(kit: StoreKit) -> None:
    victim, _ = copies_in_a_free_log(kit)
    collect(make_collector(kit), [victim])
    kit.crash()
    kit.drop_index()
    kit.start()
    kit.check()


def test_a_copy_in_a_log_that_is_free_explains_no_missing_entry(kit: StoreKit) -> None:
    victim, ids = copies_in_a_free_log(kit)
    flip_key(kit, 1, ids[0])
    with pytest.raises(DisagreementError, match=ids[0].hex()):
        collect(make_collector(kit), [victim])
    assert kit.table.row(victim).state == LogState.SEALED
    restart(kit)


# -- the log table has no authority


def test_a_wrong_cell_of_the_table_costs_no_log(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    row = kit.table.row(number)
    kit.table.restore(row._replace(state=LogState.FREE))
    for _ in range(3):
        fill_log(kit, mailbox=2)
    kit.check()
    restart(kit)


def test_a_log_in_another_life_than_the_table_says_is_not_collected(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    row = kit.table.row(number)
    kit.table.restore(row._replace(life=row.life + 1))
    with pytest.raises(NotCollectableError, match="life"):
        collect(make_collector(kit), [number])


def test_a_recovery_that_was_overtaken_changes_no_row(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector dies after freeing its victim.  While a recovery works with the header that it
    read, the next collector frees the log, and a worker begins its next life."""
    fill_log(kit)
    (victim,) = sealed(kit)

    class Killed(BaseException): ...

    def kill(name: str) -> None:
        if name == "freed":
            raise Killed

    steps = make_collector(kit, kill).collect(victim)
    with pytest.raises(Killed):
        list(steps)
    kit.osio.close_all()  # the collector's locks go with it
    assert kit.table.row(victim).state == LogState.COLLECTING
    worker = LogTable(kit.area, kit.semaphore, kit.area.process(WORKER))
    begun: list[Row] = []

    def overtaken(index: Index, number: int, life: int, ids: object) -> None:
        if not begun:
            kit.index = index
            for _ in make_collector(kit).tidy():
                pass
            given = worker.allocate(0, 1)
            assert given.number == victim
            worker.change(victim, LogState.ACTIVE)
            begun.append(worker.row(victim))

    monkeypatch.setattr("metad.store.recovery.hub.drop_log", overtaken)
    kit.index.close()
    Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, DEAD)
    kit.index = Index(kit.store.index)
    assert begun and kit.table.row(victim)[:5] == begun[0][:5]


def test_a_log_that_was_sealed_again_meanwhile_is_not_freed(kit: StoreKit) -> None:
    """A recovery reads a header again under the log's lock."""
    fill_log(kit)
    (number,) = sealed(kit)
    recovery = Recovery(kit.osio, kit.store, kit.reports.append)
    plan = recovery.plan_all()
    stale = plan.logs[number]._replace(state=FREE, life=plan.logs[number].life - 1)
    assert recovery._free_again(kit.index, stale)
    kit.check()
    restart(kit)


# -- no copy that the index does not know outlives its deletion record


def returned(kit: StoreKit, ids: list[bytes]) -> None:
    """Delete what was copied, collect everything, and see that nothing comes back."""
    kit.delete(1, ids)
    fill_log(kit, mailbox=2)
    try:
        collect_all(kit, make_collector(kit))
    except (AssertionError, NotCollectableError):
        pass  # some logs wait
    restart(kit)


@pytest.mark.slow
def test_survivors_that_the_index_refused_once_are_entered_before_the_next(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a later watermark moved past them, their deletion records were dropped, and the
    mail came back."""
    ids = fill_log(kit)
    fill_log(kit, mailbox=2)
    first, second = sealed(kit)
    collector = make_collector(kit)

    def full(*_: object) -> None:
        raise lmdb.MapFullError("no")

    with monkeypatch.context() as broken:
        broken.setattr(relocation, "move", full)
        with pytest.raises(lmdb.MapFullError):
            collect(collector, [first])
        with pytest.raises(lmdb.MapFullError):
            collect(collector, [second])
        assert kit.table.row(second).state == LogState.SEALED
    collect(collector, [second])
    assert all(len(kit.index.places(each)) == 2 for each in ids[:1])
    collector.close()
    returned(kit, ids)


def test_a_failed_sync_of_survivors_is_recorded_at_once(kit: StoreKit) -> None:
    """Regression: nothing recorded where that log ended until the next survivor."""
    ids = fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    collect(collector, [])
    kit.osio.faults = Faults("sync", 2, error=errno.EIO)  # the first is the new log's
    with pytest.raises(OSError, match="error"):
        collect(collector, [number])
    kit.osio.faults = None
    logs = Recovery(kit.osio, kit.store, kit.reports.append).plan_all()
    assert logs.stops, "no log says where the failed one ends"
    collector.close()
    returned(kit, ids)


def test_nothing_is_freed_while_a_survivors_log_waits_for_its_recovery(kit: StoreKit) -> None:
    """Killed between "copied" and "moved", and its successor collects before the recovery."""
    ids = fill_log(kit)
    (number,) = sealed(kit)

    class Killed(BaseException): ...

    def kill(name: str) -> None:
        if name == "copied":
            raise Killed

    with pytest.raises(Killed):
        collect(make_collector(kit, kill), [number])
    open_logs = [row for row in kit.table.rows() if row.generation == 1]
    for row in open_logs:  # its owner's row is another one than the successor's
        kit.table.restore(row._replace(owner=DEAD + 2))
    kit.table.restore(kit.table.row(number)._replace(state=LogState.SEALED, owner=0))
    with pytest.raises(NotCollectableError):
        collect(make_collector(kit), [number])
    kit.osio.close_all()
    returned_kit(kit, ids)


def returned_kit(kit: StoreKit, ids: list[bytes]) -> None:
    kit.crash()
    kit.start()
    returned(kit, ids)
