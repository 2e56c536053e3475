"""Group commit: durable before it is acknowledged, answered once, never retried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from metad.errors import NoSpaceError, RefusedError, SyncFailedError
from metad.store.commit import committer as commit
from metad.store.commit import group as bounds
from metad.store.commit.index_feed import IndexFeed
from metad.store.commit_delay import CommitDelay
from metad.store.log import header
from metad.store.log_table import LogState
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path, KitOsio(record=True)) as made:
        made.osio.watch = made.store.logs
        made.start()
        yield made


class Pieces:
    """A body that is not in memory."""

    def __init__(self, *pieces: bytes, readable: int = 99) -> None:
        self.pieces = pieces
        self.readable = readable

    def chunks(self) -> Iterator[bytes]:
        self.readable -= 1
        yield from self.pieces
        if self.readable < 0:
            raise OSError("spool")


def test_a_message_is_there_when_it_is_acknowledged(kit: StoreKit) -> None:
    sent = kit.put([1, 2], b"body\r\n.\r\n")
    assert sent.acked
    assert [each for each, _ in kit.listing(1)] == [sent.id]
    stored = kit.stored(sent.id)
    assert bytes(stored.body) == b"body\r\n.\r\n"
    assert [r.mailbox for r in stored.envelope.recipients] == [1, 2]
    kit.check()


def test_nothing_is_answered_before_its_sync(kit: StoreKit) -> None:
    for number in range(20):
        kit.submit([1], b"x%d" % number)
        kit.put([2], b"y%d" % number)
    dirty: set[str] = set()
    acked = 0
    for op in kit.osio.ops:
        if op.kind == "write":
            dirty.add(op.path)
        elif op.kind == "sync":
            dirty.discard(op.path)
        elif op.kind == "note" and op.data[0] == "acked":
            acked += 1
            assert not dirty
    assert acked == 40


def test_all_that_waits_is_one_group(kit: StoreKit) -> None:
    before = len(kit.osio.syncs)
    sent = [kit.submit([n % 3 + 1], b"x" * n) for n in range(50)]
    kit.eager = False
    kit.run()
    assert all(each.acked for each in sent)
    assert kit.writers[0].committer.groups == 1
    assert len(kit.osio.syncs) == before + 1
    kit.check()


@pytest.mark.slow
def test_a_group_has_bounds(tmp_path: Path) -> None:
    with StoreKit(tmp_path, size=8 << 20) as kit:
        kit.start()
        for _ in range(bounds.GROUP_RECORDS + 1):
            kit.submit([1], b"")
        kit.run()
        assert kit.writers[0].committer.groups == 2
        for _ in range(5):
            kit.submit([1], b"x" * 400_000)
        kit.run()
        assert kit.writers[0].committer.groups == 5
        assert kit.check() == bounds.GROUP_RECORDS + 6


def test_a_body_of_very_many_parts_is_stored(kit: StoreKit) -> None:
    """A client that sends octet by octet must not cost a log (IOV_MAX is 1,024)."""
    parts = [b"%d" % (n % 10) for n in range(5000)]
    assert kit.put([1], parts).acked
    assert kit.check() == 1
    assert kit.reports == ["index: there is none; rebuilding it from the logs"]


def test_a_spooled_message_goes_between_others(kit: StoreKit) -> None:
    sent = [kit.submit([1], b"a"), kit.submit([1], Pieces(b"x" * 700, b"", b"y" * 900)),
            kit.submit([1], Pieces()), kit.submit([1], b"b")]  # fmt: skip
    kit.run()
    assert all(each.acked for each in sent)
    assert kit.check() == 4


@pytest.mark.parametrize("readable", [1, 2])
def test_a_spool_that_cannot_be_read_costs_only_its_message(kit: StoreKit, readable: int) -> None:
    sent = kit.put([1], Pieces(b"abc", readable=readable))
    assert isinstance(sent.error, SyncFailedError)
    assert kit.put([1], b"next").acked
    assert kit.check() == 1


def test_a_record_that_cannot_be_encoded_costs_its_group_alone(kit: StoreKit) -> None:
    sent = [kit.submit([1], b"a"), kit.submit([1 << 32], b"x")]
    kit.run()
    assert all(isinstance(one.error, RefusedError) for one in sent)
    assert kit.reports[-1].startswith("panic: a group could not be encoded: ")
    after = kit.put([1], b"next")
    assert after.acked
    assert [each for each, _ in kit.listing(1)] == [after.id]


def test_an_answer_that_raises_costs_no_other_one(kit: StoreKit) -> None:
    def fail(_error: RefusedError | None) -> None:
        raise ValueError("a bug")

    kit.submit([1], b"x")
    committer = kit.writers[0].committer
    committer._waiting[0].done = fail
    second = kit.submit([1], b"y")
    kit.run()
    assert second.acked
    assert kit.reports[-1] == "panic: after an answer: ValueError('a bug')"
    assert committer.idle


def test_a_bug_while_a_group_is_written_costs_its_log(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = kit.writers[0].committer.writer
    assert writer is not None

    def fail(*_args: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(writer, "_write", fail)
    refused = kit.put([1], b"x")
    assert isinstance(refused.error, SyncFailedError)
    successor = kit.writers[0].committer.writer
    assert successor is not None
    assert successor.log.predecessor_life == writer.life
    assert kit.put([1], b"next").acked
    assert kit.check() == 1


def test_a_deletion_is_durable_and_done(kit: StoreKit) -> None:
    one, two = kit.put([1, 2], b"one"), kit.put([1], b"two")
    assert kit.delete(1, [one.id]).acked
    assert [each for each, _ in kit.listing(1)] == [two.id]
    kit.check()
    kit.crash()
    kit.drop_index()
    kit.recover()
    kit.open_index()
    assert kit.check() == 2


@pytest.mark.parametrize(("kind", "short"), [("write", False), ("write", True), ("sync", False)])
def test_a_failed_group_is_refused_and_the_next_goes_to_another_log(
    kit: StoreKit, kind: str, short: bool
) -> None:
    assert kit.put([1], b"before").acked
    failed = kit.writers[0].committer.writer
    assert failed is not None
    kit.osio.faults = Faults(kind, 1, short=short)
    refused = [kit.submit([1], b"x"), kit.submit([1], b"y")]
    kit.run()
    assert [type(each.error) for each in refused] == [SyncFailedError] * 2
    syncs = len(kit.osio.syncs)
    assert kit.put([1], b"after").acked
    path = header.log_path(kit.store.logs, failed.number)
    assert path not in [synced for synced, _ in kit.osio.syncs[syncs:]]
    assert kit.check() == 2
    successor = kit.writers[0].committer.writer
    assert successor is not None
    assert successor.log.predecessor_life == failed.life
    assert successor.log.predecessor_end == failed.end


def test_the_statement_is_durable_before_anything_after_it_is_answered(kit: StoreKit) -> None:
    kit.osio.faults = Faults("sync", 1)
    kit.osio.ops.clear()
    kit.put([1], b"refused")
    kit.put([1], b"after")
    answered = next(
        at for at, op in enumerate(kit.osio.ops) if op.kind == "note" and op.data[0] == "acked"
    )
    path = header.log_path(kit.store.logs, kit.writers[0].committer.writer.number)
    ours = [op for op in kit.osio.ops[:answered] if op.path == path]
    made = [op.kind for op in ours]
    assert made[:5] == ["rename", "write", "sync", "write", "sync"]
    assert made[-2:] == ["write", "sync"]
    writes = [op.offset for op in ours if op.kind == "write"]
    assert writes[:2] == [0, kit.size - 512]
    assert writes[-1] == 512


def test_a_log_whose_zeros_failed_is_spoken_of_by_the_next(kit: StoreKit) -> None:
    kit.put([1], b"before")
    writer = kit.writers[0].committer.writer
    assert writer is not None
    writer.poisoned = True
    assert kit.put([1], b"after").acked
    successor = kit.writers[0].committer.writer
    assert successor is not None
    assert successor.log.predecessor_life == writer.life
    assert kit.writers[0].table.row(writer.number).state == LogState.ACTIVE


def test_a_full_log_is_sealed_and_the_next_takes_its_place(kit: StoreKit) -> None:
    for number in range(60):
        assert kit.put([1], b"x" * 1500 + b"%d" % number).acked
    rows = kit.writers[0].table.rows()
    states = [row.state for row in rows]
    assert states.count(LogState.SEALED) >= 2
    assert states.count(LogState.ACTIVE) == 2
    assert kit.check() == 60
    for row in rows:
        counts = kit.index.log_counts(row.number)
        assert (row.live_messages, row.live_octets) == counts[2:]


def test_a_message_larger_than_a_log_is_refused_and_the_next_is_not(kit: StoreKit) -> None:
    assert isinstance(kit.put([1], b"x" * kit.size).error, NoSpaceError)
    assert kit.put([1], b"small").acked
    assert kit.check() == 1


def test_no_log_to_be_had_is_no_space(kit: StoreKit) -> None:
    kit.eager = False
    kit.osio.faults = Faults("allocate", 1, persistent=True)
    sent = [kit.put([1], b"x" * 7000) for _ in range(12)]
    refused = [each for each in sent if each.error is not None]
    assert refused
    assert all(isinstance(each.error, NoSpaceError) for each in refused)
    kit.osio.faults = None
    assert kit.put([1], b"again").acked
    kit.check()


# -- when the index fails


def break_index(kit: StoreKit, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise lmdb.DiskError("index")

    monkeypatch.setattr(kit.index, "apply", fail)


def test_after_the_sync_the_answer_is_yes_whatever_the_index_says(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_index(kit, monkeypatch)
    assert kit.put([1], b"one").acked
    committer = kit.writers[0].committer
    assert not committer.accepts
    assert kit.put([1], b"two").acked
    monkeypatch.undo()
    committer.catch_up()
    kit.run()
    assert committer.accepts
    assert committer.accepts
    assert kit.check() == 2


def test_what_the_index_missed_is_there_after_a_restart(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.put([1], b"zero")
    break_index(kit, monkeypatch)
    kit.put([1], b"one")
    kit.delete(1, [kit.put([1, 2], b"two").id])
    monkeypatch.undo()
    kit.crash()
    kit.recover()
    kit.open_index()
    assert kit.check() == 3


def test_batches_are_entered_in_order_when_the_index_is_back(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_index(kit, monkeypatch)
    sent = kit.put([1, 2], b"one")
    kit.delete(1, [sent.id])
    monkeypatch.undo()
    kit.put([2], b"three")
    assert kit.writers[0].committer.accepts
    assert kit.check() == 2


def test_while_another_writes_the_index_the_thread_waits(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit.index, "try_lock", lambda: False)
    for number in range(3):
        assert kit.put([1], b"%d" % number).acked
    assert kit.check() == 3


# -- with its real threads


@pytest.mark.slow
@pytest.mark.parametrize("others", [True, False], ids=["thread", "loop"])
def test_commits_under_load(tmp_path: Path, others: bool) -> None:
    """Beside the loop where others are at work, on it where all of them wait."""
    from metad.store.commit.committer import Committer
    from metad.store.ids import IdMaker
    from metad.store.log.encode import Append
    from metad.store.log.record import Envelope, Recipient, pack_envelope
    from metad.store.log_allocator import LogAllocator, LogSettings
    from metad.store.log_chain import LogChain
    from metad.store.log_table import LogTable

    class Loop:
        def __init__(self) -> None:
            self.ready = threading.Semaphore(0)
            self.calls: list[object] = []

        def call_soon(self, callback: object) -> None:
            self.calls.append((callback, ()))
            self.ready.release()

        def call_later(self, _seconds: float, callback: object) -> None:
            self.call_soon(callback)

        def call_soon_threadsafe(self, callback: object, *args: object) -> None:
            self.calls.append((callback, args))
            self.ready.release()

        def step(self) -> None:
            assert self.ready.acquire(timeout=30)
            callback, args = self.calls.pop(0)  # type: ignore[misc]
            callback(*args)

    with StoreKit(tmp_path, size=256 * 1024) as kit:
        kit.recover()
        kit.open_index()
        table = LogTable(kit.area, kit.semaphore, kit.area.process(0))
        source = LogAllocator(
            kit.osio, kit.store, table, LogSettings(kit.size), kit.clock, kit.reports.append
        )
        source.start()
        loop = Loop()
        committer = Committer(
            loop, LogChain(source), IndexFeed(kit.index, lambda rows: None, kit.reports.append)
        )
        ids = IdMaker(kit.clock, 1)
        ids.start_life(committer.open_first())
        bodies: dict[bytes, bytes] = {}
        answered: list[bytes] = []

        def submit(size: int) -> None:
            made = ids.next()
            bodies[made] = bytes([size % 256]) * size
            recipients = (Recipient(1, "a", size),)
            packed = pack_envelope(Envelope(0, "", "", "", recipients))

            def done(error: object) -> None:
                assert error is None
                answered.append(made)
                if len(bodies) < 600:
                    submit(len(bodies) * 7)

            item = Append(made, packed, (bodies[made],), size, done, recipients)
            if others:
                committer.expected.begun()
                committer.expected.begun()
            committer.submit(item)

        for size in range(20):
            submit(size)
        while len(answered) < 600:
            loop.step()
        assert sorted(answered) == sorted(bodies)
        assert len(answered) == len(set(answered))
        source.stop(committer.stop())
        assert [each for each, _ in kit.listing(1)] == sorted(bodies)
        for each, body in bodies.items():
            assert bytes(kit.stored(each).body) == body
        assert all(row.state in (LogState.SEALED, LogState.FREE) for row in table.rows())
        kit.crash()
        kit.recover()
        kit.drop_index()
        kit.recover()
        kit.open_index()
        assert [each for each, _ in kit.listing(1)] == sorted(bodies)


def test_a_disk_that_keeps_failing_is_left_alone_for_longer_and_longer(kit: StoreKit) -> None:
    """Every failed sync costs a log; a dead disk must not use up all of them."""
    committer = kit.writers[0].committer
    kept = kit.put([1], b"before")
    rests: list[tuple[float, object]] = []
    kit.loop.call_later = lambda delay, then: rests.append((delay, then))  # type: ignore[assignment, method-assign]
    kit.osio.faults = Faults("sync", 1, persistent=True, only=".log")
    assert kit.put([1], b"one").error is not None
    assert committer.accepts, "one failure may be that log's alone"
    for seconds in (1, 2, 4):
        assert kit.put([1], b"again").error is not None
        assert not committer.accepts
        if len(rests) > 1:
            assert rests[-1][0] == seconds
        logs = len(kit.table.rows())
        assert kit.put([1], b"meanwhile").error is not None
        assert len(kit.table.rows()) == logs
        rests[-1][1]()  # type: ignore[operator]
        assert committer.accepts
    kit.osio.faults = None
    assert kit.put([1], b"after").acked
    assert len(kit.listing(1)) == 2
    assert kit.listing(1)[0][0] == kept.id


def later(kit: StoreKit) -> list[Callable[[], object]]:
    """Time stands still: deferred calls are recorded, not made."""
    kit.writers[0].committer.expected = CommitDelay(lambda: 0.0)
    calls: list[Callable[[], object]] = []
    kit.loop.call_later = lambda delay, then: calls.append(then)  # type: ignore[assignment, method-assign]
    return calls


def test_a_group_waits_for_clients_that_are_about_to_send(kit: StoreKit) -> None:
    committer, calls = kit.writers[0].committer, later(kit)
    committer.expected.begun()
    committer.expected.begun()
    first = kit.submit([1], b"first")
    kit.run()
    assert not first.answered
    second = kit.submit([1], b"second")  # the last one expected
    kit.run()
    assert first.acked
    assert second.acked
    assert committer.groups == 1
    third = kit.submit([1], b"third")
    kit.run()
    assert third.acked
    calls[0]()  # of a group that has begun long ago
    kit.run()
    assert committer.groups == 2


def test_a_group_does_not_wait_for_long(kit: StoreKit) -> None:
    committer, calls = kit.writers[0].committer, later(kit)
    committer.expected.begun()
    committer.expected.begun()
    sent = kit.submit([1], b"first")
    kit.run()
    assert not sent.answered
    calls[0]()
    kit.run()
    assert sent.acked


def test_a_large_group_does_not_wait(kit: StoreKit) -> None:
    committer, calls = kit.writers[0].committer, later(kit)
    for _ in range(2 * commit.ENOUGH):
        committer.expected.begun()
    sent = [kit.submit([1], b"x") for _ in range(commit.ENOUGH)]
    kit.run()
    assert len(calls) == 1
    assert all(each.acked for each in sent)


def test_a_slow_disk_is_waited_for_beside_the_loop(kit: StoreKit) -> None:
    committer = kit.writers[0].committer
    jobs: list[object] = []
    kit.put([1], b"quick")
    put = committer._background.put
    committer._background.put = lambda job: (jobs.append(job), put(job))  # type: ignore[assignment, method-assign, misc]
    kit.put([1], b"quick")
    assert not jobs
    committer._seconds = 10 * commit.QUICK_SECONDS
    assert kit.put([1], b"slow").acked
    assert jobs


def test_what_goes_to_other_nodes_is_on_its_way_before_the_loop_waits_for_the_disk(
    kit: StoreKit,
) -> None:
    """The loop sends at the end of a turn, so a group that it writes itself begins in the next."""
    committer = kit.writers[0].committer
    kit.put([1], b"the first log")
    events: list[str] = []
    append, waiting = committer._append, ["a copy"]

    def before_group() -> bool:
        events.append("sent" if waiting else "nothing")
        return bool(waiting and waiting.pop())

    def appended(*group: Any) -> Any:
        events.append("written")
        return append(*group)

    committer.before_group = before_group
    committer._append = appended  # type: ignore[assignment, method-assign]
    one = kit.submit([1], b"one")
    kit.loop.call_soon(lambda: events.append("a turn"))  # behind what begins the group
    kit.run()
    assert one.acked
    assert events == ["sent", "a turn", "nothing", "written"]
    events.clear()
    waiting += ["copies", "another"]  # one more comes in the turn between: the group waits once
    assert kit.put([1], b"two").acked
    assert events == ["sent", "sent", "written"]
    events.clear()
    waiting.append("a copy")
    committer._seconds = 10 * commit.QUICK_SECONDS  # a thread writes: the loop goes on
    assert kit.put([1], b"three").acked
    assert events == ["sent", "written"]
