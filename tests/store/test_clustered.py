"""A store whose index keeps tombstones: what a member of a cluster must hold by itself."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metad.errors import DamagedError
from metad.store import identity
from metad.store.index.rows import UNFOUNDED
from metad.store.index.tombstones import Origin, Tombstones, pack_told
from metad.store.log import record
from metad.store.log.encode import append_deletion
from metad.store.log.header import log_path
from metad.store.log.place import Place
from metad.store.log_table import LogState
from metad.store.reader import Stored
from metad.system.osio import Osio
from tests.support.agreement import assert_agree, assert_rebuild_is_same
from tests.support.collector_kit import collect, collect_all, fill_log, make_collector, sealed
from tests.support.store_kit import StoreKit

Reading = Callable[[StoreKit, bytes, int], record.Envelope]
BODY = b"of another node" + b"x" * 300
OTHER = Origin(2, 5)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", clustered=True) as kit:
        kit.start()
        yield kit


def foreign(kit: StoreKit, number: int, node: int = 2) -> bytes:
    """An id that another node made."""
    return struct.pack(">QHHI", kit.clock.now_us(), node, 9, number)


def copy(kit: StoreKit, message_id: bytes, *mailboxes: int, writer: int = 0) -> None:
    sent = kit.submit(mailboxes, BODY, writer, message_id)
    kit.run()
    assert sent.acked


def delete_as_told(
    kit: StoreKit, mailbox: int, ids: list[bytes], told: list[tuple[Origin, int]]
) -> None:
    its = kit.writers[0]
    answers: list[object] = []
    deletion = record.Deletion(mailbox, b"".join(ids), told=pack_told(told))
    its.committer.submit(append_deletion(its.ids.next(), deletion, answers.append))
    kit.run()
    assert answers == [None]


def ids_of(kit: StoreKit, mailbox: int) -> list[bytes]:
    return [each for each, _ in kit.listing(mailbox)]


def restart(kit: StoreKit, *, rebuilt: bool) -> None:
    kit.crash()
    if rebuilt:
        kit.drop_index()
    kit.start()


def agree(kit: StoreKit, *, in_parts: bool = False) -> None:
    """`in_parts`: no copy names all mailboxes, so that it does not matter which comes first."""
    kit.crash()
    kit.recover()
    assert_agree(kit)
    if not in_parts:
        assert_rebuild_is_same(kit)


# -- the identity


def test_the_identity_says_whether_a_store_is_clustered(tmp_path: Path) -> None:
    made = identity.make_store(tmp_path, bytes(16), bytes(32), 3, clustered=True)
    identity.write_identity(Osio(), made)
    assert identity.open_store(Osio(), tmp_path) == made
    alone = identity.make_store(tmp_path, bytes(16), bytes(32), 3)
    identity.write_identity(Osio(), alone)
    assert identity.open_store(Osio(), tmp_path) == alone


def test_a_store_by_itself_keeps_no_tombstones(tmp_path: Path) -> None:
    with StoreKit(tmp_path / "alone") as alone:
        alone.start()
        alone.delete(1, [alone.put([1], BODY).id])
        assert alone.index.tables.tombstones is None
        restart(alone, rebuilt=True)
        assert alone.index.tables.tombstones is None


# -- deletions


@pytest.mark.parametrize("rebuilt", [False, True])
def test_tombstones_survive_a_restart_and_a_rebuild(kit: StoreKit, rebuilt: bool) -> None:
    first, second = kit.put([1, 2], BODY).id, kit.put([1], BODY).id
    kit.delete(1, [first, second])
    before = Tombstones(kit.index).own
    restart(kit, rebuilt=rebuilt)
    its = Tombstones(kit.index)
    assert its.of_mailbox(1) == [first, second]
    assert its.of_mailbox(2) == []
    assert (its.own != before) is rebuilt
    assert its.own.number == kit.store.node
    assert {one.id for one in its.since(its.own, 0, 9)} == {first, second}
    assert its.vector() == {its.own: 2}
    assert ids_of(kit, 2) == [first]


def test_a_killed_worker_s_deletions_get_tombstones_by_recovery(kit: StoreKit) -> None:
    known = kit.put([1], BODY).id
    kit.index.lock()  # the worker cannot enter what it has made durable
    kit.submit_deletion(1, [known])
    kit.index.apply = None  # type: ignore[assignment]
    kit.index.unlock()
    kit.run()
    restart(kit, rebuilt=False)
    assert ids_of(kit, 1) == []
    assert Tombstones(kit.index).of_mailbox(1) == [known]


def test_a_deletion_may_be_told_by_another_member(kit: StoreKit) -> None:
    here, never_here = kit.put([1], BODY).id, foreign(kit, 8)
    delete_as_told(kit, 1, [here, never_here], [(OTHER, 6), (OTHER, 7)])
    its = Tombstones(kit.index)
    assert [one.id for one in its.since(OTHER, 0, 9)] == [here, never_here]
    assert its.since(its.own, 0, 9) == []
    restart(kit, rebuilt=True)  # who told it is not in the log: this node tells it now
    its = Tombstones(kit.index)
    assert its.since(OTHER, 0, 9) == []
    assert sorted(one.id for one in its.since(its.own, 0, 9)) == sorted([here, never_here])


# -- a tombstone before its message


@pytest.mark.slow
@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("between", ["nothing", "restart", "collected"])
def test_a_message_never_comes_over_its_tombstone(
    kit: StoreKit, between: str, rebuilt: bool
) -> None:
    dead = foreign(kit, 1)
    kit.delete(1, [dead])
    if between == "restart":
        restart(kit, rebuilt=rebuilt)
    elif between == "collected":
        fill_log(kit)
        restart(kit, rebuilt=rebuilt)  # a rebuild does not wait for the message any more
        collect_all(kit, make_collector(kit))
        restart(kit, rebuilt=rebuilt)
    copy(kit, dead, 1, 2)
    assert dead not in ids_of(kit, 1)
    assert dead in ids_of(kit, 2)
    for again in (False, True):
        restart(kit, rebuilt=again)
        assert dead not in ids_of(kit, 1)
        assert dead in ids_of(kit, 2)
        kit.check()
    agree(kit)


def test_both_in_the_tail_of_a_dead_worker(kit: StoreKit) -> None:
    """The copy's worker and the deletion's both die before the index has anything."""
    kit.crash()
    kit.start(writers=2)
    dead = foreign(kit, 1)
    kit.index.apply = None  # type: ignore[assignment]
    kit.submit([1, 2], BODY, 1, dead)
    kit.submit_deletion(1, [dead], writer=0)
    kit.run()
    for rebuilt in (False, True):
        restart(kit, rebuilt=rebuilt)
        assert ids_of(kit, 1) == []
        assert ids_of(kit, 2) == [dead]
        assert Tombstones(kit.index).of_mailbox(1) == [dead]


# -- the collector


@pytest.mark.slow
def test_a_deletion_record_is_kept_while_its_tombstone_stands(kit: StoreKit) -> None:
    ids = fill_log(kit)
    kit.delete(1, ids)
    collect(make_collector(kit), sealed(kit))  # no copy is left
    fill_log(kit)  # the deletion record's own log is full
    for _ in range(3):
        restart(kit, rebuilt=True)  # nothing marks the rows
        collect_all(kit, make_collector(kit))
    restart(kit, rebuilt=True)
    assert set(ids) <= set(Tombstones(kit.index).of_mailbox(1))
    copy(kit, ids[0], 1)
    assert ids[0] not in ids_of(kit, 1)


@pytest.mark.slow
def test_a_record_goes_when_its_tombstones_are_forgotten(kit: StoreKit) -> None:
    ids = fill_log(kit)
    kit.delete(1, [*ids, foreign(kit, 4)])
    collect(make_collector(kit), sealed(kit))
    its = Tombstones(kit.index)
    keys = [(1, one) for one in its.of_mailbox(1)]
    kit.index.lock()
    assert its.forget(keys) == keys
    kit.index.unlock()
    fill_log(kit, mailbox=3)
    collector = make_collector(kit)
    collect_all(kit, collector)
    assert collector.figures.deletions == 0
    restart(kit, rebuilt=True)
    assert Tombstones(kit.index).of_mailbox(1) == []
    kit.check()


def test_a_record_that_moves_makes_no_tombstone_that_was_forgotten(kit: StoreKit) -> None:
    dead = foreign(kit, 1)
    kit.delete(1, [dead])
    fill_log(kit)
    its = Tombstones(kit.index)
    kit.index.lock()
    assert its.forget([(1, dead)]) == [(1, dead)]
    kit.index.unlock()
    left_out = max(row.number for row in kit.table.rows())  # every deletion record is kept
    row = kit.table.row(left_out)
    kit.table.restore(row._replace(number=left_out + 1, state=LogState.ACTIVE, owner=0))
    collector = make_collector(kit)
    collect(collector, sealed(kit)[:1])
    assert collector.figures.deletions == 1
    assert its.of_mailbox(1) == []


def test_a_message_that_came_marks_nothing_any_more(kit: StoreKit) -> None:
    dead = foreign(kit, 1)
    kit.delete(1, [dead])
    copy(kit, dead, 1)
    kit.writers[0].committer.enter_now()
    with kit.index.reading() as txn:
        row = bytes(txn.get(dead, b"", db=kit.index.tables.places))
    assert UNFOUNDED.mailbox.to_bytes(4, "big") not in row
    agree(kit)


# -- copies of other nodes' messages


def unentered(kit: StoreKit, message_id: bytes, *mailboxes: int) -> None:
    """A copy that is durable and acknowledged, and its worker killed before it is in the index."""
    enter = kit.index.apply
    kit.index.apply = None  # type: ignore[assignment]
    kit.submit(mailboxes, BODY, 0, message_id)
    kit.run()
    kit.index.apply = enter  # type: ignore[method-assign]
    restart(kit, rebuilt=False)


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("how", [copy, unentered], ids=["live", "recovered"])
def test_a_copy_that_comes_twice_counts_once(kit: StoreKit, how, rebuilt: bool) -> None:
    one = foreign(kit, 1)
    copy(kit, one, 1, 2)
    how(kit, one, 1, 2)
    restart(kit, rebuilt=rebuilt)
    assert ids_of(kit, 1) == ids_of(kit, 2) == [one]
    assert kit.index.usage(1).messages == 1
    kit.check()
    agree(kit)


def test_a_copy_that_comes_twice_in_one_group_counts_once(kit: StoreKit) -> None:
    one = foreign(kit, 1)
    sent = [kit.submit([1, 2], BODY, 0, one), kit.submit([2, 3], BODY, 0, one)]
    kit.run()
    assert all(each.acked for each in sent)
    assert [ids_of(kit, box) for box in (1, 2, 3)] == [[one]] * 3
    kit.check()
    agree(kit)


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("how", [copy, unentered], ids=["live", "recovered"])
def test_a_copy_for_other_mailboxes_is_entered_for_them(kit: StoreKit, how, rebuilt: bool) -> None:
    one = foreign(kit, 1)
    copy(kit, one, 1, 2)
    kit.delete(2, [one])
    how(kit, one, 2, 3)
    for again in (False, rebuilt):
        assert ids_of(kit, 1) == ids_of(kit, 3) == [one]
        assert ids_of(kit, 2) == []
        kit.check()
        restart(kit, rebuilt=again)
    agree(kit, in_parts=True)


def read(kit: StoreKit, message_id: bytes, mailbox: int) -> record.Envelope:
    return kit.stored(message_id, mailbox).envelope


def stream(kit: StoreKit, message_id: bytes, mailbox: int) -> record.Envelope:
    first = next(kit.reader.stream(message_id, mailbox))
    assert isinstance(first, Stored)
    return first.envelope


def spread(kit: StoreKit) -> bytes:
    """A message of which one copy names mailbox 1 and another one, in another log, mailbox 3."""
    one = foreign(kit, 1)
    copy(kit, one, 1)
    fill_log(kit, mailbox=8)
    copy(kit, one, 3)
    return one


def named(envelope: record.Envelope) -> list[int]:
    return [each.mailbox for each in envelope.recipients]


def place_of(kit: StoreKit, message_id: bytes, mailbox: int) -> Place:
    """Where the copy lies that names the mailbox."""
    for place in kit.index.places(message_id):
        found = kit.reader._read_at(place, message_id, wait=True)
        if found is not None and named(found.envelope) == [mailbox]:
            return place
    raise AssertionError("there is none")


def spoil(kit: StoreKit, place: Place) -> None:
    with open(log_path(kit.store.logs, place.log), "r+b") as file:
        file.seek(place.offset + place.size - 100)
        file.write(b"?")


@pytest.mark.parametrize("how", [read, stream])
def test_a_mailbox_gets_the_copy_that_names_it(kit: StoreKit, how: Reading) -> None:
    """Found by the simulator, seed 1857: a reader that had the log open in an earlier life handed
    out the other copy."""
    one = spread(kit)
    for mailbox in (1, 3):
        for place in kit.index.places(one):
            log = kit.reader._log(place.log)
            kit.reader._open[place.log] = log._replace(life=1, seed=1)
        assert named(how(kit, one, mailbox)) == [mailbox]


@pytest.mark.parametrize("how", [read, stream])
def test_a_copy_that_is_moved_meanwhile_is_looked_for_again(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch, how: Reading
) -> None:
    one, real = spread(kit), kit.index.places
    moved = place_of(kit, one, 3)._replace(offset=0)
    looks = iter([[place_of(kit, one, 1), moved]])
    monkeypatch.setattr(kit.index, "places", lambda message_id: next(looks, real(message_id)))
    assert named(how(kit, one, 3)) == [3]


@pytest.mark.parametrize("how", [read, stream])
def test_a_damaged_copy_is_not_hidden_by_that_for_another_mailbox(
    kit: StoreKit, how: Reading
) -> None:
    one = spread(kit)
    spoil(kit, place_of(kit, one, 3))
    kit.reader.close()
    with pytest.raises(DamagedError):
        how(kit, one, 3)
    assert named(how(kit, one, 1)) == [1]


@pytest.mark.slow
def test_copies_for_different_mailboxes_outlive_a_collection(kit: StoreKit) -> None:
    one = foreign(kit, 1)
    copy(kit, one, 1)
    fill_log(kit, mailbox=8)
    copy(kit, one, 2, 3)
    fill_log(kit, mailbox=8)
    kit.delete(3, [one])
    for rebuilt in (False, True):
        collect_all(kit, make_collector(kit))
        restart(kit, rebuilt=rebuilt)
        assert ids_of(kit, 1) == ids_of(kit, 2) == [one]
        kit.check()
    agree(kit, in_parts=True)
