"""Recovery reads no more than necessary, and keeps what it cannot explain."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.index import relocation
from metad.store.index.index import Index
from metad.store.index.rows import unpack_row
from metad.store.log import files as log_files
from metad.store.log import header, record
from metad.store.log.header import log_path
from metad.store.log.record import parse_header
from metad.store.log.scan import find_seal
from metad.store.log_table import Allocation, LogState
from metad.store.recovery import rebuild
from metad.store.recovery.hub import Plan, Recovery
from metad.store.recovery.one_log import Recovered
from tests.support.collector_kit import ROW, collect, fill_log, make_collector, sealed
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        yield made


def reads_of(kit: StoreKit) -> Counter[int]:
    """From now on: octets read between the two headers, by log."""
    octets: Counter[int] = Counter()
    real = kit.osio.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        data = real(fd, count, offset)
        name = Path(kit.osio.names.get(fd, "")).name
        if name.endswith(".log") and 0 < offset < kit.size - 4096:
            octets[int(name[:8])] += len(data)
        return data

    kit.osio.pread = pread  # type: ignore[method-assign]
    return octets


def listing(kit: StoreKit) -> list[bytes]:
    return [message_id for message_id, _ in kit.listing(1)]


# -- what is not read


def test_a_log_that_is_entered_to_its_seal_is_not_read_at_all(kit: StoreKit) -> None:
    kit.start()
    for number in range(60):
        kit.put([1], b"%d" % number * 1500)
    kit.crash()
    kit.recover()
    sealed = {row.number for row in kit.table.rows() if row.state == LogState.SEALED}
    assert len(sealed) > 3
    octets = reads_of(kit)
    kit.recover()
    assert not set(octets) & sealed
    kit.open_index()
    assert kit.check() == 60


def test_records_of_an_earlier_life_behind_the_tail_are_skipped(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.start()
    kit.put([1], b"x")
    writer = kit.writers[0].committer.writer
    assert writer is not None
    old = record.seed_of(kit.store.secret, writer.number, writer.life - 1)
    payload = record.digest_whole(b"old", 0, old)
    each = record.make_header(record.MESSAGE, writer.life - 1, 0, bytes(16), payload) + b"old"
    path = log_path(kit.store.logs, writer.number)
    with Path(path).open("r+b") as file:
        file.seek(writer.end)
        file.write(each * 200)
    kit.crash()
    looked = 0

    def parse(*args: object) -> object:
        nonlocal looked
        looked += 1
        return parse_header(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(record, "parse_header", parse)
    kit.recover()
    assert looked < 20
    kit.open_index()
    assert kit.check() == 1


def test_a_footer_of_a_tail_is_used_and_only_what_lies_before_it_is_scanned(
    kit: StoreKit,
) -> None:
    kit.size = 128 * 1024
    kit.start()
    for number in range(4):
        kit.put([1], b"%d" % number * 1000)
    for writer in kit.writers:  # from here on the index sees nothing
        writer.feed.index.apply = lambda *_: None  # type: ignore[method-assign]
    late = [kit.put([1], b"late %d" % number * 1000) for number in range(4)]
    kit.crash()
    kit.osio.faults = Faults("allocate", 1, errno.ENOSPC)  # no log for the last group
    kit.recover()
    kit.osio.faults = None
    assert any("its last group stays where it is" in text for text in kit.reports)
    kit.open_index()
    place = kit.index.places(late[-1].id)[0]
    kit.crash()
    fd = os.open(log_path(kit.store.logs, place.log), os.O_RDWR)
    log = header.read(kit.osio, fd, kit.store.secret)
    assert log is not None
    seal = find_seal(kit.osio, fd, log)
    assert seal is not None
    assert log.align < seal.covers_from <= place.offset
    # A record that the footer speaks of is not read: spoil one, and it is still in the listing.
    os.pwrite(fd, b"\0" * 50, place.offset + 200)
    os.close(fd)
    kit.drop_index()
    kit.recover()
    kit.open_index()
    assert len(listing(kit)) == 8
    assert kit.index.places(late[-1].id) == [place]
    assert list(Path(kit.store.quarantine).iterdir()) == []


@pytest.mark.parametrize("index", ["kept", "removed"])
def test_a_log_that_recovery_frees_has_no_row(kit: StoreKit, index: str) -> None:
    """Else the next start would look through all places for those in it."""
    kit.start(2)
    kit.put([1], b"x")
    kit.crash()
    if index == "removed":
        kit.drop_index()
    kit.recover()
    free = {row.number for row in kit.table.rows() if row.state == LogState.FREE}
    kit.open_index()
    assert free
    assert not free & set(kit.index.logs())


# -- headers


@pytest.mark.parametrize("align", [512, 4096])
def test_the_alignment_shows_without_headers(tmp_path: Path, align: int) -> None:
    with StoreKit(tmp_path, size=256 * 1024, align=align) as kit:
        kit.start()
        for number in range(12):
            kit.put([1], b"%d" % number * 700)
        kit.crash()
        for path in kit.log_files():
            with path.open("r+b") as file:
                for at in (0, kit.size - align):
                    file.seek(at)
                    file.write(b"\xff" * 200)
        kit.drop_index()
        recovery = kit.recover()
        kit.open_index()
        assert kit.check() == 12
        assert recovery.damaged == 0
        logs = [path.name for path in kit.log_files()]
        kept = list(Path(kit.store.quarantine).iterdir())
        # The log that was ready and empty held nothing that verifies; one has the last group.
        assert len(logs) == 2
        assert all(path.name.endswith(".unknown") for path in kept)


def test_a_log_in_which_nothing_verifies_is_put_away_and_not_removed(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"x")
    kit.crash()
    trash = [os.urandom(32 * 1024) for _ in range(2)]
    for each in trash:
        (Path(kit.store.logs) / "00000007.log").write_bytes(each)
        kit.reports.clear()
        kit.start()
        assert kit.check() == 1
        assert [text for text in kit.reports if "nothing in log 7 verifies" in text]
        kit.crash()
    kept = sorted(path.read_bytes() for path in Path(kit.store.quarantine).iterdir())
    assert kept == sorted(trash)


@pytest.mark.parametrize("trashed", [b"", b"\xff" * 512])
def test_the_rest_of_a_log_that_was_just_being_made_is_removed(
    kit: StoreKit, trashed: bytes
) -> None:
    kit.start()
    kit.put([1], b"x")
    kit.crash()
    path = Path(kit.store.logs) / "00000007.log"
    path.write_bytes(trashed.ljust(31 * 1024 + 512, b"\0") + trashed.ljust(512, b"\0"))
    kit.recover()
    assert not path.exists()
    assert list(Path(kit.store.quarantine).iterdir()) == []


# -- an index that speaks of more than there is


def test_a_watermark_beyond_a_seal_is_a_reason_for_a_rebuild(kit: StoreKit) -> None:
    """An earlier copy of a log, of the same life, was put in its place."""
    kit.start()
    first = kit.put([1], b"first")
    number = kit.index.places(first.id)[0].log
    kit.crash()
    shutil.copytree(kit.store.logs, kit.data / "copy")
    (kit.data / "again").mkdir()
    # The copy is sealed after the first message, the original after the second.
    with StoreKit(kit.data / "again") as other:
        shutil.rmtree(other.store.logs)
        shutil.copytree(kit.data / "copy", other.store.logs)
        other.osio.faults = Faults("allocate", 1, errno.ENOSPC)  # so that it is sealed itself
        other.recover()
        early = Path(log_path(other.store.logs, number)).read_bytes()
    index = Index(kit.store.index)
    row = index.log_counts(number)
    with index.writing() as txn:
        key = number.to_bytes(4, "big")
        value = txn.get(key, db=index.tables.logs)
        more = (row.watermark + 4096).to_bytes(8, "big")
        txn.put(key, value[:8] + more + value[16:], db=index.tables.logs)  # type: ignore[operator]
    index.close()
    Path(log_path(kit.store.logs, number)).write_bytes(early)
    kit.reports.clear()
    kit.recover()
    assert [text for text in kit.reports if f"log {number} ends before" in text]
    kit.open_index()
    assert kit.check() == 1


# -- what others hold or have removed


def test_a_rebuild_leaves_alone_what_an_orphan_holds(kit: StoreKit) -> None:
    kit.start(2)
    held = kit.put([1], b"held", 0)
    kit.put([1], b"free", 1)
    number = kit.index.places(held.id)[0].log
    kit.crash()
    kit.drop_index()
    orphan = log_files.lock_log(KitOsio(), kit.store.logs, number)
    before = Path(log_path(kit.store.logs, number)).read_bytes()
    kit.reports.clear()
    kit.recover()
    assert Path(log_path(kit.store.logs, number)).read_bytes() == before
    assert [text for text in kit.reports if f"log {number}" in text]
    assert kit.table.row(number).state == LogState.ACTIVE
    os.close(orphan)
    kit.recover()
    kit.open_index()
    assert kit.check() == 2


def test_the_places_in_a_log_that_a_dead_collector_unlinked_are_dropped(kit: StoreKit) -> None:
    kit.start()
    sent = kit.put([1], b"x")
    number = kit.index.places(sent.id)[0].log
    for path in [Path(log_path(kit.store.logs, number))]:
        path.unlink()
    kit.index.close()
    Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, 0)
    assert kit.table.row(number)[:2] == (number, LogState.COLLECTING)  # nothing was searched
    kit.open_index()
    assert list(make_collector(kit).tidy())
    assert kit.index.places(sent.id) == []
    assert number not in kit.index.logs()
    assert kit.table.row(number).state == LogState.NONE


@pytest.mark.parametrize("what", ["damaged", "unlinked"])
@pytest.mark.parametrize("who", ["recovery of the hub", "recovery of the process"])
def test_a_log_whose_contents_do_not_show_any_more_holds_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, who: str
) -> None:
    """Regression: all places of the index were read for it, 170 seconds for 100 million, before the
    first worker started."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.start()
        ids = fill_log(kit)
        kit.delete(1, ids[::2])
        fill_log(kit, mailbox=2)
        (victim, *_) = sealed(kit)
        path = Path(log_path(kit.store.logs, victim))
        if what == "damaged":
            place = kit.index.places(ids[3])[0]
            with path.open("r+b") as file:
                file.seek(place.offset)
                file.write(b"\xff" * place.size)

        def stop(name: str) -> None:
            if name == "freed":
                raise InterruptedError

        with pytest.raises(InterruptedError):
            collect(make_collector(kit, stop), [victim])
        if what == "unlinked":
            path.unlink()
        kit.crash()
        with monkeypatch.context() as patch:
            patch.setattr(relocation, "ids_in", None)
            if who == "recovery of the hub":
                kit.recover()
            else:
                Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, ROW)
        assert kit.table.row(victim).state == LogState.COLLECTING
        kit.open()
        collector = make_collector(kit)
        list(collector.tidy())
        collector.close()
        assert kit.table.row(victim).state == (
            LogState.FREE if what == "damaged" else LogState.NONE
        )
        with kit.index.reading() as txn:
            rows = [bytes(row) for _, row in txn.cursor(kit.index.tables.places)]
        assert rows and not any(relocation.Row(*unpack_row(row)).is_in(victim) for row in rows)
        if what == "unlinked":
            kit.check()


def test_no_log_is_made_in_the_place_of_one_that_the_index_still_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a collector had unlinked a log and was killed before the index forgot it.  The
    start made a log under its number, which then passed for it: places in the old one stayed."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.start(2)
        fill_log(kit)
        kit.put([1], b"in the last log that is in use")
        kit.delete(1, [one for one, _ in kit.listing(1)], 1)
        number, known = max(kit.index.logs().items())
        kit.crash()
        for path in kit.log_files():  # its own, and those that were made for later
            if int(path.stem) >= number:
                path.unlink()
        made: list[Allocation] = []

        def make_one(_: Recovery, index: Index, plan: Plan) -> dict[int, Recovered]:
            made.append(plan.numbers.take(0))
            return {}

        monkeypatch.setattr(Recovery, "recover_logs", make_one)
        kit.recover()
        assert made[0].number > number
        assert made[0].life > known.life
        assert kit.table.row(number).state == LogState.COLLECTING  # the collector has it forgotten


# -- the second process of a rebuild


@pytest.mark.slow
def test_the_reason_of_a_failure_in_the_second_process_is_told(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(*_: object) -> Iterator[int]:
        yield 1
        raise OSError(28, "the disk is full")

    kit.start()
    kit.put([1], b"x")
    kit.crash()
    kit.drop_index()
    monkeypatch.setattr(rebuild, "FORK_FROM", 0)
    monkeypatch.setattr(rebuild, "_split", split)
    with pytest.raises(OSError, match="the disk is full"):
        kit.recover()
    monkeypatch.undo()
    kit.recover()
    kit.open_index()
    assert kit.check() == 1
    assert sorted(path.name for path in kit.data.glob("index*")) == ["index"]


def test_a_disk_too_full_for_two_loses_the_index_that_is_not_believed(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.start()
    kit.put([1], b"x")
    kit.crash()
    (Path(kit.store.index) / "state").unlink()
    monkeypatch.setattr(rebuild, "_free_space", lambda path: 10)
    kit.reports.clear()
    kit.recover()
    assert [text for text in kit.reports if "too little space" in text]
    kit.open_index()
    assert kit.check() == 1
