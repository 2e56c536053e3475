"""The index: entries, places, usage and counts change together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.index import relocation
from metad.store.index.index import LISTING_ENTRY, Index
from metad.store.index.rows import UNFOUNDED, Batch, Deleted, LogCounts
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from metad.store.usage import Usage


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(str(tmp_path))
    yield made
    made.close()


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def message(number: int, *boxes: int, log: int = 1, offset: int = 512, size: int = 100) -> Message:
    recipients = tuple(record.Recipient(m, "", number * 10 + m) for m in boxes)
    entries = footer.message_entries(an_id(number), offset, size, recipients)
    return Message(an_id(number), Place(log, offset, size), entries)


def enter(
    index: Index, *messages: Message, log: int = 1, life: int = 9, watermark: int = 1024
) -> None:
    index.apply(Batch(log, life, watermark, list(messages), []))


def delete(index: Index, mailbox: int, *numbers: int, log: int = 1, life: int = 9) -> None:
    ids = b"".join(map(an_id, numbers))
    index.apply(Batch(log, life, 2048, [], [record.Deletion(mailbox, ids)]))


def listing(index: Index, mailbox: int) -> list[tuple[int, int]]:
    packed = LISTING_ENTRY.iter_unpack(index.listing(mailbox))
    return [(int.from_bytes(each, "big"), octets) for each, octets in packed]


def test_a_mailbox_lists_its_messages_in_id_order(index: Index) -> None:
    enter(index, message(5, 1), message(3, 1, 2))
    enter(index, message(4, 2, 1))
    assert listing(index, 1) == [(3, 31), (4, 41), (5, 51)]
    assert listing(index, 2) == [(3, 32), (4, 42)]
    assert listing(index, 3) == []


@pytest.mark.parametrize("mailbox", [0, 1, 255, 256, 2**31, 2**32 - 2])
def test_mailboxes_at_the_edges_do_not_mix(index: Index, mailbox: int) -> None:
    others = [m for m in (mailbox - 1, mailbox + 1) if m >= 0]
    recipients = (record.Recipient(mailbox, "", 7),)
    entries = footer.message_entries(an_id(1), 512, 100, recipients)
    enter(index, Message(an_id(1), Place(1, 512, 100), entries))
    assert listing(index, mailbox) == [(1, 7)]
    assert [listing(index, m) for m in others] == [[] for _ in others]
    assert list(index.usages()) == [(mailbox, Usage(7, 1))]


def test_a_place_is_known_until_the_message_has_gone(index: Index) -> None:
    enter(index, message(1, 1, 2, offset=4096, size=77))
    assert index.places(an_id(1)) == [Place(1, 4096, 77)]
    delete(index, 1, 1)
    delete(index, 2, 1)
    assert index.places(an_id(1)) == [Place(1, 4096, 77)]
    assert index.places(an_id(2)) == []


def test_usage_is_the_sum_of_the_entries(index: Index) -> None:
    enter(index, message(1, 1), message(2, 1, 2))
    assert index.usage(1) == Usage(11 + 21, 2)
    delete(index, 1, 1)
    assert index.usage(1) == Usage(21, 1)
    delete(index, 1, 2)
    assert index.usage(1) == Usage(0, 0)
    assert index.usage(99) == Usage()


@pytest.mark.slow
def test_usages_are_those_of_every_mailbox(index: Index) -> None:
    for at in range(2100):
        enter(index, message(at + 1, at * 3))
    found = dict(index.usages())
    assert sorted(found) == [at * 3 for at in range(2100)]
    assert all(usage.messages == 1 for usage in found.values())


def test_a_message_counts_as_live_until_its_last_reader_deleted_it(index: Index) -> None:
    enter(index, message(1, 1, 2, size=100), message(2, 1, size=50))
    assert index.log_counts(1) == LogCounts(9, 1024, 2, 150)
    delete(index, 1, 1)
    assert index.log_counts(1) == LogCounts(9, 2048, 2, 150)
    delete(index, 2, 1)
    assert index.log_counts(1) == LogCounts(9, 2048, 1, 50)


def test_a_deletion_in_one_log_changes_the_counts_of_another(index: Index) -> None:
    enter(index, message(1, 1, log=3), log=3)
    delete(index, 1, 1, log=4, life=10)
    assert index.logs() == {3: LogCounts(9, 1024, 0, 0), 4: LogCounts(10, 2048, 0, 0)}


def test_deleting_twice_or_what_is_not_there_changes_nothing(index: Index) -> None:
    enter(index, message(1, 1, 2))
    delete(index, 1, 1)
    before = (index.usage(1), index.usage(2), index.log_counts(1))
    delete(index, 1, 1, 1, 55)
    delete(index, 7, 1)
    assert (index.usage(1), index.usage(2), index.log_counts(1)) == before
    assert listing(index, 2) == [(1, 12)]


def test_a_new_life_of_a_log_resets_its_counts(index: Index) -> None:
    enter(index, message(1, 1))
    enter(index, message(2, 1, size=30), life=10, watermark=700)
    assert index.log_counts(1) == LogCounts(10, 700, 1, 30)


def test_what_changed_is_published_in_absolute_figures(index: Index) -> None:
    published: list[dict[int, LogCounts]] = []
    index.apply(Batch(1, 9, 1024, [message(1, 1)], []), published.append)
    index.apply(Batch(2, 5, 600, [], [record.Deletion(1, an_id(1))]), published.append)
    assert published == [
        {1: LogCounts(9, 1024, 1, 100)},
        {1: LogCounts(9, 1024, 0, 0), 2: LogCounts(5, 600, 0, 0)},
    ]


def test_a_transaction_that_fails_changes_nothing(index: Index) -> None:
    def fail(_rows: object) -> None:
        raise lmdb.Error("no")

    with pytest.raises(lmdb.Error):
        index.apply(Batch(1, 9, 1024, [message(1, 1)], []), fail)
    assert listing(index, 1) == []
    assert index.places(an_id(1)) == []
    assert index.logs() == {}


def test_the_greatest_id_is_the_last_place(index: Index) -> None:
    assert index.greatest_id(0) == bytes(16)
    enter(index, message(5, 1), message(3, 1))
    assert index.greatest_id(0) == an_id(5)


def test_totals_count_rows(index: Index) -> None:
    enter(index, message(1, 1, 2), message(2, 1))
    assert index.totals() == {"entries": 3 + 2, "places": 2}


def test_one_writer_at_a_time_has_the_lock(tmp_path: Path, index: Index) -> None:
    assert index.try_lock()
    index.unlock()
    index.lock()
    index.unlock()
    assert index.try_lock()
    index.unlock()


def test_entering_messages_again_changes_nothing(index: Index) -> None:
    """Usage and live counts were doubled."""
    enter(index, message(1, 7), message(2, 7, 8))
    before = index.usage(7), index.usage(8), index.logs(), index.totals()
    enter(index, message(1, 7), message(2, 7, 8))
    assert (index.usage(7), index.usage(8), index.logs(), index.totals()) == before
    enter(index, message(2, 7, 8), message(3, 7))
    assert listing(index, 7) == [(1, 17), (2, 27), (3, 37)]
    assert index.usage(7) == Usage(17 + 27 + 37, 3)


def test_entering_a_message_again_revives_no_deleted_entry(index: Index) -> None:
    enter(index, message(1, 7, 8))
    gone = record.Deletion(7, an_id(1), 700)
    index.apply(Batch(1, 9, 2048, [], [gone]))
    counts = index.logs()
    enter(index, message(1, 7, 8), watermark=2048)
    assert listing(index, 7) == []
    assert listing(index, 8) == [(1, 18)]
    assert index.logs() == counts


def test_a_younger_copy_is_the_first_place_and_names_no_mailbox_that_deleted(
    index: Index,
) -> None:
    enter(index, message(1, 7, 8))
    index.apply(Batch(1, 9, 2048, [], [record.Deletion(7, an_id(1), 700)]))
    enter(index, message(1, 7, 8, log=2), log=2, life=10)
    assert [place.log for place in index.places(an_id(1))] == [2, 1]
    assert listing(index, 7) == []
    assert index.log_counts(1).live_messages == 0
    assert index.log_counts(2).live_messages == 1


@pytest.mark.parametrize("how", [Index.apply, relocation.merge])
@pytest.mark.parametrize(("boxes", "first"), [([8], 1), ([9], 1), ([7, 8, 9], 2)])
def test_a_younger_copy_is_first_only_if_it_names_all(
    index: Index, how, boxes: list[int], first: int
) -> None:
    enter(index, message(1, 7, 8))
    how(index, Batch(2, 10, 1024, [message(1, *boxes, log=2)], []))
    assert index.places(an_id(1))[0].log == first
    assert [bool(listing(index, box)) for box in (7, 8, 9)] == [True, True, 9 in boxes]
    assert index.log_counts(1).live_messages == (index.places(an_id(1))[0].log == 1)
    assert index.log_counts(2).live_messages == (index.places(an_id(1))[0].log == 2)


def test_a_deletion_that_comes_before_its_message_is_remembered(index: Index) -> None:
    """By each mailbox, in any order, and once only."""
    early = record.Deletion(7, an_id(1) + an_id(2), 700)
    for _ in range(2):
        index.apply(Batch(2, 10, 1024, [], [early]))
    assert index.places(an_id(1)) == []
    enter(index, message(1, 7, 8), message(3, 7))
    relocation.move(index, Batch(3, 11, 1024, [message(2, 7, 9, log=3)], []))
    assert listing(index, 7) == [(3, 37)]
    assert listing(index, 8) == [(1, 18)]
    assert listing(index, 9) == [(2, 29)]
    assert index.log_counts(1).live_messages == 2
    assert index.log_counts(3).live_messages == 1
    (row,) = relocation.rows_of(index, [an_id(1)])
    assert row == relocation.Row(1, [Place(1, 512, 100)], [Deleted(2, 700, 7)])


def test_a_deletion_before_a_message_to_one_mailbox_leaves_nothing_alive(index: Index) -> None:
    index.apply(Batch(2, 10, 1024, [], [record.Deletion(7, an_id(1), 700)]))
    enter(index, message(1, 7))
    assert listing(index, 7) == []
    assert index.usage(7) == Usage(0, 0)
    assert index.log_counts(1).live_messages == 0
    relocation.drop_places(index, 1, 9, [an_id(1)])
    assert relocation.rows_of(index, [an_id(1)]) == [relocation.Row(0, [], [Deleted(2, 700, 7)])]
    index.apply(Batch(2, 10, 2048, [], [record.Deletion(7, an_id(9), 800)]))
    noted = [UNFOUNDED, Deleted(2, 800, 7)]
    assert relocation.rows_of(index, [an_id(9)]) == [relocation.Row(0, [], noted)]
    relocation.drop_places(index, 2, 10, [an_id(1)])
    assert relocation.rows_of(index, [an_id(1)]) == [None]
