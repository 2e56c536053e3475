"""The index after the acknowledgement: durable mail is acknowledged, and no session misses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from metad.store.commit import entry_timer as timer
from metad.store.commit import index_feed
from metad.store.index.rows import Batch
from metad.store.log.footer import message_entries
from metad.store.log.place import joined_entries
from metad.store.log.record import Recipient
from metad.store.log_table import LogState
from metad.store.unentered_mail import UnenteredMail
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import KitWriter, StoreKit

Later = list[tuple[float, Callable[[], object]]]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio(), size=1 << 20) as made:
        made.start(2)
        yield made


@pytest.fixture
def later(kit: StoreKit) -> Later:
    """Timers that do not fire by themselves."""
    timers: Later = []
    kit.loop.call_later = lambda seconds, call: timers.append((seconds, call))  # type: ignore
    return timers


@pytest.fixture
def transactions(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    found: list[Batch] = []
    real = kit.index.apply

    def apply(batch: Batch, *more: object) -> None:
        found.append(batch)
        real(batch, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(kit.index, "apply", apply)
    return found


def listed(kit: StoreKit, mailbox: int) -> int:
    """Messages in the index, without waiting."""
    return len(kit.index.listing(mailbox)) // 20


def elsewhere(kit: StoreKit) -> UnenteredMail:
    """The other worker's view."""
    return kit.writers[1].unentered


def now(kit: StoreKit) -> int:
    return elsewhere(kit).now_ns()


def go_off(kit: StoreKit, later: Later) -> None:
    """The timer goes off, and a session waits."""
    elsewhere(kit).ask()
    look(kit, later)


def look(kit: StoreKit, later: Later) -> None:
    calls = [call for _, call in later]
    later.clear()
    for call in calls:
        call()
    kit.run()


def test_mail_is_answered_first_and_entered_fifteen_milliseconds_later(
    kit: StoreKit, later: Later
) -> None:
    assert kit.put([1], b"one").acked
    for _ in range(timer.LOOKS):
        assert listed(kit, 1) == 0
        assert [seconds for seconds, _ in later] == [timer.LOOK_SECONDS]
        assert elsewhere(kit).may_have(1, now(kit))
        look(kit, later)
    assert not later
    assert listed(kit, 1) == 1
    assert not elsewhere(kit).may_have(1, now(kit))
    assert kit.check() == 1


def test_mail_that_a_session_waits_for_is_entered_at_the_next_look(
    kit: StoreKit, later: Later
) -> None:
    kit.put([1], b"one")
    elsewhere(kit).ask()
    look(kit, later)
    assert listed(kit, 1) == 1


def test_a_session_that_waited_earlier_hastens_nothing(kit: StoreKit, later: Later) -> None:
    elsewhere(kit).ask()
    for number in range(2):  # the next mail waits as long as the first
        kit.put([1], b"x")
        for _ in range(timer.LOOKS - 1):
            look(kit, later)
            assert listed(kit, 1) == number
        look(kit, later)
        assert listed(kit, 1) == number + 1


def test_a_full_group_leaves_one_timer(kit: StoreKit, later: Later) -> None:
    for _ in range(3 * timer.ENTER_ROWS + 1):
        kit.put([1], b"x")
    assert len(later) == 1


def test_it_is_known_elsewhere_before_the_answer(kit: StoreKit, later: Later) -> None:
    known: list[bool] = []
    real = kit.ledger.apply

    def apply(note: tuple[str, object]) -> None:
        if note[0] == "acked":
            known.append(elsewhere(kit).may_have(7, now(kit)))
        real(note)

    kit.ledger.apply = apply  # type: ignore[method-assign]
    kit.put([1, 7], b"one")
    kit.put([7], b"two")
    assert known == [True, True]


def test_groups_share_a_transaction(kit: StoreKit, later: Later, transactions: list[Batch]) -> None:
    for number in range(5):
        kit.put([1, 2], b"%d" % number)
    assert len(later) == 1
    go_off(kit, later)
    assert [len(batch.messages) for batch in transactions] == [5]
    writer = kit.writers[0].committer.writer
    assert writer is not None
    assert kit.index.log_counts(writer.number).watermark == writer.end
    assert kit.check() == 10


def test_a_hundred_rows_do_not_wait(kit: StoreKit, later: Later, transactions: list[Batch]) -> None:
    for number in range(timer.ENTER_ROWS - 1):
        kit.put([1], b"%d" % number)
    assert not transactions
    assert kit.put([1], b"the last one").acked
    assert [len(batch.messages) for batch in transactions] == [timer.ENTER_ROWS]


def test_a_session_does_not_wait_for_what_comes_later(kit: StoreKit, later: Later) -> None:
    asked = now(kit)
    kit.put([1], b"one")
    assert not elsewhere(kit).may_have(1, asked)
    assert elsewhere(kit).may_have(1, now(kit))


def test_a_session_does_not_wait_for_another_mailbox(kit: StoreKit, later: Later) -> None:
    kit.put([1], b"one")
    assert not elsewhere(kit).may_have(2, now(kit))
    assert elsewhere(kit).may_have(1 + 1024, now(kit))  # the same bit


def test_the_worker_itself_enters_it_at_once(kit: StoreKit, later: Later) -> None:
    kit.put([1], b"one")
    kit.writers[0].committer.enter_now()
    assert listed(kit, 1) == 1
    assert not elsewhere(kit).may_have(1, now(kit))


def test_a_deletion_is_entered_before_its_answer_with_all_before_it(
    kit: StoreKit, later: Later, transactions: list[Batch]
) -> None:
    one = kit.put([1], b"one")
    go_off(kit, later)
    kit.put([1], b"two")
    seen: list[int] = []
    real = kit.ledger.apply

    def apply(note: tuple[str, object]) -> None:
        if note[0] == "deleted":
            seen.append(listed(kit, 1))
        real(note)

    kit.ledger.apply = apply  # type: ignore[method-assign]
    assert kit.delete(1, [one.id]).acked
    assert seen == [1]
    assert len(transactions) == 2
    assert kit.check() == 1


def test_a_log_is_not_given_up_before_it_is_entered(tmp_path: Path) -> None:
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.start()
        kit.loop.call_later = lambda seconds, call: None  # type: ignore
        writer = kit.writers[0]
        real, ends = writer.source.retire, []

        def retire(log: object) -> None:
            ends.append((kit.index.log_counts(log.number).watermark, log.end))  # type: ignore
            real(log)  # type: ignore[arg-type]

        writer.source.retire = retire  # type: ignore
        for number in range(40):
            assert kit.put([1], b"x" * 1500 + b"%d" % number).acked
        assert ends
        assert all(entered == end for entered, end in ends)


def test_a_stop_enters_everything(kit: StoreKit, later: Later) -> None:
    kit.put([1], b"one")
    kit.put([1], b"two", writer=1)
    kit.stop()
    kit.open_index()
    assert listed(kit, 1) == 2


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_failed_group_changes_nothing_for_those_before_it(
    kit: StoreKit, later: Later, kind: str
) -> None:
    assert kit.put([1], b"before").acked
    kit.osio.faults = Faults(kind, 1)
    assert not kit.put([1], b"refused").acked
    assert listed(kit, 1) == 1
    assert not elsewhere(kit).may_have(1, now(kit))
    assert kit.put([1], b"after").acked
    assert kit.check() == 2


def fail(*_args: object) -> None:
    raise lmdb.DiskError("index")


def test_what_the_index_refuses_lags_and_no_more_is_taken(
    kit: StoreKit, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.put([1], b"one")
    kit.put([1], b"two")
    committer = kit.writers[0].committer
    monkeypatch.setattr(kit.index, "apply", fail)
    go_off(kit, later)
    assert not committer.accepts
    assert not elsewhere(kit).may_have(1, now(kit))  # it appears later, as after any lag
    assert kit.put([1], b"was on its way").acked
    assert not committer.accepts
    monkeypatch.undo()
    committer.catch_up()
    kit.run()
    assert committer.accepts
    assert kit.check() == 3


def test_a_full_log_with_a_lag_stays_this_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail acknowledged before the index failed must not let the log be sealed without it."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.start()
        kit.loop.call_later = lambda seconds, call: None  # type: ignore
        number = kit.writers[0].committer.writer.number  # type: ignore[union-attr]
        monkeypatch.setattr(kit.index, "apply", fail)
        sent = [kit.put([1], b"x" * 1500 + b"%d" % n) for n in range(40)]
        assert not sent[-1].acked
        assert kit.writers[0].table.row(number).state == LogState.ACTIVE
        monkeypatch.undo()
        kit.crash()
        kit.recover()
        kit.open_index()
        assert kit.check() == len([one for one in sent if one.acked])


def test_so_much_may_be_answered_and_no_more(
    kit: StoreKit, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_feed, "MOST_ANSWERED", 3)
    monkeypatch.setattr(timer, "TRIES", 10**9)
    with held(kit, monkeypatch):
        for number in range(3):
            assert kit.put([1], b"%d" % number).acked
        assert listed(kit, 1) == 0
        waited: list[bool] = []
        monkeypatch.setattr(kit.index, "lock", lambda: waited.append(True))
        assert kit.put([1], b"the fourth").acked
        assert waited
        assert listed(kit, 1) == 4


class held:
    """Another process has the index's lock."""

    def __init__(self, kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kit, self.patch = kit, monkeypatch

    def __enter__(self) -> None:
        self.patch.setattr(self.kit.index, "try_lock", lambda: False)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def test_a_held_lock_is_tried_again_and_then_waited_for(
    kit: StoreKit, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.put([1], b"one")
    with held(kit, monkeypatch):
        for _ in range(timer.TRIES + 1):
            assert listed(kit, 1) == 0
            go_off(kit, later)
        assert listed(kit, 1) == 1
    assert not kit.writers[0].committer.blocked


def test_the_loop_leaves_the_index_to_the_thread(
    kit: StoreKit, later: Later, transactions: list[Batch]
) -> None:
    """While the thread enters, neither a timer nor a session does."""
    writer = kit.writers[0]
    jobs: list[Callable[[], None]] = []
    kit.put([1], b"one")
    writer.committer._background.put = jobs.append  # type: ignore
    writer.committer._wait_and_enter()
    go_off(kit, later)
    writer.committer.enter_now()
    assert not transactions
    assert elsewhere(kit).may_have(1, now(kit))
    jobs.pop()()
    kit.run()
    assert len(transactions) == 1
    assert not elsewhere(kit).may_have(1, now(kit))


def test_a_quota_sees_what_is_not_entered(kit: StoreKit, later: Later) -> None:
    assert kit.writers[0].feed.usage(1) == (0, 0)
    kit.put([1, 2], b"x" * 100)
    kit.put([1], b"x" * 50)
    assert kit.writers[0].feed.usage(1) == (100 + 1 + 50 + 1, 2)
    assert kit.writers[0].feed.usage(1 + 1024) == (0, 0)
    go_off(kit, later)
    assert kit.writers[0].feed.usage(1) == (0, 0)


def test_a_dead_workers_mail_is_waited_for_until_recovery_has_entered_it(
    kit: StoreKit, later: Later
) -> None:
    """Killed between the answer and the entry: the row speaks of it until it is cleared."""
    assert kit.put([1], b"one").acked
    area = kit.area
    kit.crash()
    left = UnenteredMail(area, 1)
    assert left.may_have(1, left.now_ns())
    kit.recover()
    kit.open_index()
    assert listed(kit, 1) == 1
    area.process(0).clear()
    assert not left.may_have(1, left.now_ns())
    assert kit.check() == 1


@pytest.mark.parametrize("lists_all", [False, True])
def test_in_a_cluster_sessions_wait_for_mail_that_the_index_refused(
    kit: StoreKit, later: Later, monkeypatch: pytest.MonkeyPatch, lists_all: bool
) -> None:
    writer = kit.writers[0]
    writer.feed.lists_all = lists_all
    assert kit.put([1], b"one").acked
    asked = now(kit)
    with monkeypatch.context() as patch:
        patch.setattr(kit.index, "apply", _refuse)
        go_off(kit, later)
    assert listed(kit, 1) == 0
    assert elsewhere(kit).may_have(1, asked) is lists_all
    assert elsewhere(kit).is_any_older(asked) is lists_all
    writer.committer.catch_up()
    kit.run()
    assert listed(kit, 1) == 1
    assert not elsewhere(kit).may_have(1, now(kit))
    assert not elsewhere(kit).is_any_older(now(kit))


def test_refused_deletions_alone_leave_no_mail_to_wait_for(kit: StoreKit, later: Later) -> None:
    """Regression: a node walked no more after its index had refused a session's deletions."""
    kit.writers[0].unentered.add(b"")
    assert not elsewhere(kit).is_any_older(now(kit))


def _refuse(*_: object) -> None:
    raise lmdb.DiskError("no space left")


def test_the_next_process_in_a_row_is_not_taken_for_the_last(kit: StoreKit, later: Later) -> None:
    kit.put([1], b"one")
    asked = now(kit)
    assert elsewhere(kit).may_have(1, asked)
    kit.area.process(0).clear()
    UnenteredMail(kit.area, 0).add(joined_entries(_messages(kit, later)))
    assert not elsewhere(kit).may_have(1, asked)


def test_every_mailbox_of_every_message_is_waited_for(kit: StoreKit) -> None:
    boxes = [1, 255, 256, 1023, 1024 + 7, 65536 + 300, (1 << 32) - 1]
    recipients = [Recipient(box, "", 5) for box in boxes]
    groups = [recipients[:1], recipients[1:4], recipients[4:]]
    entries = [message_entries(bytes(16), 4096, 100, some) for some in groups]
    kit.writers[0].unentered.add(entries[0] + entries[1])
    kit.writers[0].unentered.add(entries[2])
    kit.writers[0].unentered.add(entries[0])
    other = elsewhere(kit)
    noted = [box for box in range(1024) if other.may_have(box, now(kit))]
    assert noted == sorted({box % 1024 for box in boxes})
    kit.writers[0].unentered.settle()
    assert not any(other.may_have(box, now(kit)) for box in boxes)


def _messages(kit: StoreKit, later: Later) -> list:
    """One message for mailbox 1, in the form for the index."""
    found: list = []
    writer: KitWriter = kit.writers[1]
    real = writer.feed.answer
    writer.feed.answer = lambda batch: (found.extend(batch.messages), real(batch))  # type: ignore
    kit.put([1], b"another", writer=1)
    go_off(kit, later)
    return found
