"""Recovery: acknowledged mail is there whatever happened, and stays."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metad.errors import DataError
from metad.store.fsck.log_check import read_headers
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log.scan import find_seal
from metad.store.log_table import LogState, Room
from metad.store.recovery.hub import Recovery
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(record=True)) as made:
        made.osio.watch = made.store.logs
        yield made


def work(kit: StoreKit, seed: int, count: int = 60) -> None:
    """Put and delete, over two writers."""
    rng = random.Random(seed)
    for _ in range(count):
        writer = rng.randrange(len(kit.writers))
        if rng.random() < 0.25 and (listing := kit.listing(box := rng.randrange(4))):
            some = rng.sample(listing, min(len(listing), rng.randrange(1, 5)))
            kit.delete(box, [each for each, _ in some], writer)
        else:
            boxes = rng.sample(range(4), rng.randrange(1, 4))
            kit.put(boxes, rng.randbytes(rng.randrange(2000)), writer)


def snapshot(kit: StoreKit) -> dict[int, list[tuple[bytes, int]]]:
    return {mailbox: kit.listing(mailbox) for mailbox in range(5)}


def seal_of(kit: StoreKit, number: int) -> tuple[header.LogHeader | None, object]:
    fd = os.open(log_path(kit.store.logs, number), os.O_RDONLY)
    try:
        log = header.read(kit.osio, fd, kit.store.secret)
        return log, find_seal(kit.osio, fd, log) if log else None
    finally:
        os.close(fd)


# -- restarts


def test_an_empty_store_starts(kit: StoreKit) -> None:
    kit.start()
    assert kit.check() == 0
    assert kit.reports == ["index: there is none; rebuilding it from the logs"]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 2, 3))]
)
@pytest.mark.parametrize("index", ["kept", "removed"])
@pytest.mark.parametrize("end", ["crash", "stop"])
def test_every_restart_keeps_everything(tmp_path: Path, seed: int, index: str, end: str) -> None:
    with StoreKit(tmp_path) as kit:
        for turn in range(4):
            kit.start(2)
            work(kit, seed * 10 + turn)
            before = snapshot(kit)
            kit.stop() if end == "stop" else kit.crash()
            if index == "removed":
                kit.drop_index()
            kit.recover()
            kit.open_index()
            assert snapshot(kit) == before
            assert kit.check() > 0
            kit.crash()


@pytest.mark.slow
def test_a_restart_with_a_good_index_does_not_rebuild_it(kit: StoreKit) -> None:
    for turn, end in enumerate([kit.crash, kit.stop, kit.crash, kit.crash, kit.stop]):
        kit.start(2)
        work(kit, turn)
        kit.reports.clear()
        end()
    kit.start()
    kit.check()
    assert not [text for text in kit.reports if "rebuild" in text]


def test_a_reused_log_without_mail_is_no_reason_for_a_rebuild(kit: StoreKit) -> None:
    """Its row in the index may still be of the life before, which had no mail either."""
    for _ in range(5):
        kit.start(2)
        kit.put([1], b"x")
        kit.reports.clear()
        kit.crash()
    kit.start()
    kit.check()
    assert not [text for text in kit.reports if "rebuild" in text]


def test_every_log_is_sealed_or_free_after_recovery(kit: StoreKit) -> None:
    kit.start(2)
    work(kit, 1)
    kit.crash()
    kit.recover()
    rows = kit.table.rows()
    assert {row.number for row in rows} == {int(path.stem) for path in kit.log_files()}
    for row in rows:
        log, seal = seal_of(kit, row.number)
        assert log is not None
        assert row.life == log.life
        assert (row.state == LogState.FREE) == (log.state == header.FREE)
        assert (row.state == LogState.SEALED) == (seal is not None)


def test_recovery_twice_changes_nothing(kit: StoreKit) -> None:
    kit.start(2)
    work(kit, 2)
    kit.crash()
    kit.recover()
    files = {path: path.read_bytes() for path in kit.log_files()}
    for _ in range(2):
        kit.recover()
        assert {path: path.read_bytes() for path in kit.log_files()} == files
    kit.drop_index()
    kit.recover()
    assert {path: path.read_bytes() for path in kit.log_files()} == files
    kit.open_index()
    kit.check()


@pytest.mark.slow
def test_no_log_is_appended_to_after_recovery(kit: StoreKit) -> None:
    kit.start(2)
    work(kit, 3)
    kit.crash()
    kit.recover()
    sealed = {row.number for row in kit.table.rows() if row.state == LogState.SEALED}
    files = {n: Path(log_path(kit.store.logs, n)).read_bytes() for n in sealed}
    kit.open(2)
    work(kit, 4)
    kit.stop()
    assert {n: Path(log_path(kit.store.logs, n)).read_bytes() for n in sealed} == files


def test_only_the_tail_is_read_after_a_kill(kit: StoreKit) -> None:
    """With a usable index, what is sealed and entered is not read again."""
    kit.size = 256 * 1024
    kit.start()
    for _ in range(100):
        kit.put([1], b"x" * 2000)
    kit.crash()
    offsets: list[int] = []
    real = kit.osio.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        offsets.append(offset)
        return real(fd, count, offset)

    kit.osio.pread = pread  # type: ignore[method-assign]
    kit.recover()
    tail = 512 + 100 * 2560
    assert not [at for at in offsets if 4096 < at < tail]
    kit.open_index()
    assert kit.check() == 100


def test_the_greatest_time_is_that_of_the_newest_message(kit: StoreKit) -> None:
    kit.start()
    sent = kit.put([1], b"x")
    kit.crash()
    before = kit.area.clock_offset
    kit.recover()
    assert kit.area.clock_offset >= before - 10**9
    kit.open()
    assert kit.put([1], b"y").id > sent.id


# -- the index in doubt


@pytest.mark.parametrize("doubt", ["state", "data", "boot", "garbage", "copied", "layout"])
def test_an_index_in_doubt_is_rebuilt(kit: StoreKit, doubt: str) -> None:
    kit.start(2)
    work(kit, 5)
    kit.crash()
    index = Path(kit.store.index)
    if doubt == "state":
        (index / "state").unlink()
    elif doubt == "data":
        (index / "data.mdb").unlink()
    elif doubt == "boot":
        kit.boot = "boot-2"
    elif doubt == "garbage":
        (index / "state").write_bytes(b"[1, 2")
    elif doubt == "layout":
        state = json.loads((index / "state").read_bytes())
        (index / "state").write_text(json.dumps(state | {"layout": index_state.LAYOUT - 1}))
    else:
        shutil.copy(index / "data.mdb", index / "copy")
        os.replace(index / "copy", index / "data.mdb")
    kit.reports.clear()
    kit.recover()
    assert any("rebuild" in text for text in kit.reports)
    kit.open_index()
    assert kit.check() > 0


def test_an_index_that_was_closed_cleanly_outlives_a_boot(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.boot = "boot-2"
    kit.reports.clear()
    kit.start()
    assert not [text for text in kit.reports if "rebuild" in text]
    assert kit.check() == 1


def test_an_index_of_other_lives_is_rebuilt(kit: StoreKit) -> None:
    """The logs were put back from a backup, the index was not."""
    kit.start()
    kit.put([1], b"x")
    kit.crash()
    saved = {path: path.read_bytes() for path in kit.log_files()}
    ledger = kit.ledger.copy()
    kit.start()
    work(kit, 9, 40)
    kit.crash()
    for path in kit.log_files():
        path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
    kit.ledger = ledger
    kit.recover()
    kit.open_index()
    assert kit.check() == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"clean": true}'])
def test_a_state_file_of_any_content_is_judged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x")
    (tmp_path / "state").write_bytes(content)
    assert index_state.why_unusable(KitOsio(), str(tmp_path), "b") is not None


def test_the_state_is_clean_only_after_a_clean_end(tmp_path: Path) -> None:
    osio = KitOsio()
    (tmp_path / "data.mdb").write_bytes(b"x")
    index_state.mark(osio, str(tmp_path), "boot", clean=False)
    assert index_state.why_unusable(osio, str(tmp_path), "boot") is None
    assert index_state.why_unusable(osio, str(tmp_path), "other") is not None
    index_state.mark(osio, str(tmp_path), "boot", clean=True)
    assert index_state.why_unusable(osio, str(tmp_path), "other") is None


# -- recovery killed


def kill_at_each(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, target: object, name: str
) -> Iterator[Callable[[], None]]:
    """Yields a recovery that is killed at the first, second, ... call of `target.name`."""
    real = getattr(target, name)

    class KilledError(BaseException):
        pass

    for ordinal in range(1, 500):
        left = ordinal
        finished = False

        def fail(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if not left:
                raise KilledError
            return real(*args, **more)

        def recover() -> None:
            nonlocal finished
            try:
                kit.recover()
                finished = True
            except KilledError:
                pass

        monkeypatch.setattr(target, name, fail)
        yield recover
        monkeypatch.setattr(target, name, real)
        if finished:
            return
    raise AssertionError("it never came to its end")


@pytest.mark.slow
def test_recovery_killed_between_its_transactions_loses_nothing(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watermarks must not run ahead of entries: neither of mail nor of deletions."""
    from metad.store.recovery import enter

    monkeypatch.setattr(enter, "BATCH", 5)
    kit.start(2)
    work(kit, 6, 30)
    for writer in kit.writers:  # from here on the index sees nothing
        monkeypatch.setattr(writer.feed.index, "apply", lambda *_: None)
    for number in range(15):
        kit.put([1], b"late %d" % number, number % 2)
    for each, _ in kit.listing(0)[:4]:
        kit.delete(0, [each])
    kit.crash()
    monkeypatch.undo()
    monkeypatch.setattr(enter, "BATCH", 5)
    saved = Path(shutil.copytree(kit.data, kit.data.parent / "saved"))
    for recover in kill_at_each(kit, monkeypatch, Index, "apply"):
        shutil.rmtree(kit.data)
        shutil.copytree(saved, kit.data)
        same_inode(kit)
        recover()
        same_inode(kit)
        kit.osio.close_all()
        monkeypatch.undo()
        monkeypatch.setattr(enter, "BATCH", 5)
        kit.recover()
        kit.open_index()
        kit.check()
        kit.crash()


def same_inode(kit: StoreKit) -> None:
    """The copy of the index counts as the same file: this is a kill, not a power cut."""
    if (Path(kit.store.index) / "data.mdb").exists():
        index_state.mark(KitOsio(), kit.store.index, kit.boot, clean=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pwrite", "pwritev", "fdatasync", "fsync", "rename"])
def test_recovery_killed_at_any_write_can_be_done_again(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kit.start(2)
    work(kit, 7)
    kit.crash()
    saved = Path(shutil.copytree(kit.data, kit.data.parent / "saved"))
    for recover in kill_at_each(kit, monkeypatch, KitOsio, name):
        shutil.rmtree(kit.data)
        shutil.copytree(saved, kit.data)
        recover()
        kit.osio.close_all()
        monkeypatch.undo()
        kit.recover()
        kit.open_index()
        kit.check()
        kit.crash()


# -- damage


def spoil(kit: StoreKit, number: int, at: int) -> None:
    fd = os.open(log_path(kit.store.logs, number), os.O_RDWR)
    old = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([old[0] ^ 1]), at)
    os.close(fd)


def spoil_header(kit: StoreKit, number: int, copy: str) -> None:
    log, _ = seal_of(kit, number)
    assert log is not None
    spoil(kit, number, 20 if copy == "first" else log.size - log.align + 20)
    fd = os.open(log_path(kit.store.logs, number), os.O_RDONLY)
    assert header.copies(kit.osio, fd, kit.store.secret)[copy == "last"] is None
    os.close(fd)


def test_damage_in_the_middle_is_set_aside_and_reported(kit: StoreKit) -> None:
    kit.start()
    sent = [kit.put([1], b"%d" % n * 100) for n in range(5)]
    place = kit.index.places(sent[2].id)[0]
    kit.crash()
    spoil(kit, place.log, place.offset + 100)
    kit.drop_index()
    kit.reports.clear()
    assert kit.recover().damaged == 1
    kept = list(Path(kit.store.quarantine).iterdir())
    assert len(kept) == 1
    assert b"2" * 50 in kept[0].read_bytes()
    assert any("damaged" in text for text in kit.reports)
    kit.open_index()
    assert [each for each, _ in kit.listing(1)] == [s.id for s in sent if s is not sent[2]]


def test_a_log_whose_footer_is_damaged_is_scanned(kit: StoreKit) -> None:
    kit.start()
    work(kit, 8, 25)
    kit.stop()
    for path in kit.log_files():
        log, seal = seal_of(kit, int(path.stem))
        if seal is not None:
            assert log is not None
            spoil(kit, log.number, log.seal_offset + log.seal_size // 2)
    kit.drop_index()
    kit.start()
    assert kit.check() > 0


@pytest.mark.parametrize("copy", ["first", "last"])
def test_one_damaged_header_costs_nothing(kit: StoreKit, copy: str) -> None:
    kit.start()
    work(kit, 8, 25)
    kit.crash()
    for path in kit.log_files():
        spoil_header(kit, int(path.stem), copy)
    kit.drop_index()
    kit.start()
    assert kit.check() > 0


@pytest.mark.parametrize("is_rebuilt", [True, False])
def test_a_log_that_is_half_free_is_freed_whole(kit: StoreKit, is_rebuilt: bool) -> None:
    """The power went, or the process died, between the two headers of an empty log: the index does
    not refer to it, and it may stay free for long."""
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.start()
    kit.stop()
    free = [int(path.stem) for path in kit.log_files() if is_free(kit, int(path.stem))]
    assert free
    for number in free:
        spoil_header(kit, number, "last")
    if is_rebuilt:
        kit.drop_index()
    kit.recover()
    for number in free:
        assert read_headers(kit.osio, kit.store, number).findings == ()
        assert kit.table.row(number).state == LogState.FREE
    kit.start()
    assert len(kit.listing(1)) == 1


def test_a_log_that_cannot_be_freed_again_keeps_no_hub_from_starting(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.start()
    kit.stop()
    free = [int(path.stem) for path in kit.log_files() if is_free(kit, int(path.stem))]
    spoil_header(kit, free[0], "last")
    kit.drop_index()

    def fails(*_: object) -> bool:
        raise OSError(errno.EACCES, "not to be written to")

    monkeypatch.setattr(Recovery, "_free_again", fails)
    kit.start()
    assert len(kit.listing(1)) == 1
    assert any(f"log {free[0]} could not be freed again" in line for line in kit.reports)


def is_free(kit: StoreKit, number: int) -> bool:
    log, _ = seal_of(kit, number)
    return log is not None and log.state == header.FREE


def test_both_headers_damaged_costs_nothing(kit: StoreKit) -> None:
    kit.start()
    work(kit, 8, 25)
    kit.stop()
    for path in kit.log_files():
        spoil_header(kit, int(path.stem), "first")
        spoil_header(kit, int(path.stem), "last")
    kit.drop_index()
    kit.start()
    assert kit.check() > 0


def test_a_damaged_last_record_under_a_damaged_footer_is_kept_aside(kit: StoreKit) -> None:
    """The last block still says where the log ends: what is damaged there is not a torn tail."""
    kit.start()
    sent = [kit.put([1], b"%d" % n * 100) for n in range(3)]
    place = kit.index.places(sent[2].id)[0]
    kit.stop()
    log, _ = seal_of(kit, place.log)
    assert log is not None
    spoil(kit, place.log, place.offset + 100)
    spoil(kit, place.log, log.seal_offset + 80)
    kit.drop_index()
    kit.recover()
    kept = list(Path(kit.store.quarantine).iterdir())
    assert len(kept) == 1
    assert b"2" * 50 in kept[0].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00000009.log", "00000003.log.new"])
@pytest.mark.parametrize("size", [0, 100, 32 * 1024])
def test_a_log_that_was_never_finished_is_no_obstacle(kit: StoreKit, name: str, size: int) -> None:
    """A power cut during the creation of a log leaves a file with any content."""
    kit.start()
    sent = kit.put([1], b"x")
    kit.crash()
    (Path(kit.store.logs) / name).write_bytes(bytes(size))
    kit.boot = "boot-2"
    kit.start()
    assert kit.check() == 1
    assert kit.stored(sent.id).body == b"x"
    for _ in range(40):
        assert kit.put([1], b"y" * 2000).acked
    kit.check()


# -- poisoned logs


def test_a_poisoned_log_ends_where_its_successor_says(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"good")
    kit.osio.faults = Faults("sync", 1)
    refused = kit.put([1], b"refused")
    undone = kit.delete(1, [kit.put([1], b"next").id])
    assert refused.error is not None
    assert undone.acked
    kit.crash()
    for _ in range(3):
        kit.drop_index()
        kit.recover()
        kit.open_index()
        assert refused.id not in [each for each, _ in kit.listing(1)]
        kit.check()
        kit.crash()


def stays_as_it_is(kit: StoreKit, log: Path) -> None:
    """A poisoned log, whatever is stored after it, over three lives of the hub."""
    kit.put([1], b"after")
    before = log.read_bytes()
    kit.crash()
    for _ in range(3):
        kit.start()
        work(kit, 10, 20)
        kit.stop()
        kit.drop_index()
    assert log.read_bytes() == before
    kit.start()
    kit.check()


@pytest.mark.slow
def test_a_poisoned_log_is_never_written_to_again(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"good")
    kit.osio.faults = Faults("sync", 1)
    kit.put([1], b"refused")
    path = Path(kit.osio.faults.hit_paths[0])
    stays_as_it_is(kit, path)


@pytest.mark.slow
def test_a_log_poisoned_by_its_first_group_is_never_written_to_again(kit: StoreKit) -> None:
    kit.start()
    kit.osio.faults = Faults("sync", 1)
    assert kit.put([1], b"refused").error is not None
    path = Path(kit.osio.faults.hit_paths[0])
    stays_as_it_is(kit, path)


@pytest.mark.parametrize("index", ["kept", "removed"])
@pytest.mark.parametrize("room", ["ready", "at the limit", "full disk"])
def test_a_refused_deletion_is_not_carried_out_by_a_restart(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, room: str, index: str
) -> None:
    """Before the client is told, another log records where the broken one ends."""
    kit.start()
    kept = kit.put([1], b"kept")
    source = kit.writers[0].source
    if room != "ready" and source._ready is not None:
        source._ready.poisoned = True
    if room == "at the limit":
        source._settings = replace(source._settings, room=Room(1))
    if room == "full disk":
        monkeypatch.setattr(kit.osio, "allocate", no_room_for(kit.size))
    kit.osio.faults = Faults("sync", 1)
    assert kit.delete(1, [kept.id]).error is not None
    kit.osio.faults = None
    kit.crash()
    monkeypatch.undo()
    for _ in range(3):
        if index == "removed":
            kit.drop_index()
        kit.start()
        assert [each for each, _ in kit.listing(1)] == [kept.id]
        kit.check()
        kit.crash()


def no_room_for(size: int) -> Callable[[int, int], None]:
    """A disk with room for little files."""

    def allocate(fd: int, octets: int) -> None:
        if octets >= size:
            raise OSError(errno.ENOSPC, "no room")
        os.posix_fallocate(fd, 0, octets)

    return allocate


@pytest.mark.parametrize("index", ["kept", "removed"])
def test_a_group_that_may_be_unsynced_is_kept_in_a_log_of_its_own(
    kit: StoreKit, index: str
) -> None:
    """Messages as well as deletions, since nothing shows that they were refused."""
    kit.start()
    first, second = kit.put([1, 2], b"first"), kit.put([1], b"second")
    assert second.acked
    kit.osio.faults = Faults("sync", 1, dead=True)
    refused = [kit.submit([1], b"refused"), kit.submit_deletion(1, [first.id])]
    kit.run()
    assert all(each.error is not None for each in refused)
    path = Path(kit.osio.faults.hit_paths[0])
    before = path.read_bytes()
    kit.crash()
    kit.osio.faults = None
    for _ in range(3):
        if index == "removed":
            kit.drop_index()
        kit.start()
        assert [each for each, _ in kit.listing(1)] == [second.id, refused[0].id]
        assert [each for each, _ in kit.listing(2)] == [first.id]
        ((place),) = kit.index.places(refused[0].id)
        assert log_path(kit.store.logs, place.log) != str(path)
        kit.check()
        kit.stop()
    assert path.read_bytes() == before


def test_acknowledged_mail_in_a_last_group_is_kept_by_its_log(kit: StoreKit) -> None:
    """The index was updated after the sync: nothing is copied."""
    kit.start()
    sent = kit.put([1], b"good")
    place = kit.index.places(sent.id)
    kit.crash()
    logs = len(list(kit.log_files()))
    kit.start()
    assert kit.index.places(sent.id) == place
    assert len(list(kit.log_files())) <= logs
    kit.check()


def test_a_log_that_cannot_be_sealed_is_ended_by_another(kit: StoreKit) -> None:
    """A disk that fails in one place must not keep the hub from starting."""
    kit.start()
    sent = [kit.put([1], b"good") for _ in range(3)]
    number = kit.index.places(sent[0].id)[0].log
    kit.crash()
    kit.osio.faults = Faults("sync", 1, only=log_path(kit.store.logs, number))
    kit.recover()
    assert kit.osio.faults.hits == 1
    assert not kit.osio.retried
    assert kit.table.row(number).state == LogState.SEALED
    kit.osio.faults = None
    kit.open_index()
    assert kit.check() == 3
    kit.crash()
    kit.drop_index()
    kit.start()
    assert kit.check() == 3


# -- while other processes live


def test_a_log_with_a_living_writer_is_left_alone(kit: StoreKit) -> None:
    """The dead worker's logs are recovered beside a living one, whose log is not touched."""
    kit.start(2)
    work(kit, 11, 20)
    dead, living = kit.writers
    mine, its = dead.committer.writer, living.committer.writer
    assert mine is not None
    assert its is not None
    before = Path(log_path(kit.store.logs, its.number)).read_bytes()
    close_logs(kit, [row.number for row in kit.table.owned_by(0)])
    kit.index.close()
    other = KitOsio()
    Recovery(other, kit.store, kit.reports.append).recover_process(kit.table, 0)
    other.close_all()
    reopen_index(kit)
    assert kit.table.owned_by(0) == []
    assert kit.table.row(mine.number).state == LogState.SEALED
    assert kit.table.row(its.number).state == LogState.ACTIVE
    assert Path(log_path(kit.store.logs, its.number)).read_bytes() == before
    kit.writers = [living, living]
    assert kit.put([1], b"x", 1).acked
    kit.check()
    kit.crash()
    kit.drop_index()
    kit.start()
    kit.check()


def close_logs(kit: StoreKit, numbers: list[int]) -> None:
    """A writer dies: the kernel drops its locks."""
    paths = {log_path(kit.store.logs, number) for number in numbers}
    for fd, path in list(kit.osio.names.items()):
        if path in paths:
            kit.osio.close(fd)


def reopen_index(kit: StoreKit) -> None:
    index = Index(kit.store.index)
    kit.index = kit.reader._index = index
    for writer in kit.writers:
        writer.feed.index = index


def test_a_log_that_an_orphan_still_holds_is_not_marked_free(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"x")
    number = kit.index.places(kit.listing(1)[0][0])[0].log
    kit.crash()
    orphan = os.open(log_path(kit.store.logs, number), os.O_RDWR)
    assert kit.osio.try_lock(orphan)
    kit.recover()
    state = kit.table.row(number).state
    os.close(orphan)
    assert state != LogState.FREE


def test_logs_of_another_secret_are_left_alone_and_stop_the_start(kit: StoreKit) -> None:
    """A digit of store.json is wrong: nothing verifies, and nothing may be put away for it."""
    kit.start()
    work(kit, 12, 20)
    kit.crash()
    files = {path: path.read_bytes() for path in kit.log_files()}
    other = replace(kit.store, secret=bytes(32))
    with pytest.raises(DataError, match=r"store\.json"):
        Recovery(KitOsio(), other, kit.reports.append).plan_all()
    assert {path: path.read_bytes() for path in kit.log_files()} == files


def test_a_damaged_last_record_within_the_last_block_is_kept_aside(kit: StoreKit) -> None:
    kit.start()
    kept = kit.put([1], b"x")
    spoilt = kit.put([1], b"y")
    place = kit.index.places(spoilt.id)[0]
    kit.stop()
    log, _ = seal_of(kit, place.log)
    assert log is not None
    spoil(kit, place.log, place.offset + place.size - 1)
    spoil(kit, place.log, log.seal_offset + 10)
    kit.drop_index()
    kit.recover()
    assert list(Path(kit.store.quarantine).iterdir())
    kit.open_index()
    assert [each for each, _ in kit.listing(1)] == [kept.id]
