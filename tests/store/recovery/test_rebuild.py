"""The index made of footers alone is the one that the living hub has, however it is made."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.index.index import Index
from metad.store.index.rows import (
    Deleted,
    LogCounts,
    unpack_deleted,
    unpack_places,
    unpack_references,
)
from metad.store.log import footer, record
from metad.store.log.place import Place
from metad.store.log.record import Deletion, Recipient
from metad.store.recovery import rebuild as rebuilding
from metad.store.recovery.rebuild import Source, rebuild
from metad.store.usage import Usage
from tests.support.collector_kit import collect, make_collector, sealed
from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import StoreKit

Entries = dict[tuple[int, bytes], int]
Places = dict[bytes, tuple[int, list[Place]]]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(clock=FakeClock())) as made:
        yield made


@pytest.fixture(params=["in this process", "forked", "in many parts", "forked, in many parts"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways in which a rebuild works, by the size of the store."""
    if "forked" in request.param:
        monkeypatch.setattr(rebuilding, "FORK_FROM", 0)
    if "parts" in request.param:
        monkeypatch.setattr(rebuilding, "PART_ENTRIES", 7)
        monkeypatch.setattr(rebuilding, "SAMPLE_EVERY", 2)


def content(path: str) -> tuple[Entries, Places, dict[int, LogCounts], dict[int, Usage]]:
    """Entries, places, logs and usage of the index at `path`; nothing that is nothing."""
    index = Index(path)
    try:
        with index.reading() as txn:
            entries = {
                (int.from_bytes(key[:4], "big"), bytes(key[4:])): int.from_bytes(value, "big")
                for table in index.tables.mailboxes
                for key, value in txn.cursor(table)
                if key[4:]
            }
            places = {
                bytes(key): (unpack_references(value), unpack_places(value))  # type: ignore[arg-type]
                for key, value in txn.cursor(index.tables.places)
            }
        usages = {mailbox: usage for mailbox, usage in index.usages() if usage.messages}
        return entries, places, index.logs(), usages
    finally:
        index.close()


def notes(path: str) -> dict[bytes, list[Deleted]]:
    """Where the records lie that delete each message."""
    index = Index(path)
    try:
        with index.reading() as txn:
            rows = txn.cursor(index.tables.places)
            return {bytes(key): sorted(unpack_deleted(bytes(value))) for key, value in rows}
    finally:
        index.close()


def work(kit: StoreKit, seed: int, count: int = 120) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        writer = rng.randrange(2)
        if rng.random() < 0.3 and (listing := kit.listing(box := rng.randrange(6))):
            some = rng.sample(listing, min(len(listing), rng.randrange(1, 5)))
            kit.delete(box, [each for each, _ in some], writer)
        else:
            kit.put(rng.sample(range(6), rng.randrange(1, 4)), rng.randbytes(900), writer)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_rebuilt_index_is_the_live_one(kit: StoreKit, way: None, seed: int) -> None:
    kit.start(2)
    work(kit, seed)
    kit.stop()
    live, deletions = content(kit.store.index), notes(kit.store.index)
    kit.drop_index()
    kit.recover()
    kit.crash()
    entries, places, logs, usages = content(kit.store.index)
    assert entries == live[0]
    assert notes(kit.store.index) == deletions
    assert any(deletions.values())
    assert len(entries) > 50
    assert places == live[1]
    # Logs in which nothing ever lay have a row or not.
    assert {n: row for n, row in logs.items() if row.watermark > 512} == live[2]
    assert usages == live[3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_rebuilt_index_is_the_live_one_after_collections(kit: StoreKit, seed: int) -> None:
    """No copy that a log has is unknown to the live index, nor the other way round."""
    kit.start(2)
    rng = random.Random(seed)
    collector = make_collector(kit)
    for turn in range(3):
        work(kit, seed + turn)
        for number in rng.sample(sealed(kit), len(sealed(kit)) // 2):
            collect(collector, [number])
    collector.close()
    kit.stop()
    live, deletions = content(kit.store.index), notes(kit.store.index)
    kit.drop_index()
    kit.recover()
    kit.crash()
    entries, places, _, usages = content(kit.store.index)
    assert (entries, usages) == (live[0], live[3])
    assert {one: sorted(row[1]) for one, row in places.items()} == {
        one: sorted(row[1]) for one, row in live[1].items()
    }
    assert notes(kit.store.index) == deletions


# -- made of sources


def message(log: int, number: int, mailboxes: tuple[int, ...], offset: int = 0) -> bytes:
    """Entries of message `number`, which lies in `log` at 512 times `offset` or its number."""
    recipients = tuple(Recipient(mailbox, "", 10 * mailbox) for mailbox in mailboxes)
    return footer.message_entries(id_of(number), 512 * (offset or number), 100 + log, recipients)


def deletion(mailbox: int, *numbers: int) -> bytes:
    gone = Deletion(mailbox, b"".join(map(id_of, numbers)))
    return footer.deletion_entries(gone, 4096, 80)


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def place(log: int, number: int) -> Place:
    return Place(log, 512 * number, 100 + log)


def build(
    path: Path, logs: dict[int, tuple[int, bytes]]
) -> tuple[Entries, Places, dict[int, LogCounts], dict[int, Usage]]:
    """The index of `logs`: number -> life, entries."""
    sources = [Source(number, life, 8192, entries) for number, (life, entries) in logs.items()]
    rebuild(str(path), sources, lambda text: None)
    return content(str(path))


@pytest.mark.slow
def test_an_empty_store_has_an_empty_index(tmp_path: Path, way: None) -> None:
    assert build(tmp_path / "index", {}) == ({}, {}, {}, {})
    found = build(tmp_path / "index", {3: (9, b"")})
    assert found == ({}, {}, {3: LogCounts(9, 8192)}, {})


def test_one_mailbox_alone_is_cut_into_parts_like_others(tmp_path: Path, way: None) -> None:
    entries = b"".join(message(1, number, (5,)) for number in range(1, 101))
    found, places, logs, usages = build(tmp_path / "index", {1: (9, entries)})
    assert found == {(5, id_of(number)): 50 for number in range(1, 101)}
    assert places == {id_of(number): (1, [place(1, number)]) for number in range(1, 101)}
    assert logs == {1: LogCounts(9, 8192, 100, 101 * 100)}
    assert usages == {5: Usage(5000, 100)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_message_in_two_logs_has_both_places_and_all_recipients_but_the_gone(
    tmp_path: Path, way: None, order: tuple[int, int]
) -> None:
    """The copy that a collector made names who had it then; the deletion may lie in any log."""
    logs = {
        1: (100, message(1, 7, (1, 2, 3)) + message(1, 8, (1,))),
        2: (200, deletion(1, 7) + message(2, 7, (2, 3), offset=3)),
    }
    entries, places, counts, usages = build(tmp_path / "index", {n: logs[n] for n in order})
    assert entries == {(2, id_of(7)): 20, (3, id_of(7)): 30, (1, id_of(8)): 10}
    assert places[id_of(7)] == (2, [place(2, 3), place(1, 7)])
    assert counts == {1: LogCounts(100, 8192, 1, 101), 2: LogCounts(200, 8192, 1, 102)}
    assert usages == {1: Usage(10, 1), 2: Usage(20, 1), 3: Usage(30, 1)}


@pytest.mark.parametrize(("one", "other"), [(100, 200), (200, 100)])
def test_the_first_of_two_equal_copies_is_in_the_younger_life(
    tmp_path: Path, way: None, one: int, other: int
) -> None:
    logs = {1: (one, message(1, 7, (4,))), 2: (other, message(2, 7, (4,)))}
    _, places, counts, _ = build(tmp_path / "index", logs)
    first, second = (1, 2) if one > other else (2, 1)
    assert places == {id_of(7): (1, [place(first, 7), place(second, 7)])}
    assert (counts[first].live_messages, counts[second].live_messages) == (1, 0)


def test_copies_that_name_different_mailboxes_count_together(tmp_path: Path, way: None) -> None:
    logs = {1: (100, message(1, 7, (1, 2))), 2: (200, message(2, 7, (2, 3)))}
    entries, places, _, _ = build(tmp_path / "index", logs)
    assert sorted(entries) == [(mailbox, id_of(7)) for mailbox in (1, 2, 3)]
    assert places[id_of(7)][0] == 3


def test_what_everybody_deleted_keeps_its_place_and_is_not_live(tmp_path: Path, way: None) -> None:
    entries = message(1, 7, (1, 2)) + deletion(1, 7) + deletion(2, 7)
    found = build(tmp_path / "index", {1: (100, entries)})
    assert found == ({}, {id_of(7): (0, [place(1, 7)])}, {1: LogCounts(100, 8192)}, {})


def test_deletions_of_what_is_nowhere_are_noted(tmp_path: Path, way: None) -> None:
    logs = {1: (100, deletion(1, 7, 8)), 2: (200, deletion(2, 7))}
    found = build(tmp_path / "index", logs)
    rows: dict[bytes, tuple[int, list[Place]]] = {id_of(7): (0, []), id_of(8): (0, [])}
    assert found == ({}, rows, {1: LogCounts(100, 8192), 2: LogCounts(200, 8192)}, {})
    assert [len(each) for each in notes(str(tmp_path / "index")).values()] == [2, 1]


def test_the_new_index_takes_the_place_of_the_old_and_leaves_nothing(tmp_path: Path) -> None:
    build(tmp_path / "index", {1: (100, message(1, 7, (1,)))})
    (tmp_path / "index.new").mkdir()
    (tmp_path / "index.new" / "rest").write_bytes(b"of one that was cut short")
    entries, *_ = build(tmp_path / "index", {1: (100, message(1, 8, (1,)))})
    assert list(entries) == [(1, id_of(8))]
    assert os.listdir(tmp_path) == ["index"]
    assert not (tmp_path / "index" / "work").exists()


@pytest.mark.parametrize("fork_from", [0, 10**9])
def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_from: int) -> None:
    monkeypatch.setattr(rebuilding, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(rebuilding, "FORK_FROM", fork_from)
    said: list[str] = []
    entries = b"".join(message(1, number, (5,)) for number in range(1, 11))
    rebuild(str(tmp_path / "index"), [Source(1, 9, 8192, entries)], said.append)
    assert said[0] == "index: 1 logs read, 10 entries"
    assert said[-1] == "index: 10 messages, 10 entries of mailboxes loaded"


def test_the_time_that_reading_the_logs_will_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "PROGRESS_SECONDS", 0.0)
    now = iter(range(0, 10_000, 30))  # a log takes half a minute
    monkeypatch.setattr("metad.store.recovery.rebuild.time.monotonic", lambda: float(next(now)))
    said: list[str] = []
    sources = [Source(one, 9, 8192, message(one, one, (5,))) for one in (1, 2, 3, 4)]
    rebuild(str(tmp_path / "index"), sources, said.append, expected=4)
    assert said[0] == "index: 1 logs read, 1 entries, 90 s left"
    assert said[2] == "index: 3 logs read, 3 entries, 30 s left"


@pytest.mark.parametrize("kind", [record.SEAL, record.RELEASED, record.LAST_KIND])
def test_a_record_of_another_kind_gives_no_mail_and_takes_none(tmp_path: Path, kind: int) -> None:
    entry = footer.ENTRY.pack(1, id_of(7), 512, 100, 10, kind)
    other = footer.ENTRY.pack(1, id_of(8), 612, 100, 10, kind)
    entries, places, *_ = build(tmp_path / "index", {1: (100, message(1, 7, (1,)) + entry + other)})
    assert list(entries) == [(1, id_of(7))]
    assert list(places) == [id_of(7)]


def test_a_rebuild_keeps_within_the_descriptors_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it failed beyond 205 million entries with 1,024 descriptors."""
    monkeypatch.setattr(rebuilding, "PART_ENTRIES", 1)
    monkeypatch.setattr(rebuilding, "SAMPLE_EVERY", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = len(os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (count * 2, hard))
    try:
        entries = b"".join(message(1, number, (number % 5,)) for number in range(1, count * 3))
        rebuild(str(tmp_path / "index"), [Source(1, 9, 1 << 20, entries)], lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    index = Index(str(tmp_path / "index"))
    assert index.totals()["places"] == count * 3 - 1
    index.close()
