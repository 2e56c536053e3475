"""The collector: what it moves, keeps, drops and frees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from metad.errors import NoSpaceError
from metad.store import backup_lock
from metad.store.ballast import CRITICAL
from metad.store.gc.collector import Collector, NotCollectableError
from metad.store.gc.copy import Step, Tools
from metad.store.gc.policy import GcPolicy, choose
from metad.store.index import relocation
from metad.store.index.rows import pack_log
from metad.store.log import files as log_files
from metad.store.log import header, record
from metad.store.log.header import log_path
from metad.store.log.scan import Found, Scanner, find_seal
from metad.store.log_table import LogState
from metad.system.osio import Osio
from tests.support.collector_kit import collect, collect_all, fill_log, make_collector, sealed
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as kit:
        kit.start()
        yield kit


def records(kit: StoreKit, number: int) -> list[tuple[record.Header, bytes, bytes]]:
    """Header, envelope and body of every good record of a log that is not free."""
    fd = os.open(header.log_path(kit.store.logs, number), os.O_RDONLY)
    try:
        log = header.read(Osio(), fd, kit.store.secret)
        assert log is not None
        if log.state == header.FREE:
            return []
        found = [one for one in Scanner(Osio(), fd, log) if isinstance(one, Found)]
        return [(one.header, bytes(one.envelope), bytes(one.body)) for one in found]
    finally:
        os.close(fd)


def everywhere(kit: StoreKit, kind: int) -> list[tuple[record.Header, bytes, bytes]]:
    """Records of a kind in all logs in use, without confirmations."""
    rows = [row for row in kit.table.rows() if row.state != LogState.FREE]
    found = [one for row in rows for one in records(kit, row.number) if one[0].kind == kind]
    return [one for one in found if not one[0].is_confirmation]


def restart(kit: StoreKit, *, rebuilt: bool) -> None:
    kit.crash()
    if rebuilt:
        kit.drop_index()
    kit.start()


def damage(kit: StoreKit, message_id: bytes) -> None:
    """Flip an octet of the body of a message."""
    place = kit.index.places(message_id)[0]
    fd = os.open(header.log_path(kit.store.logs, place.log), os.O_RDWR)
    at = place.offset + place.size - 3
    octet = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([octet[0] ^ 1]), at)
    os.close(fd)


# -- the ordinary way


def test_what_is_alive_is_moved_and_the_log_is_free(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    kit.delete(1, ids[::2])
    collector = make_collector(kit)
    collect(collector, [number])
    assert kit.table.row(number).state == LogState.FREE
    assert {kit.index.places(each)[0].log for each in ids[1::2]}.isdisjoint({number})
    assert kit.index.log_counts(number).life == 0
    kit.check()
    assert collector.figures.logs == 1
    assert collector.figures.octets == kit.size
    assert collector.figures.moved >= len(ids[1::2])


@pytest.mark.parametrize("rebuilt", [False, True])
def test_moved_mail_survives_a_restart(kit: StoreKit, rebuilt: bool) -> None:
    ids = fill_log(kit)
    kit.delete(1, ids[::2])
    collect_all(kit, make_collector(kit))
    restart(kit, rebuilt=rebuilt)
    assert kit.check() > 0
    for each in ids[1::2]:
        assert len(kit.index.places(each)) == 1


def test_nothing_of_a_dead_log_is_kept(kit: StoreKit) -> None:
    ids = fill_log(kit)
    kit.delete(1, [each for each, _ in kit.listing(1)])
    (number,) = sealed(kit)
    collector = make_collector(kit)
    collect(collector, [number])
    assert collector.figures.moved_octets == 0
    assert [row for row in kit.table.rows() if row.generation] == []
    assert all(kit.index.places(each) == [] for each in ids)
    assert kit.index.totals()["places"] == 0 or kit.listing(1) == []


def test_a_freed_log_is_used_again(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    kit.delete(1, ids)
    collect(make_collector(kit), [number])
    before = kit.table.row(number).life
    fill_log(kit)
    fill_log(kit)
    assert kit.table.row(number).life > before
    kit.check()


def test_survivors_go_to_the_next_generation_and_the_oldest_stay_there(kit: StoreKit) -> None:
    keep = fill_log(kit)[3]
    collector = make_collector(kit)
    seen = []
    for _ in range(5):
        (place,) = kit.index.places(keep)
        seen.append(kit.table.row(place.log).generation)
        if kit.table.row(place.log).state != LogState.SEALED:
            collector.close()
            collector = make_collector(kit)
        collect(collector, [place.log])
    assert seen == [0, 1, 2, 3, 3]
    assert records(kit, kit.index.places(keep)[0].log)
    kit.check()


def test_a_moved_message_names_only_its_remaining_recipients(kit: StoreKit) -> None:
    sent = kit.put([1, 2, 3], b"for three")
    fill_log(kit)
    kit.delete(2, [sent.id])
    collect_all(kit, make_collector(kit))
    recipients = kit.stored(sent.id).envelope.recipients
    assert [each.mailbox for each in recipients] == [1, 3]
    restart(kit, rebuilt=True)
    assert sent.id not in [each for each, _ in kit.listing(2)]
    kit.check()


def test_an_envelope_that_keeps_all_recipients_is_copied_byte_by_byte(kit: StoreKit) -> None:
    """Data that a later version put into it is not lost."""
    sent = kit.put([1, 2], b"body")
    before = next(one for one in everywhere(kit, record.MESSAGE) if one[0].id == sent.id)
    fill_log(kit)
    collect_all(kit, make_collector(kit))
    after = next(one for one in everywhere(kit, record.MESSAGE) if one[0].id == sent.id)
    assert after[1:] == before[1:]


def test_mail_that_is_larger_than_a_group_is_moved(tmp_path: Path) -> None:
    with StoreKit(tmp_path / "data", size=2 << 20) as kit:
        kit.start()
        large = kit.put([1], os.urandom(500_000))
        kit.put([1], os.urandom(300_000))
        kit.put([1], b"small")
        fill_log(kit, size=50_000)
        collect_all(kit, make_collector(kit))
        assert len(kit.stored(large.id).body) == 500_000
        kit.check()


@pytest.mark.slow
def test_a_log_with_many_small_messages_takes_many_short_transactions(tmp_path: Path) -> None:
    with StoreKit(tmp_path / "data", size=1 << 20) as kit:
        kit.start()
        count = len(fill_log(kit, size=10))
        assert count > 1000
        steps = []
        for number in sealed(kit):
            steps += list(make_collector(kit).collect(number))
        assert steps.count(Step.COPIED) >= count // 400
        assert steps.count(Step.DROPPED) >= count // 250
        kit.check()


def test_figures_of_the_table_follow(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    collect(make_collector(kit), [number])
    assert kit.table.row(number)[6:] == (0, 0)
    for row in kit.table.rows():
        counts = kit.index.log_counts(row.number)
        assert (row.live_messages, row.live_octets) == (counts.live_messages, counts.live_octets)
        if row.generation:
            assert row.tail == counts.watermark


def test_messages_that_arrive_meanwhile_are_left_in_peace(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    for step in make_collector(kit).collect(number):
        kit.put([1], b"meanwhile %a" % step.value)
    assert kit.check() > 5


def test_a_message_deleted_between_look_and_move_stays_deleted(kit: StoreKit) -> None:
    """It was copied; nothing refers to the copy, and a rebuild does not bring it back."""
    ids = fill_log(kit)
    (number,) = sealed(kit)
    collection = make_collector(kit).collect(number)
    assert [next(collection), next(collection)] == [Step.LOOKED, Step.LOOKED]
    kit.delete(1, ids)
    assert Step.COPIED in list(collection)
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


# -- deletion records


def test_a_deletion_lives_as_long_as_a_copy_of_what_it_deletes(kit: StoreKit) -> None:
    """Message in the first log, deletion in the second; the second is emptied first."""
    ids = fill_log(kit)
    first = kit.index.places(ids[0])[0].log
    victim = ids[0]
    kit.delete(1, [victim])
    fill_log(kit, mailbox=2)
    second = next(number for number in sealed(kit) if number != first)
    collector = make_collector(kit)
    collect(collector, [second])
    assert collector.figures.deletions == 1
    restart(kit, rebuilt=True)
    kit.check()
    collector = make_collector(kit)
    collect(collector, [first])
    collect_all(kit, collector)
    assert everywhere(kit, record.DELETION) == []
    restart(kit, rebuilt=True)
    kit.check()


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_free_log_without_headers_does_not_come_back(kit: StoreKit, rebuilt: bool) -> None:
    """Its records still verify, and nothing shows that they were deleted."""
    ids = fill_log(kit)
    number = kit.index.places(ids[0])[0].log
    kit.delete(1, ids)
    fill_log(kit, mailbox=2)
    collector = make_collector(kit)
    collect_all(kit, collector)
    collector.close()
    assert everywhere(kit, record.DELETION) == []
    assert kit.table.row(number).state == LogState.FREE
    kit.crash()
    with Path(log_path(kit.store.logs, number)).open("r+b") as file:
        assert file.read().count(record.MAGIC) > len(ids)
        for at in (0, kit.size - kit.align):
            file.seek(at)
            file.write(b"\xff" * kit.align)
    if rebuilt:
        kit.drop_index()
    kit.start()
    kit.check()
    assert not set(ids) & {each for each, _ in kit.listing(1)}


def test_only_the_ids_that_are_needed_are_kept(kit: StoreKit) -> None:
    ids = fill_log(kit)
    first = kit.index.places(ids[0])[0].log
    late = [kit.put([1], b"late").id for _ in range(3)]
    kit.delete(1, [*late, *ids[:2]])
    before = everywhere(kit, record.DELETION)
    fill_log(kit, mailbox=2)
    second = next(number for number in sealed(kit) if number != first)
    collect(make_collector(kit), [second])
    ((head, envelope, body),) = everywhere(kit, record.DELETION)
    assert body == b"".join(ids[:2])
    assert (head.id, envelope) == (before[0][0].id, before[0][1])
    restart(kit, rebuilt=True)
    kit.check()


def test_a_copy_made_in_the_same_collection_keeps_no_deletion(kit: StoreKit) -> None:
    """Message and deletion in one log: the copy does not name who deleted it."""
    sent = kit.put([1, 2], b"both")
    kit.delete(1, [sent.id])
    fill_log(kit)
    collector = make_collector(kit)
    collect_all(kit, collector)
    assert collector.figures.deletions == 0
    restart(kit, rebuilt=True)
    kit.check()


# -- refused


def test_a_log_in_use_is_not_collected(kit: StoreKit) -> None:
    kit.put([1], b"x")
    number = kit.writers[0].committer.writer.number
    with pytest.raises(NotCollectableError):
        collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.ACTIVE
    assert kit.put([1], b"y").acked


def test_a_log_that_the_index_does_not_have_whole_is_not_collected(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    counts = kit.index.log_counts(number)
    with kit.index.writing() as txn:
        lower = counts._replace(watermark=counts.watermark - 512)
        txn.put(number.to_bytes(4, "big"), pack_log(lower), db=kit.index._logs)
    with pytest.raises(NotCollectableError, match="indexed"):
        collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.SEALED
    kit.check()


def test_while_a_backup_reads_no_log_is_freed(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    collection = make_collector(kit).collect(number)
    with backup_lock.pinned(Osio(), kit.store):
        assert any(step == Step.WAITS for step in collection)
        assert next(collection) == Step.WAITS
        assert records(kit, number)
    assert Step.DROPPED in list(collection)
    assert kit.table.row(number).state == LogState.FREE
    kit.check()


def test_closed_between_steps_the_log_is_sealed_as_before(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    for stop in range(3):
        collection = collector.collect(number)
        for _ in range(stop + 1):
            next(collection)
        collection.close()
        assert kit.table.row(number).state == LogState.SEALED
        kit.check()
    collect(collector, [number])
    kit.check()
    assert len({head.id for head, _, _ in everywhere(kit, record.MESSAGE)}) == len(
        everywhere(kit, record.MESSAGE)
    )


# -- files that are not overwritten


def test_a_log_with_a_second_name_is_unlinked_and_never_reused(kit: StoreKit, tmp_path) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    path = header.log_path(kit.store.logs, number)
    os.link(path, tmp_path / "somebody's")
    before = (tmp_path / "somebody's").read_bytes()
    collect(make_collector(kit), [number])
    assert not os.path.exists(path)
    assert kit.table.row(number).state == LogState.NONE
    fill_log(kit)
    fill_log(kit)
    assert os.path.exists(path)
    assert (tmp_path / "somebody's").read_bytes() == before
    assert all(kit.index.places(each)[0].log != number for each in ids)
    kit.check()


def poisoned(kit: StoreKit) -> tuple[int, int]:
    """Numbers of a sealed log whose writer failed, and of the one that says so."""
    sent = kit.put([1], b"good")
    broken = kit.index.places(sent.id)[0].log
    kit.osio.faults = Faults("sync", 1)
    assert not kit.put([1], b"bad").acked
    kit.osio.faults = None
    after = kit.put([1], b"after")
    successor = kit.index.places(after.id)[0].log
    assert successor != broken
    restart(kit, rebuilt=False)
    assert {broken, successor} <= set(sealed(kit))
    return broken, successor


def test_a_poisoned_log_goes_before_the_one_that_speaks_of_it(kit: StoreKit) -> None:
    broken, successor = poisoned(kit)
    collector = make_collector(kit)
    with pytest.raises(NotCollectableError, match="says where"):
        collect(collector, [successor])
    path = header.log_path(kit.store.logs, broken)
    before = Path(path).read_bytes()
    keep = os.open(path, os.O_RDONLY)
    collect(collector, [broken])
    assert not os.path.exists(path)
    assert os.pread(keep, len(before), 0) == before, "a poisoned log was written to"
    os.close(keep)
    assert kit.table.row(broken).state == LogState.NONE
    collect(collector, [successor])
    assert kit.table.row(successor).state == LogState.FREE
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


def die_at(kit: StoreKit, number: int, where: str) -> None:
    """A collection of that log, killed at a failpoint."""

    def stop(name: str) -> None:
        if name == where:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        collect(make_collector(kit, stop), [number])


def test_a_successor_is_freed_after_a_log_that_a_dead_collector_unlinked(kit: StoreKit) -> None:
    """A start leaves the places in the unlinked log to the collector: until it has forgotten them,
    the successor waits; afterwards nothing holds it."""
    broken, successor = poisoned(kit)
    die_at(kit, broken, "freed")
    assert not os.path.exists(log_path(kit.store.logs, broken))
    restart(kit, rebuilt=False)
    assert kit.table.row(broken).state == LogState.COLLECTING
    collector = make_collector(kit)
    with pytest.raises(NotCollectableError, match="says where"):
        collect(collector, [successor])
    list(collector.tidy())
    assert kit.table.row(broken).state == LogState.NONE
    collect(collector, [successor])
    assert kit.table.row(successor).state == LogState.FREE
    collector.close()
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


def index_without_room(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full; its last blocks are those of the log that is collected."""
    file = os.stat(log_path(kit.store.logs, sealed(kit)[0]))

    def is_there() -> bool:
        """Whether it has a name, or a descriptor here."""
        found = [*kit.log_files(), *Path("/proc/self/fd").iterdir()]
        return any(os.path.samestat(path.stat(), file) for path in found if path.exists())

    def change(self: Tools, action: Callable[..., None], *args: object) -> None:
        if action is relocation.drop_places and is_there():
            raise lmdb.DiskError("mdb_txn_commit: Input/output error")
        real(self, action, *args)

    real = Tools.change
    monkeypatch.setattr(Tools, "change", change)


def test_on_a_full_disk_the_blocks_of_an_empty_log_go_to_the_index(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it became a free log, whose file kept the blocks that the index needed to forget
    it.  Nothing was freed any more, and new mail got 452 for ever."""
    fill_log(kit)
    (number,) = sealed(kit)
    index_without_room(kit, monkeypatch)
    monkeypatch.setattr(kit.osio, "free_space", lambda path: CRITICAL - 1)
    collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.NONE
    assert (kit.store.logs, True) in kit.osio.syncs
    assert number not in kit.index.logs()
    kit.check()


def test_a_log_that_was_freed_just_before_the_disk_was_full_is_unlinked(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, between its header and the index."""
    fill_log(kit)
    (number,) = sealed(kit)
    index_without_room(kit, monkeypatch)
    collector = make_collector(kit)
    with pytest.raises(lmdb.DiskError):
        collect(collector, [number])
    assert kit.table.row(number).state == LogState.COLLECTING
    with pytest.raises(lmdb.DiskError):
        list(collector.tidy())
    monkeypatch.setattr(kit.osio, "free_space", lambda path: CRITICAL - 1)
    list(collector.tidy())
    assert kit.table.row(number).state == LogState.NONE
    assert number not in kit.index.logs()
    kit.check()


def test_an_unlinked_log_is_forgotten_once_its_removal_is_durable(kit: StoreKit) -> None:
    """A power cut could bring it back, without the deletions and the end that it needs."""
    broken, successor = poisoned(kit)

    def fail(name: str) -> None:
        if name == "freeing":
            kit.osio.faults = Faults("dir-sync", 1, persistent=True)

    with pytest.raises(OSError, match="error"):
        collect(make_collector(kit, fail), [broken])
    assert not os.path.exists(log_path(kit.store.logs, broken))
    collector = make_collector(kit)
    with pytest.raises(OSError, match="error"):
        list(collector.tidy())
    assert kit.table.row(broken).state == LogState.COLLECTING
    assert broken in kit.index.logs()
    with pytest.raises(NotCollectableError, match="says where"):
        collect(collector, [successor])
    kit.osio.faults = None
    list(collector.tidy())
    assert kit.table.row(broken).state == LogState.NONE
    assert (kit.store.logs, True) == kit.osio.syncs[-1]
    assert broken not in kit.index.logs()
    kit.check()


def test_a_log_being_read_is_given_back_when_the_reader_is_done(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    kit.delete(1, ids)
    reader = os.open(header.log_path(kit.store.logs, number), os.O_RDONLY)
    assert log_files.try_reader_lock(reader)
    collector = make_collector(kit)
    collect(collector, [number])
    fill_log(kit)
    fill_log(kit)
    assert kit.table.row(number).state == LogState.COLLECTING
    assert list(collector.tidy()) == []
    assert kit.table.row(number).state == LogState.COLLECTING
    os.close(reader)
    list(collector.tidy())
    assert kit.table.row(number).state == LogState.FREE
    kit.check()


# -- damage


def test_damaged_mail_is_set_aside_and_the_rest_moves(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    damage(kit, ids[2])
    place = kit.index.places(ids[2])[0]
    collector = make_collector(kit)
    collect(collector, [number])
    assert kit.table.row(number).state == LogState.FREE
    assert collector.figures.damaged == 1
    assert any("quarantine" in report for report in kit.reports)
    (kept,) = os.listdir(kit.store.quarantine)
    assert os.stat(os.path.join(kit.store.quarantine, kept)).st_size == place.size
    assert ids[2] not in [each for each, _ in kit.listing(1)]
    kit.ledger.acked.discard(ids[2])
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


def test_a_damaged_deletion_is_rewritten_from_the_footer(kit: StoreKit) -> None:
    ids = fill_log(kit)
    first = kit.index.places(ids[0])[0].log
    deletion = kit.delete(1, ids[:3])
    where = next(
        (row.number, one[0])
        for row in kit.table.rows()
        if row.state == LogState.ACTIVE
        for one in records(kit, row.number)
        if one[0].id == deletion.id
    )
    fill_log(kit, mailbox=2)
    path = header.log_path(kit.store.logs, where[0])
    data = bytearray(Path(path).read_bytes())
    at = data.find(ids[1])
    data[at] ^= 1
    Path(path).write_bytes(data)
    collect(make_collector(kit), [where[0]])
    assert kit.table.row(where[0]).state == LogState.FREE
    restart(kit, rebuilt=True)
    assert kit.table.row(first).state == LogState.SEALED
    kit.check()


def test_a_log_with_a_damaged_seal_is_scanned(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    path = header.log_path(kit.store.logs, number)
    fd = os.open(path, os.O_RDWR)
    log = header.read(Osio(), fd, kit.store.secret)
    assert log is not None
    os.pwrite(fd, b"\xff" * 8, log.seal_offset + 80)
    assert find_seal(Osio(), fd, log) is None
    os.close(fd)
    kit.delete(1, ids[:2])
    collect(make_collector(kit), [number])
    assert kit.table.row(number).state == LogState.FREE
    assert all(number not in [p.log for p in kit.index.places(each)] for each in ids)
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


def test_a_log_that_cannot_be_read_is_kept(kit: StoreKit) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    kit.osio.faults = Faults("pread", 4, persistent=True, only=f"{number:08d}")
    with pytest.raises(OSError, match="error"):
        collect(make_collector(kit), [number])
    kit.osio.faults = None
    assert kit.table.row(number).state == LogState.SEALED
    kit.check()


def test_a_survivor_log_that_fails_is_spoken_of_by_the_next(kit: StoreKit) -> None:
    ids = fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    count = KitOsioCounter(kit.osio)
    kit.osio.faults = Faults("sync", 2)  # the first is for the header of the survivors' log
    with pytest.raises(OSError, match="error"):
        collect(collector, [number])
    broken = kit.osio.faults.hit_paths
    kit.osio.faults = None
    assert kit.table.row(number).state == LogState.SEALED
    collect(collector, [number])
    assert header.log_path(kit.store.logs, kit.index.places(ids[0])[0].log) not in broken
    assert kit.table.row(number).state == LogState.FREE
    assert count.bad_syncs_repeated() == []
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()
    assert set(ids) <= {each for each, _ in kit.listing(1)}


class KitOsioCounter:
    """Which files were synced again after a sync of them failed."""

    def __init__(self, osio: KitOsio) -> None:
        self._osio = osio
        self._start = len(osio.syncs)

    def bad_syncs_repeated(self) -> list[str]:
        bad: set[str] = set()
        again = []
        for path, good in self._osio.syncs[self._start :]:
            if path in bad:
                again.append(path)
            if not good:
                bad.add(path)
        return again


def test_a_log_that_cannot_be_marked_free_is_unlinked(kit: StoreKit) -> None:
    """What its header says then is in the page cache alone."""
    fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    kit.osio.faults = Faults("sync", 1, only=f"{number:08d}")
    collect(collector, [number])
    kit.osio.faults = None
    assert kit.table.row(number).state == LogState.NONE
    assert not Path(log_path(kit.store.logs, number)).exists()
    kit.check()
    restart(kit, rebuilt=False)
    kit.check()


def test_without_room_for_survivors_nothing_is_freed(kit: StoreKit, monkeypatch) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    monkeypatch.setattr(KitOsio, "allocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    for row in kit.table.rows():
        if row.state == LogState.FREE:
            kit.table.change(row.number, LogState.ACTIVE)
    with pytest.raises(NoSpaceError):
        collect(collector, [number])
    assert kit.table.row(number).state == LogState.SEALED
    kit.check()


def test_an_index_that_fails_frees_nothing(kit: StoreKit, monkeypatch) -> None:
    fill_log(kit)
    (number,) = sealed(kit)
    collector = make_collector(kit)

    def fail(*_: object) -> None:
        raise lmdb.Error("no")

    monkeypatch.setattr("metad.store.index.relocation.move", fail)
    with pytest.raises(lmdb.Error):
        collect(collector, [number])
    monkeypatch.undo()
    assert kit.table.row(number).state == LogState.SEALED
    assert kit.index.try_lock(), "the writers' lock was kept"
    kit.index.unlock()
    collect(collector, [number])
    kit.check()
    restart(kit, rebuilt=True)
    kit.check()


def test_closing_seals_the_survivors(kit: StoreKit) -> None:
    fill_log(kit)
    collector: Collector = make_collector(kit)
    collect_all(kit, collector)
    collector.close()
    (row,) = [row for row in kit.table.rows() if row.generation]
    assert row.state == LogState.SEALED
    kit.crash()
    kit.reports.clear()
    kit.start()
    kit.check()


def test_messages_of_a_fifth_of_a_log_are_not_moved_for_ever(kit: StoreKit) -> None:
    ids = [kit.put([1], bytes(kit.size // 5)).id for _ in range(40)]
    kit.delete(1, ids[::2])
    collector = make_collector(kit)
    policy = GcPolicy(kit.size, 0.15, 1.0, {})
    collections = 0
    while (row := choose(kit.table.rows(), policy, 1 << 40)) is not None:
        collections += 1
        assert collections < 40, "it does not end"
        collect(collector, [row.number])
    assert collections
    kit.check()
