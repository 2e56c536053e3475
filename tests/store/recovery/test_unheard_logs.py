"""The log that records where another ends is unreadable at a start: how the last group of that
other log counts then (docs/decisions.md)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metad.store.gc.collector import NotCollectableError
from metad.store.log import header, record
from metad.store.log.header import LogHeader, log_path
from metad.store.log_table import LogState
from metad.store.recovery.one_log import Numbers
from tests.support.agreement import assert_agree
from tests.support.collector_kit import collect, collect_all, fill_log, make_collector, sealed
from tests.support.osio_kit import BLOCK, Faults, KitOsio
from tests.support.store_kit import StoreKit

SIZE = 128 * 1024


class StrickenError(BaseException):
    """kill -9 of the collector."""


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(), align=BLOCK, size=SIZE) as made:
        made.start()
        yield made


def headers(kit: StoreKit) -> list[LogHeader]:
    """Of all logs that count."""
    found = []
    for row in kit.table.rows():
        fd = kit.osio.open(log_path(kit.store.logs, row.number), 0)
        log = header.read(kit.osio, fd, kit.store.secret)
        kit.osio.close(fd)
        if log is not None and log.state != header.FREE:
            found.append(log)
    return found


def spoil(kit: StoreKit, number: int) -> None:
    path = log_path(kit.store.logs, number)
    for offset in range(0, Path(path).stat().st_size, BLOCK):
        kit.osio.spoil(path, offset)


def silence(kit: StoreKit) -> None:
    """No log that says where another one ends can be read from now on."""
    which = [log.number for log in headers(kit) if log.predecessor_life]
    assert which
    for number in which:
        spoil(kit, number)


def restart(kit: StoreKit, index: str) -> None:
    kit.crash()
    if index == "removed":
        kit.drop_index()
    kit.start()


def fail_copies(kit: StoreKit, number: int) -> None:
    """The sync of the survivors of a log fails; its bytes are in the page cache."""
    collector = make_collector(kit)
    kit.osio.faults = Faults("sync", 2, error=errno.EIO)  # the first is the new log's
    with pytest.raises(OSError, match="error"):
        collect(collector, [number])
    kit.osio.faults = None
    collector.close()


def kill_collector(kit: StoreKit, number: int, where: str) -> None:
    """Kill -9 of the collector in the middle of a collection; its logs wait for a recovery."""

    def strike(name: str) -> None:
        if name == where:
            raise StrickenError

    with pytest.raises(StrickenError):
        collect(make_collector(kit, strike), [number])


def collect_what_may_go(kit: StoreKit) -> None:
    """All but the log that says where another one ends, which has to wait for that one."""
    collector = make_collector(kit)
    for number in sealed(kit):
        with suppress(NotCollectableError):
            collect(collector, [number])
    collector.close()


@pytest.mark.slow
@pytest.mark.parametrize("index", ["kept", "removed"])
def test_deleted_mail_came_back_out_of_copies_whose_sync_had_failed(
    kit: StoreKit, index: str
) -> None:
    ids = fill_log(kit, size=5000)
    (number,) = sealed(kit)
    fail_copies(kit, number)
    kit.delete(1, ids)
    fill_log(kit, 2, size=5000)
    gone = kit.table.row(number).life
    for _ in range(2):  # the deletion records too: no copy that counts is left
        collect_what_may_go(kit)
    assert gone not in [log.life for log in headers(kit)]
    silence(kit)
    restart(kit, index)
    assert not set(ids) & {one for one, _ in kit.listing(1)}
    kit.osio.unreadable.clear()
    restart(kit, index)
    assert not set(ids) & {one for one, _ in kit.listing(1)}
    kit.check()


@pytest.mark.parametrize("index", ["kept", "removed"])
def test_copies_that_a_log_was_freed_for_are_confirmed_and_count(kit: StoreKit, index: str) -> None:
    """Its writer is killed, and whatever else is there can tell nothing of its last group."""
    fill_log(kit, size=5000)
    (number,) = sealed(kit)
    gone = kit.table.row(number).life
    kill_collector(kit, number, "released")
    assert [log.generation for log in headers(kit) if not log.seal_offset].count(1) == 1
    restart(kit, index)
    assert kit.check()
    assert gone not in [log.life for log in headers(kit)]
    kit.crash()
    kit.recover()
    assert_agree(kit)


def test_copies_whose_confirmation_is_damaged_count(kit: StoreKit) -> None:
    """A log was freed for them; behind the confirmation lies another group."""
    for mailbox in (1, 2):
        kit.delete(mailbox, fill_log(kit, mailbox, size=5000)[3:])
    first, second = sealed(kit)
    found: list[int] = []

    def strike(name: str) -> None:
        if name == "released":
            number = next(row.number for row in kit.table.rows() if row.generation)
            found.extend((number, kit.index.log_counts(number).watermark - BLOCK))
        elif name == "moved" and found:
            raise StrickenError

    with pytest.raises(StrickenError):
        collect(make_collector(kit, strike), [first, second])
    survivors, confirmation = found
    with open(log_path(kit.store.logs, survivors), "r+b") as file:
        file.seek(confirmation)
        assert file.read(4) == record.MAGIC
        file.seek(confirmation)
        file.write(b"\xff" * BLOCK)
    restart(kit, "removed")
    assert kit.check()


@pytest.mark.slow
@pytest.mark.parametrize("index", ["kept", "removed"])
@pytest.mark.parametrize("where", ["copied", "moved", "confirming", "confirmed"])
def test_copies_that_no_log_was_freed_for_are_not_missed(
    kit: StoreKit, where: str, index: str
) -> None:
    fill_log(kit, size=5000)
    (number,) = sealed(kit)
    kill_collector(kit, number, where)
    restart(kit, index)
    assert kit.check()
    assert kit.table.row(number).state == LogState.SEALED
    collector = make_collector(kit)
    collect_all(kit, collector)
    collector.close()
    restart(kit, "removed")
    kit.check()
    kit.crash()
    kit.recover()
    assert_agree(kit)


def test_a_rebuild_in_the_same_boot_took_copies_from_the_page_cache_for_living_ones(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no log for such a group, and it counted where it was."""
    ids = fill_log(kit, size=5000)
    (number,) = sealed(kit)
    kill_collector(kit, number, "copied")
    with monkeypatch.context() as full:
        full.setattr(Numbers, "take", _no_log)
        restart(kit, "removed")
    assert kit.check()
    assert [place.log for place in kit.index.places(ids[0])] == [number]


def test_copies_in_a_log_that_failed_later_are_made_again(kit: StoreKit) -> None:
    """They are durable, and only the log that says where theirs ends tells so."""
    ids = fill_log(kit, size=5000)
    (number,) = sealed(kit)
    collector = make_collector(kit)
    steps = collector.collect(number)
    while not any(len(kit.index.places(one)) == 2 for one in ids):
        next(steps)
    steps.close()  # some are copied
    kit.osio.faults = Faults("sync", 1, error=errno.EIO)
    with pytest.raises(OSError, match="error"):
        collect(collector, [number])  # the confirmation fails
    kit.osio.faults = None
    collect(collector, [number])
    collector.close()
    (broken,) = [log for log in headers(kit) if log.generation and not log.seal_offset]
    spoil(kit, broken.number)
    kit.crash()
    kit.osio.unlink(log_path(kit.store.logs, broken.number))
    kit.drop_index()
    kit.start()
    assert kit.check()


@pytest.mark.parametrize("index", ["kept", "removed"])
def test_what_a_worker_was_refused_counts_and_nothing_acknowledged_is_missing(
    kit: StoreKit, index: str
) -> None:
    """The best that can be had: its last group may as well be acknowledged (docs/decisions.md)."""
    kept = [kit.put([1], b"k" * 5000).id for _ in range(3)]
    kit.osio.faults = Faults("sync", 1, error=errno.EIO)
    refused = [kit.submit([1], b"refused"), kit.submit_deletion(1, kept[:1])]
    kit.run()
    assert all(one.error is not None for one in refused)
    kit.osio.faults = None
    later = kit.put([1], b"later").id  # in the log that says where the other one ends
    restart(kit, index)
    assert {one for one, _ in kit.listing(1)} == {*kept, later}
    kit.crash()
    silence(kit)
    kit.drop_index()
    kit.start()
    assert {one for one, _ in kit.listing(1)} == {*kept[1:], refused[0].id}


def _no_log(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no log")
