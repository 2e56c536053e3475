"""Tombstones: made with each deletion of a clustered store, told, noted, forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.errors import DataError
from metad.store.index import relocation
from metad.store.index.index import LISTING_ENTRY, Index
from metad.store.index.rows import UNFOUNDED, Batch
from metad.store.index.tombstones import (
    Origin,
    Tombstone,
    Tombstones,
    keep_tombstones,
    pack_told,
    standing,
)
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from metad.store.usage import Usage

MINE, OTHER = Origin(1, 77), Origin(2, 5)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(str(tmp_path))
    keep_tombstones(made, MINE)
    yield made
    made.close()


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def message(number: int, *boxes: int, log: int = 1, offset: int = 512) -> Message:
    recipients = tuple(record.Recipient(m, "", number * 10 + m) for m in boxes)
    entries = footer.message_entries(an_id(number), offset, 100, recipients)
    return Message(an_id(number), Place(log, offset, 100), entries)


def enter(index: Index, *messages: Message) -> None:
    index.apply(Batch(messages[0].place.log, 9, 1024, list(messages), []))


def delete(
    index: Index, mailbox: int, *numbers: int, told: bytes = b"", offset: int = 2048
) -> None:
    ids = b"".join(map(an_id, numbers))
    index.apply(Batch(1, 9, 4096, [], [record.Deletion(mailbox, ids, offset, told)]))


def listing(index: Index, mailbox: int) -> list[int]:
    entries = LISTING_ENTRY.iter_unpack(index.listing(mailbox))
    return [int.from_bytes(each, "big") for each, _ in entries]


def a_tombstone(mailbox: int, number: int, origin: Origin, sequence: int) -> Tombstone:
    return Tombstone(mailbox, an_id(number), origin, sequence)


def test_an_index_by_itself_keeps_none(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    enter(index, message(1, 7))
    delete(index, 7, 1)
    assert index.tables.tombstones is None
    assert standing(index, 7, [an_id(1)]) == set()
    with pytest.raises(DataError):
        Tombstones(index)
    index.close()


def test_a_second_opening_finds_the_table(tmp_path: Path, index: Index) -> None:
    delete(index, 7, 1)
    index.close()
    index.__init__(str(tmp_path))  # type: ignore[misc]
    assert Tombstones(index).of_mailbox(7) == [an_id(1)]
    assert Tombstones(index).own == MINE


def test_each_deletion_gets_the_next_number(index: Index) -> None:
    enter(index, message(1, 7, 8), message(2, 7))
    delete(index, 7, 1, 2)
    delete(index, 8, 1, 55)  # 55: its message has not come
    its = Tombstones(index)
    told = [(7, 1), (7, 2), (8, 1), (8, 55)]
    rows = [a_tombstone(box, one, MINE, at) for at, (box, one) in enumerate(told, 1)]
    assert its.since(MINE, 0, 10) == rows
    assert its.since(MINE, 1, 2) == rows[1:3]
    assert its.vector() == {MINE: 4}
    assert its.of_mailbox(8) == [an_id(1), an_id(55)]
    assert its.of_mailbox(8, an_id(1), 5) == [an_id(55)]
    assert its.of_mailbox(8, b"", 1) == [an_id(1)]
    assert its.count() == 4


def test_what_stands_is_not_numbered_again(index: Index) -> None:
    delete(index, 7, 1)
    delete(index, 7, 1, offset=3000)
    assert Tombstones(index).vector() == {MINE: 1}


def test_what_was_lost_by_damage_makes_none(index: Index) -> None:
    enter(index, message(1, 7))
    item = relocation.Item(record.MESSAGE, 512, 100, message(1, 7).entries)
    relocation.forget(index, relocation.look(index, 1, [item]))
    assert listing(index, 7) == []
    assert not Tombstones(index).stands(7, an_id(1))


def test_what_another_origin_told_is_kept_under_its_number(index: Index) -> None:
    enter(index, message(1, 7))
    delete(index, 7, 1, 3, told=pack_told([(OTHER, 40), (OTHER, 41)]))
    its = Tombstones(index)
    assert listing(index, 7) == []
    assert its.since(OTHER, 39, 9) == [a_tombstone(7, 1, OTHER, 40), a_tombstone(7, 3, OTHER, 41)]
    assert its.told(7, an_id(3)) == [(OTHER, 41)]
    assert its.vector() == {MINE: 0}
    its.advance(OTHER, 41)
    its.advance(OTHER, 30)
    assert its.vector() == {MINE: 0, OTHER: 41}


def test_what_stands_is_noted_under_the_other_origin_too(index: Index) -> None:
    delete(index, 7, 1)
    its = Tombstones(index)
    known, unknown = a_tombstone(7, 1, OTHER, 3), a_tombstone(7, 2, OTHER, 4)
    assert its.note([known, unknown]) == [unknown]
    assert its.note([known]) == []
    assert its.told(7, an_id(1)) == [(MINE, 1), (OTHER, 3)]
    assert its.since(OTHER, 0, 9) == [known]
    assert its.forget([(7, an_id(1))]) == [(7, an_id(1))]
    assert its.since(OTHER, 0, 9) == its.since(MINE, 0, 9) == []
    assert its.vector() == {MINE: 1}


def test_a_forgotten_number_is_not_given_again(index: Index) -> None:
    delete(index, 7, 1)
    Tombstones(index).forget([(7, an_id(1))])
    delete(index, 7, 2)
    assert Tombstones(index).since(MINE, 0, 9) == [a_tombstone(7, 2, MINE, 2)]


def test_a_tombstone_stays_while_its_message_lies_in_a_log(index: Index) -> None:
    enter(index, message(1, 7))
    delete(index, 7, 1)
    its = Tombstones(index)
    assert its.forget([(7, an_id(1)), (7, an_id(9))]) == []
    index.apply(Batch(2, 10, 1024, [], []))
    relocation.drop_places(index, 1, 9, [an_id(1)])
    assert its.forget([(7, an_id(1))]) == [(7, an_id(1))]
    assert its.of_mailbox(7) == []


def test_a_record_waits_for_no_message_whose_tombstone_is_forgotten(index: Index) -> None:
    delete(index, 7, 1)
    (row,) = relocation.rows_of(index, [an_id(1)])
    assert row is not None and UNFOUNDED in row.deleted
    Tombstones(index).forget([(7, an_id(1))])
    (row,) = relocation.rows_of(index, [an_id(1)])
    assert row is not None and len(row.deleted) == 1 and UNFOUNDED not in row.deleted


@pytest.mark.parametrize("how", ["apply", "move", "merge"])
@pytest.mark.parametrize("note", [True, False], ids=["noted", "its record lost"])
def test_a_copy_that_comes_late_is_not_entered(index: Index, how: str, note: bool) -> None:
    delete(index, 7, 1)
    if not note:
        relocation.drop_places(index, 1, 9, [an_id(1)])
    batch = Batch(2, 10, 1024, [message(1, 7, 8, log=2), message(2, 7, log=2, offset=700)], [])
    {"apply": Index.apply, "move": relocation.move, "merge": relocation.merge}[how](index, batch)
    assert listing(index, 7) == [2]
    assert listing(index, 8) == [1]
    assert index.usage(7) == Usage(27, 1)
    assert index.log_counts(2).live_messages == 2
    assert index.places(an_id(1)) == [Place(2, 512, 100)]


def test_a_copy_for_the_dead_alone_gets_a_place_and_no_entry(index: Index) -> None:
    delete(index, 7, 1)
    enter(index, message(1, 7, log=2))
    assert listing(index, 7) == []
    assert index.log_counts(2).live_messages == 0
    assert index.places(an_id(1)) == [Place(2, 512, 100)]


def test_another_node_number_is_another_origin(tmp_path: Path, index: Index) -> None:
    delete(index, 7, 1)
    keep_tombstones(index, Origin(1, 99))
    assert Tombstones(index).own == MINE
    keep_tombstones(index, Origin(6, 99))
    its = Tombstones(index)
    assert its.own == Origin(6, 99)
    assert its.vector() == {MINE: 1, Origin(6, 99): 0}
    delete(index, 7, 2)
    assert its.since(Origin(6, 99), 0, 9) == [a_tombstone(7, 2, Origin(6, 99), 1)]
