"""Mail that is due: deleted by records, under the mailbox's lock, in short steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.gc.expiry import DELETED, Due, Expiry
from metad.store.ids import time_of
from metad.store.index.index import Index
from metad.store.log_table import LogState
from metad.store.mailbox_locks import MailboxLocks
from metad.store.usage import Usage
from metad.system.osio import Osio
from tests.support.collector_kit import collect_all, fill_log, make_collector
from tests.support.osio_kit import FakeClock, Faults, KitOsio
from tests.support.store_kit import StoreKit

LATE = 1 << 63


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio(clock=FakeClock()), size=256 * 1024) as made:
        made.start()
        yield made


@pytest.fixture
def session(kit: StoreKit) -> Iterator[MailboxLocks]:
    """The locks of a worker."""
    made = MailboxLocks(Osio(), kit.store.locks)
    yield made
    made.close()


def make_expiry(kit: StoreKit, failpoint=lambda name: None) -> Expiry:
    tools = make_collector(kit, failpoint)._tools
    return Expiry(tools, MailboxLocks(kit.osio, kit.store.locks))


def expire(kit: StoreKit, *due: Due) -> Expiry:
    made = make_expiry(kit)
    list(made.steps(due))
    return made


def ids(kit: StoreKit, mailbox: int) -> list[bytes]:
    return [one for one, _ in kit.listing(mailbox)]


def usage_of_listing(kit: StoreKit, mailbox: int) -> Usage:
    entries = kit.listing(mailbox)
    return Usage(sum(octets for _, octets in entries), len(entries))


def test_what_is_older_goes_and_nothing_else(kit: StoreKit) -> None:
    sent = [kit.put([1, 2], b"%d" % number).id for number in range(9)]
    made = expire(kit, Due(1, time_of(sent[5])))
    assert ids(kit, 1) == sent[5:]
    assert ids(kit, 2) == sent
    assert made.figures.messages == 5
    assert kit.index.usage(1) == usage_of_listing(kit, 1)
    assert kit.index.usage(2) == usage_of_listing(kit, 2)


def test_mail_of_today_with_an_id_of_last_week_stays(kit: StoreKit) -> None:
    """Regression: after ten days of suspend and a restart, a 7-day expiry deleted today's mail."""
    old = kit.put([1], b"old").id
    kit.arrived_us = time_of(old) + 10 * 86_400 * 10**6
    today = kit.put([1], b"today").id
    made = expire(kit, Due(1, time_of(today) + 1))
    assert ids(kit, 1) == [today]
    assert made.figures.messages == 1


def test_what_stays_does_not_hold_up_what_goes(kit: StoreKit) -> None:
    """The oldest is not old enough by its record; of the others there is more than one step's."""
    kit.arrived_us = LATE
    young = kit.put([1], b"young").id
    kit.arrived_us = 0
    for number in range(DELETED + 20):
        kit.put([1], b"%d" % number)
    expire(kit, Due(1, LATE - 1))
    assert ids(kit, 1) == [young]


def test_a_record_that_cannot_be_read_does_not_expire(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = kit.put([1], b"old").id
    with monkeypatch.context() as patch:
        patch.setattr("metad.store.gc.expiry.RecordReader.read", lambda *_: None)
        expire(kit, Due(1, LATE))
    assert ids(kit, 1) == [sent]
    expire(kit, Due(1, LATE))
    assert ids(kit, 1) == []


def test_it_is_durable_and_outlives_the_index(kit: StoreKit) -> None:
    sent = [kit.put([1], b"%d" % number).id for number in range(9)]
    expire(kit, Due(1, time_of(sent[7])))
    kit.crash()
    kit.drop_index()
    kit.start()
    assert ids(kit, 1) == sent[7:]
    assert kit.index.usage(1) == usage_of_listing(kit, 1)


def test_a_mailbox_in_use_is_skipped_and_named(kit: StoreKit, session: MailboxLocks) -> None:
    for mailbox in (1, 2, 3):
        kit.put([mailbox], b"old")
    assert session.acquire(2)
    made = make_expiry(kit)
    list(made.steps([Due(1, LATE), Due(2, LATE), Due(3, LATE)]))
    assert [len(ids(kit, mailbox)) for mailbox in (1, 2, 3)] == [0, 1, 0]
    assert made.in_use == {2}
    assert (made.figures.messages, made.figures.in_use) == (2, 1)
    session.release(2)
    made.in_use.clear()
    list(made.steps([Due(2, LATE)]))
    assert not ids(kit, 2)
    assert not made.in_use


def test_it_holds_the_lock_while_it_deletes_and_lets_go(
    kit: StoreKit, session: MailboxLocks
) -> None:
    kit.put([1], b"old")
    kit.put([2], b"old")
    seen: list[tuple[str, bool]] = []

    def look(name: str) -> None:
        got = session.acquire(1)
        seen.append((name, got))
        if got:
            session.release(1)

    list(make_expiry(kit, look).steps([Due(1, LATE), Due(2, LATE)]))
    names = ["deleting", "copied", "moved", "expired"]
    assert [one for one in seen if one[0] in names] == [(name, False) for name in names]
    for mailbox in (1, 2):
        assert session.acquire(mailbox)


def test_mail_that_came_between_look_and_lock_is_judged_by_its_age(kit: StoreKit) -> None:
    """So is mail that a session deleted meanwhile."""
    first, second, third = (kit.put([1], b"old").id for _ in range(3))
    made = make_expiry(kit)
    acquire = made._locks.acquire

    def a_session_was_first(mailbox: int) -> bool:
        kit.delete(1, [first])
        kit.put([1], b"new")
        return acquire(mailbox)

    made._locks.acquire = a_session_was_first  # type: ignore[method-assign]
    list(made.steps([Due(1, time_of(third))]))
    assert made.figures.messages == 1
    left = ids(kit, 1)
    assert left[0] == third
    assert len(left) == 2
    assert second not in left


def test_a_step_deletes_a_bounded_number(kit: StoreKit, session: MailboxLocks) -> None:
    for number in range(DELETED * 2 + 30):
        kit.submit([1 + number % 2], b"%d" % number)
    kit.run()
    made = make_expiry(kit)
    done = 0
    for _ in made.steps([Due(1, LATE), Due(2, LATE)]):
        assert made.figures.messages - done <= DELETED
        done = made.figures.messages
        assert session.acquire(1)  # between two steps all users may log in
        session.release(1)
    assert done == DELETED * 2 + 30
    assert not ids(kit, 1)
    assert not ids(kit, 2)


def test_many_mailboxes_cost_one_sync(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    for mailbox in range(1, 41):
        kit.submit([mailbox], b"old")
    kit.run()
    made = make_expiry(kit)
    kit.put([99], b"old")
    list(made.steps([Due(99, LATE)]))  # its log is there now
    syncs: list[int] = []
    monkeypatch.setattr(kit.osio, "fdatasync", syncs.append)
    assert len(list(made.steps([Due(mailbox, LATE) for mailbox in range(1, 41)]))) == 1
    assert made.figures.messages == 41
    assert len(syncs) == 1


def test_what_has_expired_can_be_deleted_once_more(kit: StoreKit) -> None:
    """A session whose listing is older than the expiry: its QUIT is +OK, and counts stay right."""
    old, new = kit.put([1], b"old").id, kit.put([1], b"new").id
    expire(kit, Due(1, time_of(new)))
    assert kit.delete(1, [old]).acked
    assert ids(kit, 1) == [new]
    assert kit.index.usage(1) == usage_of_listing(kit, 1)
    assert kit.delete(1, [old, new]).acked
    assert kit.index.usage(1) == Usage()
    kit.crash()
    kit.drop_index()
    kit.start()
    assert not ids(kit, 1)
    assert kit.index.usage(1) == Usage()


def test_nothing_due_writes_nothing(kit: StoreKit) -> None:
    kit.put([1], b"new")
    logs = len(list(kit.log_files()))
    made = expire(kit, Due(1, 0), Due(1, -5), Due(2, LATE))
    assert made.figures.messages == 0
    assert len(ids(kit, 1)) == 1
    assert len(list(kit.log_files())) == logs


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_what_cannot_be_written_stays_and_goes_another_time(kit: StoreKit, kind: str) -> None:
    kit.osio.watch = kit.store.logs
    first = kit.put([1], b"old").id
    made = make_expiry(kit)
    kit.put([2], b"old")
    list(made.steps([Due(2, LATE)]))  # its log is there now
    kit.osio.faults = Faults(kind, 1)
    with pytest.raises(OSError, match=r".+"):
        list(made.steps([Due(1, LATE)]))
    kit.osio.faults = None
    assert ids(kit, 1) == [first]
    assert made._locks.acquire(1)
    made._locks.release(1)
    list(made.steps([Due(1, LATE)]))
    assert not ids(kit, 1)
    kit.crash()
    kit.drop_index()
    kit.start()
    assert not ids(kit, 1)


def test_what_the_index_would_not_take_is_entered_before_anything_else(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.put([1], b"old")
    new = kit.put([2], b"old").id
    made = make_expiry(kit)

    def full(*_: object) -> None:
        raise lmdb.MapFullError("no")

    with monkeypatch.context() as broken:
        broken.setattr(Index, "apply", full)
        with pytest.raises(lmdb.MapFullError):
            list(made.steps([Due(1, LATE)]))
    assert len(ids(kit, 1)) == 1
    list(made.steps([Due(2, time_of(new) + 1)]))
    assert not ids(kit, 1)
    kit.crash()
    kit.start()
    assert not ids(kit, 1)
    assert not ids(kit, 2)
    assert kit.index.usage(1) == Usage()


@pytest.mark.slow
def test_what_expired_is_garbage_and_never_comes_back(kit: StoreKit) -> None:
    old = fill_log(kit, 1)
    other = [kit.put([2], b"stays").id]
    fill_log(kit, 3)
    collector = make_collector(kit)
    made = Expiry(collector._tools, MailboxLocks(kit.osio, kit.store.locks))
    list(made.steps([Due(1, time_of(old[-1])), Due(3, LATE)]))
    left = ids(kit, 1)
    for _ in range(3):
        collect_all(kit, collector)
    assert ids(kit, 1) == left
    assert ids(kit, 2) == other
    collector.close()
    kit.crash()
    kit.drop_index()
    kit.start()
    assert ids(kit, 1) == left
    assert ids(kit, 2) == other
    assert not ids(kit, 3)
    for mailbox in (1, 2, 3):
        assert kit.index.usage(mailbox) == usage_of_listing(kit, mailbox)
    rows = [row for row in kit.table.rows() if row.state == LogState.SEALED]
    assert sum(row.live_messages for row in rows) <= len(left) + 1


def test_the_oldest_of_a_mailbox_are_the_first_of_its_listing(kit: StoreKit) -> None:
    sent = [kit.put([1, 2], b"x").id for _ in range(5)]
    for most in (0, 1, 3, 9):
        assert kit.index.oldest(1, most) == sent[:most]
    assert kit.index.oldest(7, 3) == []
    assert kit.index.greatest_mailbox() == 2
