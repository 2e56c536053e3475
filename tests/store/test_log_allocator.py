"""Allocation of logs: prepared in advance, reused, quarantined, sealed afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest

from metad.errors import NoSpaceError
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log_table import ROOM, LogState, Semaphore
from metad.store.recovery.hub import Recovery
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import KitWriter, StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio(record=True)) as made:
        made.osio.watch = made.store.logs
        made.recover()
        made.open_index()
        yield made


def states(kit: StoreKit) -> list[LogState]:
    return [row.state for row in kit.table.rows()]


def read(kit: StoreKit, number: int) -> header.LogHeader | None:
    fd = kit.osio.open(log_path(kit.store.logs, number), os.O_RDONLY)
    try:
        return header.read(kit.osio, fd, kit.store.secret)
    finally:
        kit.osio.close(fd)


def restart(kit: StoreKit) -> None:
    kit.stop()
    kit.start()


def test_the_next_log_is_ready_before_it_is_needed(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    assert states(kit) == [LogState.ACTIVE, LogState.ACTIVE]
    creations = [op for op in kit.osio.ops if op.kind == "create"]
    for _ in range(8):
        kit.put([1], b"x" * 3500)
    assert kit.writers[0].committer.writer.number == 2
    assert len([op for op in kit.osio.ops if op.kind == "create"]) == len(creations) + 1


def test_a_log_is_active_only_when_its_header_is_durable(kit: StoreKit) -> None:
    table_states: list[tuple[str, bool]] = []
    kit.crash()
    kit.start()
    table = kit.writers[0].table
    real = type(table).change

    def change(number: int, state: LogState) -> None:
        if state == LogState.ACTIVE:
            path = log_path(kit.store.logs, number)
            mine = (path, f"{path}.new", kit.store.logs)
            ops = [op.kind for op in kit.osio.ops if op.path in mine]
            table_states.append((ops[-1], "write" in ops))
        real(table, number, state)

    table.change = change  # type: ignore[method-assign]
    for _ in range(20):
        kit.put([1], b"x" * 3500)
    assert table_states
    assert set(table_states) <= {("dir-sync", True), ("sync", True)}


def test_an_unused_log_is_free_after_a_stop_and_used_again(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.start()
    kit.put([1], b"y")
    assert len(list(kit.log_files())) == 3
    assert states(kit) == [LogState.SEALED, LogState.ACTIVE, LogState.ACTIVE]
    lives = {row.life for row in kit.table.rows()}
    assert len(lives) == 3
    assert kit.check() == 2


def test_lives_rise_over_restarts(kit: StoreKit) -> None:
    kit.crash()
    seen = []
    for _ in range(6):
        kit.start()
        kit.put([1], b"x")
        seen.append(kit.writers[0].committer.writer.life)
        kit.stop()
    assert seen == sorted(set(seen))


def test_a_log_that_is_being_read_is_skipped(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.recover()
    free = [row.number for row in kit.table.rows() if row.state == LogState.FREE]
    assert free
    readers = [os.open(log_path(kit.store.logs, n), os.O_RDONLY) for n in free]
    assert all(map(log_files.try_reader_lock, readers))
    kit.open()
    used = [row.number for row in kit.table.rows() if row.state == LogState.ACTIVE]
    assert used
    assert not set(used) & set(free)
    assert {kit.table.row(n).state for n in free} == {LogState.COLLECTING}
    for fd in readers:
        os.close(fd)


def test_a_change_of_the_log_size_starts(kit: StoreKit) -> None:
    kit.crash()
    kit.start(2)
    kit.put([1], b"x")
    kit.stop()
    kit.size = 64 * 1024
    kit.start()
    assert kit.put([1], b"y" * 40_000).acked
    assert kit.check() == 2
    kit.stop()
    kit.drop_index()
    kit.start()
    assert kit.check() == 2


def test_a_free_log_that_was_unlinked_and_not_replaced_is_none(kit: StoreKit) -> None:
    """Otherwise the next log would not be available either."""
    kit.crash()
    kit.start()
    kit.stop()  # its logs are free
    kit.size *= 2
    kit.recover()
    kit.open_index()
    kit.osio.faults = Faults("allocate", 1, error=errno.ENOSPC)
    writer = KitWriter(kit, 0)
    assert kit.osio.faults.hits == 1
    assert writer.committer.writer is not None
    for row in kit.table.rows():
        assert log_files.is_there(kit.osio, kit.store.logs, row.number), row


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_free_log_that_fails_is_set_aside_for_good(kit: StoreKit, kind: str) -> None:
    """A failed log is not synced again; another one replaces it."""
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    kit.stop()
    kit.recover()
    free = [row.number for row in kit.table.rows() if row.state == LogState.FREE]
    kit.osio.faults = Faults(kind, 1)
    kit.osio.syncs.clear()
    kit.open()
    assert kit.put([1], b"y").acked
    failed = kit.osio.faults.hit_paths[0]
    assert failed == log_path(kit.store.logs, free[0])
    assert [ok for path, ok in kit.osio.syncs if path == failed] in ([], [False])
    assert kit.table.row(free[0]).state == LogState.COLLECTING
    assert any("left alone" in text for text in kit.reports)
    kit.check()


def test_a_file_that_the_table_does_not_know_is_not_touched(kit: StoreKit) -> None:
    path = Path(log_path(kit.store.logs, 1))
    path.write_bytes(b"somebody's")
    kit.writers.append(KitWriter(kit, 0))
    assert kit.writers[0].committer.writer.number == 2
    assert path.read_bytes() == b"somebody's"


def test_a_full_disk_is_met_before_the_mail(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    assert kit.writers[0].committer.accepts
    kit.osio.space = 1000
    kit.writers[0].source._tend()
    assert not kit.writers[0].committer.accepts
    kit.osio.space = None
    kit.writers[0].source._tend()
    assert kit.writers[0].committer.accepts


def test_a_log_that_cannot_be_prepared_is_reported_once_and_tried_again(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.eager = False
    kit.osio.faults = Faults("allocate", 1, error=errno.ENOSPC, persistent=True)
    source = kit.writers[0].source
    for _ in range(5):
        source._tend()
    warnings = [text for text in kit.reports if "cannot prepare" in text]
    assert len(warnings) == 1
    assert len(list(kit.log_files())) == 1
    kit.osio.faults = None
    source._tend()
    assert len(list(kit.log_files())) == 2


def test_a_prepared_log_whose_zeros_failed_is_not_given_out(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    source = kit.writers[0].source
    source._tend()
    ready = source._ready
    assert ready is not None
    ready.poisoned = True
    assert source.take().number != ready.number
    assert log_path(kit.store.logs, ready.number) not in kit.osio.names.values()


def test_a_statement_that_fails_costs_a_log_and_no_mail(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"good")
    kit.osio.faults = Faults("sync", 1, times=2)
    assert kit.put([1], b"refused").error is not None
    assert kit.osio.faults.hits == 2
    assert kit.osio.faults.hit_paths[0] != kit.osio.faults.hit_paths[1]
    assert kit.put([1], b"good again").acked
    assert kit.check() == 2
    kit.crash()
    kit.drop_index()
    kit.start()
    kit.check()


def test_the_word_on_a_poisoned_log_outlives_an_empty_successor(kit: StoreKit) -> None:
    """The refused message lies whole in the log; only the successor says that it does not count."""
    kit.crash()
    kit.start()
    kit.put([1], b"good")
    kit.osio.faults = Faults("sync", 1)
    refused = kit.put([1], b"refused")
    assert refused.error is not None
    kit.osio.faults = None
    successor = kit.writers[0].committer.writer
    assert successor is not None
    assert successor.log.predecessor_life
    kit.stop()
    for _ in range(3):
        kit.drop_index()
        kit.start()
        assert refused.id not in [each for each, _ in kit.listing(1)]
        kit.put([1], b"more")
        kit.check()
        kit.stop()


def test_stopping_seals_what_was_written(kit: StoreKit) -> None:
    kit.crash()
    kit.start(2)
    kit.put([1], b"x", 0)
    kit.put([1], b"x", 1)
    kit.stop()
    kinds = []
    for path in kit.log_files():
        log = read(kit, int(path.stem))
        assert log is not None
        kinds.append(log.state == header.FREE or log.seal_offset > 0)
    assert all(kinds)
    assert kit.osio.names == {}


def test_a_seal_that_fails_leaves_the_log_to_recovery(kit: StoreKit) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    kit.osio.faults = Faults("sync", 1)
    kit.stop()
    assert any("could not be sealed" in text for text in kit.reports)
    kit.osio.faults = None
    kit.start()
    assert kit.check() == 1
    log = read(kit, 1)
    assert log is not None
    assert log.seal_offset


class Taken:
    """The table's semaphore, which a stopped process holds once `grants` are used up."""

    def __init__(self, real: Semaphore, grants: int) -> None:
        self._real = real
        self.grants = grants

    def acquire(self, timeout: float | None = None) -> None:
        if not self.grants:
            raise posix_ipc.BusyError
        self.grants -= 1
        self._real.acquire(timeout)

    def release(self) -> None:
        self._real.release()


def hold_semaphore(kit: StoreKit, *, grants: int = 0) -> Taken:
    table = kit.writers[0].table
    taken = Taken(table._semaphore, grants)
    table._semaphore = taken
    return taken


def test_a_log_that_was_made_while_the_semaphore_was_held_is_used_afterwards(
    kit: StoreKit,
) -> None:
    """Else each stop of another process that holds it would cost a log, until this one ends."""
    kit.start()
    source = kit.writers[0].source
    source.take()
    before = len(list(kit.log_files()))
    taken = hold_semaphore(kit, grants=1)
    with pytest.raises(NoSpaceError, match="semaphore"):
        source.take()
    left = kit.table.rows()[-1]
    assert left.state == LogState.PREPARING
    assert len(list(kit.log_files())) == before + 1
    kit.osio.close(log_files.lock_log(kit.osio, kit.store.logs, left.number))
    taken.grants = 1000
    assert source.take().number == left.number
    assert LogState.PREPARING not in states(kit)
    assert len(list(kit.log_files())) <= before + 2  # and the one that is prepared
    kit.crash()
    kit.start()
    kit.check()


def test_what_was_given_up_while_the_semaphore_was_held_is_entered_by_a_later_round(
    kit: StoreKit,
) -> None:
    kit.crash()
    kit.start()
    kit.put([1], b"x")
    source, chain = kit.writers[0].source, kit.writers[0].committer._chain
    writer = chain.close()
    assert writer is not None
    number = writer.number
    taken = hold_semaphore(kit)
    source._seal(writer)
    log = read(kit, number)
    assert log is not None
    assert log.seal_offset
    assert kit.table.row(number).state == LogState.ACTIVE
    taken.grants = 1000
    source._tend()
    assert kit.table.row(number).state == LogState.SEALED
    assert kit.table.row(number).owner == 0


def test_a_log_that_could_not_be_made_while_the_semaphore_was_held_is_no_log(
    kit: StoreKit,
) -> None:
    kit.crash()
    kit.start()
    kit.eager = False
    source = kit.writers[0].source
    taken = hold_semaphore(kit, grants=1)
    kit.osio.faults = Faults("allocate", 1, error=errno.ENOSPC)
    with pytest.raises(NoSpaceError, match="No space"):
        source._make_now(ROOM)
    assert LogState.PREPARING in states(kit)
    taken.grants = 1
    kit.table.catch_up()  # another process's table owes nothing
    assert LogState.PREPARING in states(kit)
    kit.writers[0].table.catch_up()
    assert LogState.PREPARING not in states(kit)


def test_a_log_that_can_neither_be_entered_nor_freed_is_recovered_later(kit: StoreKit) -> None:
    kit.start()
    source = kit.writers[0].source
    source.take()
    hold_semaphore(kit, grants=1)
    kit.osio.faults = Faults("sync", 2)
    with pytest.raises(NoSpaceError, match="semaphore"):
        source.take()
    kit.osio.faults = None
    left = kit.table.rows()[-1]
    assert left.state == LogState.PREPARING
    assert f"log {left.number} could not be freed" in kit.reports[-1]
    kit.osio.close(log_files.lock_log(kit.osio, kit.store.logs, left.number))
    kit.crash()
    Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, 0)
    assert LogState.PREPARING not in states(kit)
    assert kit.table.row(left.number).owner == 0
    kit.open_index()
    kit.check()
