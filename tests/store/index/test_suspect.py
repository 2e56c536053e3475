"""A damaged index is found, noted durably, and rebuilt by the next recovery."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.index import probe
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.rows import DisagreementError, pack_log
from metad.system.osio import Osio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        for number in range(40):
            made.put([number % 3], b"%d" % number)
        yield made


def reason(kit: StoreKit) -> str | None:
    return index_state.suspicion(Osio(), kit.store.index)


def healed(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    assert any("rebuilding it from the logs" in line for line in kit.reports), kit.reports
    kit.check()
    assert reason(kit) is None
    kit.crash()
    kit.reports.clear()
    kit.start()
    assert not any("rebuilding" in line for line in kit.reports)


def change_count(kit: StoreKit, by: int) -> None:
    number, counts = next(iter(kit.index.logs().items()))
    with kit.index.writing() as txn:
        wrong = counts._replace(live_messages=counts.live_messages + by)
        txn.put(number.to_bytes(4, "big"), pack_log(wrong), db=kit.index.tables.logs)


@pytest.mark.usefixtures("index_child")
def test_a_good_index_stands_the_trial(kit: StoreKit) -> None:
    kit.crash()
    assert probe.why_damaged(kit.store.index, lambda: None) is None


@pytest.mark.parametrize("by", [-3, 5])
def test_a_wrong_count_is_found_at_a_start(kit: StoreKit, by: int) -> None:
    """Regression: exit code 74 at every start, or a worker that stayed blocked."""
    change_count(kit, by)
    healed(kit)


def test_a_count_below_zero_stops_the_transaction_and_is_noted(kit: StoreKit) -> None:
    change_count(kit, -40)
    assert kit.delete(0, [each for each, _ in kit.listing(0)]).acked  # durable all the same
    assert "below zero" in (reason(kit) or "")
    healed(kit)


@pytest.mark.slow
@pytest.mark.usefixtures("index_child")
@pytest.mark.parametrize("first", [0, 2, 5])
def test_a_zeroed_page_is_found_at_a_start(kit: StoreKit, first: int) -> None:
    kit.crash()
    path = Path(kit.store.index) / "data.mdb"
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(first * 4096, size, 4096):
            file.seek(at)
            file.write(bytes(4096))
    healed(kit)


@pytest.mark.slow
@pytest.mark.usefixtures("index_child")
def test_an_index_cut_short_is_found_at_a_start(kit: StoreKit) -> None:
    kit.crash()
    os.truncate(Path(kit.store.index) / "data.mdb", 3 * 4096)
    healed(kit)


def test_a_failed_sync_is_noted(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel considers the pages clean: a later read of the disk may return others."""

    class Env:
        def sync(self, force: bool) -> None:
            raise lmdb.DiskError("no")

    with monkeypatch.context() as broken:
        broken.setattr(kit.index, "_env", Env())
        with pytest.raises(lmdb.DiskError):
            kit.index.sync()
    assert "could not be synced" in (reason(kit) or "")
    healed(kit)


def test_an_error_of_a_transaction_is_noted_and_the_first_reason_stays(kit: StoreKit) -> None:
    with pytest.raises(lmdb.CorruptedError), kit.index.reading():
        raise lmdb.CorruptedError("first")
    with pytest.raises(DisagreementError), kit.index.writing():
        raise DisagreementError("second")
    assert "first" in (reason(kit) or "")
    healed(kit)


@pytest.mark.parametrize("error", [lmdb.DiskError, lmdb.MapFullError, lmdb.MemoryError, KeyError])
def test_a_full_disk_casts_no_doubt(kit: StoreKit, error: type[Exception]) -> None:
    with pytest.raises(error), kit.index.writing():
        raise error("full")
    assert reason(kit) is None


def fill(env: lmdb.Environment) -> lmdb.Error:
    """Write to it until the disk is full."""
    while True:
        try:
            with env.begin(write=True) as txn:
                for _ in range(300):
                    txn.put(os.urandom(16), bytes(300))
        except lmdb.Error as error:
            return error


@pytest.mark.parametrize("free", [0, index_state.FULL])
def test_a_commit_that_a_full_disk_cut_short_casts_no_doubt(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Regression: LMDB calls a short write an I/O error, so a full disk had the index rebuilt."""
    monkeypatch.setattr(kit.osio, "free_space", lambda path: free)
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    index_state.note_doubt(kit.osio, kit.store.index, error)
    assert (reason(kit) is None) is (free == 0)


def test_a_sync_that_failed_on_a_full_disk_casts_doubt(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit.osio, "free_space", lambda path: 0)
    index_state.note_doubt(
        kit.osio, kit.store.index, lmdb.Error("mdb_env_sync: Input/output error")
    )
    assert reason(kit) is not None


def test_lmdb_calls_a_short_write_an_io_error(tmp_path: Path) -> None:
    """On a limit of the file's size, which cuts a write short as a full disk does."""
    with lmdb.open(str(tmp_path), map_size=1 << 24, sync=False, metasync=False) as env:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
        try:
            error = fill(env)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
    assert str(error) == "mdb_txn_commit: Input/output error"


def test_a_file_system_that_was_remounted_makes_a_dirty_index_unusable(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device was lost and came back: the page cache is gone, the boot id is the same."""
    kit.crash()

    def instance(mount: int) -> str:
        monkeypatch.setattr(index_state, "mount_instance", lambda device: mount)
        return index_state.instance(str(kit.data))

    def judged(noted: int, now: int) -> str | None:
        index_state.mark(kit.osio, kit.store.index, instance(noted), clean=False)
        return index_state.why_unusable(kit.osio, kit.store.index, instance(now))

    assert judged(7, 8) == "its file system was remounted while it was in use"
    assert [judged(7, 7), judged(0, 7), judged(7, 0)] == [None, None, None]


def test_reading_from_a_command_writes_nothing(kit: StoreKit) -> None:
    kit.stop()
    path = Path(kit.store.index) / "data.mdb"
    before = path.read_bytes()
    index = Index(kit.store.index, readonly=True)
    assert index.usage(1).messages > 0
    with pytest.raises(lmdb.ReadonlyError):
        index.put_uids({bytes(16): "x"})
    index.close()
    assert path.read_bytes() == before
    assert index_state.why_unusable(kit.osio, kit.store.index, kit.boot) is None
