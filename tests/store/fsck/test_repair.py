"""Repair: damage quarantined, the index and headers restored, and no mail changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from metad.store.fsck import log_check
from metad.store.fsck.repair import rebuild_index, repair
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import FREE, log_path
from metad.store.log.writer import round_up
from metad.system.osio import Osio
from tests.support.fsck_kit import (
    assert_clean,
    drop_entries,
    flip,
    fsck,
    headers,
    last_message,
    spoil_index,
    stopped,
    work,
)
from tests.support.osio_kit import Faults
from tests.support.store_kit import StoreKit


def repaired(kit: StoreKit) -> tuple[list[str], list[str]]:
    """The results of a repair, and of a check afterwards."""
    said: list[str] = []
    repair(Osio(), kit.store, kit.boot, fsck(kit)[1], said.append)
    return said, fsck(kit)[0]


def test_damaged_bytes_are_kept_in_quarantine_and_stay_where_they_are(kit: StoreKit) -> None:
    number, entry = last_message(stopped(kit))
    path = log_path(kit.store.logs, number)
    flip(path, entry.offset + 80, 0)
    before = Path(path).read_bytes()
    said, left = repaired(kit)
    assert any("kept in quarantine/" in line for line in said)
    assert [line for line in left if "do not verify" in line] == left
    (kept,) = Path(kit.store.quarantine).iterdir()
    end = round_up(entry.offset + entry.size, 512)
    assert kept.read_bytes() == before[entry.offset : end]
    assert Path(path).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_damaged_header_is_restored_from_the_other(kit: StoreKit, which: str) -> None:
    stopped(kit)
    kit.start(1)  # its second log is free again
    kit.stop()
    for number in log_check.log_numbers(Osio(), kit.store):
        log = headers(kit, number)
        path = Path(log_path(kit.store.logs, number))
        before = path.read_bytes()
        flip(str(path), 20 if which == "first" else log.size - log.align + 20, 3)
        assert f"log {number}: the {which} header is damaged" in fsck(kit)[0]
        _, left = repaired(kit)
        assert left == []
        assert headers(kit, number) == log
        if log.state == FREE or which == "first":
            assert path.read_bytes() == before


def test_a_repaired_store_starts_with_all_its_mail(kit: StoreKit) -> None:
    stopped(kit)
    flip(log_path(kit.store.logs, 1), 20, 3)
    spoil_index(kit, drop_entries)
    assert repaired(kit)[1] == []
    kit.reports.clear()
    kit.recover()
    kit.open_index()
    assert kit.check() > 0
    assert kit.reports == []


def test_a_rebuild_of_a_store_that_crashed_has_its_tails(kit: StoreKit) -> None:
    kit.start(2)
    work(kit, 9)
    kit.crash()
    shutil.rmtree(kit.store.index)
    os.mkdir(kit.store.index)
    assert rebuild_index(Osio(), kit.store, kit.boot, kit.reports.append) > 0
    assert assert_clean(kit).compared
    kit.open_index()
    assert kit.check() > 0


def test_a_rebuild_that_copies_a_last_group_takes_a_number_that_no_log_has(
    kit: StoreKit,
) -> None:
    """It knew of no numbers: the new log had that of another one, and EEXIST ended the repair."""
    kit.start(2)
    for writer in (0, 1):
        assert kit.put([1], b"x", writer).acked
    kit.crash()
    before = set(log_check.log_numbers(Osio(), kit.store))
    rebuild_index(Osio(), kit.store, kit.boot, kit.reports.append)
    made = set(log_check.log_numbers(Osio(), kit.store)) - before
    assert len(made) == 2  # one for each last group, of which nothing tells that it is synced
    assert not [line for line in kit.reports if "stays where it is" in line]
    assert assert_clean(kit).compared
    kit.open_index()
    assert kit.check() == 2


def test_a_poisoned_log_is_not_written_to(kit: StoreKit) -> None:
    kit.start()
    kit.put([1], b"good")
    writer = kit.writers[0].committer.writer
    assert writer is not None
    number = writer.number
    kit.osio.faults = Faults("sync", 1)
    assert not kit.put([1], b"refused").acked
    kit.put([1], b"in the next log")
    kit.stop()
    assert_clean(kit)
    path = Path(log_path(kit.store.logs, number))
    flip(str(path), 20, 3)
    before = path.read_bytes()
    repaired(kit)
    assert path.read_bytes() == before


def test_a_header_rewritten_half_way_is_no_damage(kit: StoreKit) -> None:
    """A log that was about to be freed, or to begin its next life."""
    stopped(kit)
    kit.start(1)
    kit.stop()
    free = next(
        n for n in log_check.log_numbers(Osio(), kit.store) if headers(kit, n).state == FREE
    )
    fd = log_files.lock_log(Osio(), kit.store.logs, free)
    new = headers(kit, free)._replace(state=header.ACTIVE, life=headers(kit, free).life + 1000)
    header.write_first(Osio(), fd, new)
    os.close(fd)
    assert_clean(kit)
