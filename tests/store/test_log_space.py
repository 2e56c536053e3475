"""A full or small disk keeps no client from reading and deleting, and the hub recovers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metad.errors import NoSpaceError
from metad.store import log_allocator, log_chain, log_space
from metad.store.log.header import log_path
from metad.store.log_space import LogSpace
from metad.store.log_table import LogState, Room
from metad.system.osio import Osio
from tests.support.collector_kit import collect, fill_log, make_collector, sealed
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio(record=True), size=4 * MIB, align=4096) as made:
        made.osio.watch = made.store.logs
        yield made


def no_blocks(kit: StoreKit) -> None:
    kit.osio.faults = Faults("allocate", 1, error=errno.ENOSPC, persistent=True)


def count(kit: StoreKit, state: LogState) -> int:
    return kit.table.count(state)


def blocks(kit: StoreKit) -> int:
    return sum(path.stat().st_blocks * 512 for path in kit.log_files())


def test_a_new_hub_takes_a_small_share_of_the_disk(kit: StoreKit) -> None:
    """Regression: it was 513 MB with the defaults."""
    kit.start(2)
    assert len(list(kit.log_files())) == 2
    assert blocks(kit) <= 2 * (log_allocator.FIRST + 16 * 4096)
    kit.put([1], b"x")
    kit.put([1], b"x", 1)
    assert len(list(kit.log_files())) == 4
    assert blocks(kit) <= 4 * kit.size


class Disks(KitOsio):
    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def total_space(self, path: str) -> int:
        return self.total


@pytest.mark.parametrize("total", [40 * MIB, 160 * MIB, 1024 * MIB, 1 << 40])
def test_what_is_needed_fits_the_disk(kit: StoreKit, total: int) -> None:
    kit.start()
    space = LogSpace(Disks(total), kit.store, kit.table, 128 * MIB, Room())
    assert space.needed <= total // 20
    assert 4 * space.ahead <= total // 20


def test_a_full_disk_starts_serves_and_comes_back(kit: StoreKit) -> None:
    """Regression: worker 1 could not start: No space left on device."""
    kit.start()
    sent = kit.put([1], b"x")
    kit.stop()
    for path in kit.log_files():  # so that no free one is left
        if path != Path(log_path(kit.store.logs, 1)):
            path.unlink()
    no_blocks(kit)
    kit.start()
    writer = kit.writers[0]
    assert writer.committer.writer is None
    assert not writer.committer.accepts
    assert any("no log to write to" in text for text in kit.reports)
    assert [each for each, _ in kit.listing(1)] == [sent.id]
    assert isinstance(kit.put([1], b"y").error, NoSpaceError)
    kit.osio.faults = None
    writer.source._tend()
    assert writer.committer.accepts
    assert kit.delete(1, [sent.id]).acked
    assert kit.put([1], b"z").acked
    kit.check()


def test_another_error_stops_the_start(kit: StoreKit) -> None:
    kit.osio.faults = Faults("allocate", 1, error=errno.EACCES, persistent=True)
    with pytest.raises(PermissionError):
        kit.start()


def test_ids_without_a_log_have_a_life_of_their_own(kit: StoreKit) -> None:
    kit.start(2)
    lives = [writer.source.next_life() for writer in kit.writers]
    assert len({*lives, *(row.life for row in kit.table.rows())}) == len(lives) + 2


@pytest.mark.slow
def test_a_log_takes_blocks_as_it_grows(kit: StoreKit) -> None:
    kit.start()
    kit.eager = False
    before = blocks(kit)
    for _ in range(30):
        assert kit.put([1], bytes(60_000)).acked
    assert blocks(kit) > before + MIB
    assert kit.writers[0].committer.writer.number == 1
    assert kit.check() == 30
    kit.crash()
    kit.drop_index()
    kit.start()
    assert kit.check() == 30


def test_no_block_for_a_group_refuses_it_and_costs_no_log(kit: StoreKit) -> None:
    kit.start()
    kit.eager = False
    assert kit.put([1], b"x").acked
    no_blocks(kit)
    assert isinstance(kit.put([1], bytes(600_000)).error, NoSpaceError)
    kit.osio.faults = None
    assert kit.put([1], bytes(600_000)).acked
    assert kit.writers[0].committer.writer.number == 1
    assert kit.check() == 2


def test_a_few_blocks_are_enough_for_a_deletion(kit: StoreKit) -> None:
    """Where the disk has not what a log gets at a time, what the group needs will do."""
    kit.start()
    kit.eager = False
    sent = kit.put([1], bytes(200_000))
    kit.osio.faults = Faults("allocate", 1, error=errno.ENOSPC)
    assert kit.put([1], bytes(100_000)).acked
    assert kit.osio.faults.hits == 1
    assert kit.delete(1, [sent.id]).acked


@pytest.mark.parametrize("what", ["the limit", "a full disk"])
def test_a_full_log_takes_deletions_while_there_is_no_next_one(kit: StoreKit, what: str) -> None:
    """Regression: it was given up before the next one was there, and nothing could be deleted."""
    kit.start()
    kit.eager = False
    sent = [kit.put([1], b"x" * MIB)]
    if what == "a full disk":
        no_blocks(kit)
    else:
        source, most = kit.writers[0].source, len(list(kit.log_files()))
        source._settings = replace(source._settings, room=Room(most))
    while sent[-1].acked:
        sent.append(kit.put([1], b"x" * (MIB // 2)))
    assert isinstance(sent.pop().error, NoSpaceError)
    assert kit.delete(1, [sent[0].id]).acked
    kit.osio.faults = None
    kit.check()


def test_mail_leaves_blocks_for_deletions(kit: StoreKit) -> None:
    """Regression: mail and the collector took the last blocks of a disk, and QUIT got -ERR."""
    kit.start()
    kit.eager = False
    kit.writers[0].chain._for_deletions = log_chain.FOR_DELETIONS
    sent = kit.put([1], bytes(200_000))
    no_blocks(kit)
    taken = []
    while (last := kit.put([1], bytes(10_000))).acked:
        taken.append(last.id)
    assert isinstance(last.error, NoSpaceError)
    assert kit.delete(1, [sent.id, *taken]).acked
    for _ in range(20):
        assert kit.delete(1, [sent.id]).acked


@pytest.mark.slow
def test_survivors_go_on_in_a_free_log_where_the_disk_has_no_blocks(kit: StoreKit) -> None:
    """Regression: "no blocks for log 6" with three free logs, and nothing was collected any
    more."""
    kit.start()
    kit.eager = False
    collector = make_collector(kit)
    gone = fill_log(kit, size=200_000)
    fill_log(kit, mailbox=2, size=200_000)
    kit.delete(1, gone)
    collect(collector, sealed(kit)[:1])  # little stays: the log for it gets few blocks
    assert count(kit, LogState.FREE) == 1
    no_blocks(kit)
    before = set(kit.listing(2))
    collect(collector, sealed(kit)[:1])
    assert set(kit.listing(2)) == before
    kit.osio.faults = None
    kit.check()


def freed(kit: StoreKit, logs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with so many free logs, and one worker."""
    with monkeypatch.context() as patch:
        patch.setattr(log_space, "KEPT_FREE", 100)
        kit.start()
        kit.eager = False
        taken = [kit.writers[0].source.take() for _ in range(logs)]
        for writer in taken:
            kit.writers[0].source._seal(writer)
        kit.writers[0].background.kept.clear()
    assert count(kit, LogState.FREE) == logs


def test_free_logs_beyond_a_reserve_go_back_to_the_file_system(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed(kit, 12, monkeypatch)
    files = len(list(kit.log_files()))
    kit.writers[0].background.run()
    for _ in range(20):
        kit.writers[0].source._tend()
    assert count(kit, LogState.FREE) == 4
    assert len(list(kit.log_files())) < files
    assert kit.put([1], b"x").acked


def test_free_logs_count_as_space(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: 24 of 27 logs were freed, but the reply was still 452."""
    freed(kit, 6, monkeypatch)
    source = kit.writers[0].source
    needed = source._space.needed
    full = len(list(kit.log_files()))

    def free_space(path: str) -> int:
        return 0 if len(list(kit.log_files())) == full else needed + 1

    monkeypatch.setattr(kit.osio, "free_space", free_space)
    source._tend()
    assert kit.writers[0].committer.accepts
    assert len(list(kit.log_files())) == full - 1


@pytest.mark.parametrize("lacks", ["a log's blocks", "more"])
def test_the_last_free_log_of_mail_is_unlinked_if_that_has_mail_taken_again(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Regression: with two free logs left, one of them the collector's, on a disk that lacked less
    than one of them, the reply was 452 for ever."""
    freed(kit, 2, monkeypatch)
    source = kit.writers[0].source
    monkeypatch.setattr(source._space, "_room", Room(spare=1))
    needed = source._space.needed
    full = len(list(kit.log_files()))
    one = source._space._least_free_log()
    assert 0 < one < needed
    lacking = needed - one + 1 if lacks == "a log's blocks" else needed - one

    def free_space(path: str) -> int:
        return lacking + one * (full - len(list(kit.log_files())))

    monkeypatch.setattr(kit.osio, "free_space", free_space)
    for _ in range(3):
        source._tend()
    accepts = lacks == "a log's blocks"
    assert kit.writers[0].committer.accepts is accepts
    assert len(list(kit.log_files())) == full - accepts


def test_no_log_is_unlinked_whose_own_header_does_not_say_that_it_is_free(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong cell of the table must not cost a log."""
    freed(kit, 12, monkeypatch)
    sent = kit.put([1], b"x")
    kit.writers[0].chain.retire()
    kit.writers[0].background.run()
    for row in kit.table.rows():
        if row.state == LogState.SEALED:
            kit.table.restore(row._replace(state=LogState.FREE))
    source = kit.writers[0].source
    for _ in range(30):
        source._tend()
    assert kit.check() == 1
    assert kit.stored(sent.id)


def test_the_numbers_are_reported_and_not_at_every_look(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"x")
    source = kit.writers[0].source
    kit.osio.space = 1000
    for _ in range(20):
        source._tend()
    lines = [text for text in kit.reports if "new mail is deferred" in text]
    assert len(lines) == 1
    assert "1,000 bytes of the disk are free" in lines[0]
    assert "are needed" in source.shortage
    kit.osio.space = None
    source._tend()
    source._tend()
    assert len([text for text in kit.reports if "space for new mail again" in text]) == 1


def test_the_real_disk_has_a_size(tmp_path: Path) -> None:
    assert Osio().total_space(str(tmp_path)) >= Osio().free_space(str(tmp_path)) > 0
    assert os.statvfs(tmp_path).f_blocks
    assert log_chain.RESERVE >= 4096
