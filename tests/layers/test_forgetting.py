"""Rule Forget: a tombstone is gone an hour after every member has it, and not before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metad.cluster.view import Membership
from metad.layers import forgetting
from metad.layers.forgetting import SAMPLE_S, WAIT_S
from metad.store.log_table import LogState
from metad.system.shared_memory import Cell
from tests.support.cluster_bench import ClusterBench, Node

pytestmark = pytest.mark.slow
BOX = 5
TEXT = b"Subject: a test\r\n\r\ntext\r\n"


class Time:
    """The nodes' clock for forgetting.  Each second of it, everything ticks."""

    def __init__(self, bench: ClusterBench) -> None:
        self.bench = bench
        self.now = 1000.0
        for node in bench.nodes:
            self.give(node)

    def give(self, node: Node) -> None:
        node.layer.forgetting.now = lambda: self.now

    def passes(self, seconds: float, step: float = SAMPLE_S) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += min(step, until - self.now)
            self.ticks()

    def ticks(self, count: int = 3) -> None:
        """What members tell each other has come."""
        for _ in range(count):
            self.bench.tick()
            self.bench.until(self._is_quiet, "members have told")

    def _is_quiet(self) -> bool:
        layers = [node.layer for node in self.bench.nodes if node.is_up]
        return not any(one.marks._is_busy or (one._pull and one._pull._busy) for one in layers)


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entomb(node: Node, *numbers: int) -> None:
    """Deletions of messages that lie nowhere."""
    ids = b"".join(map(an_id, numbers))
    node._bench.wait(lambda done: node.layer.entomb(BOX, ids, done))


def dead(node: Node) -> list[int]:
    return [int.from_bytes(one, "big") for one in node.layer.tombstones.of_mailbox(BOX)]


def all_know(bench: ClusterBench, *numbers: int) -> None:
    bench.until(
        lambda: bool(bench.tick() or all(dead(node) == list(numbers) for node in bench.nodes)),
        "all have the tombstones",
    )


def test_all_forget_an_hour_after_they_learned_that_all_have_it(two: ClusterBench) -> None:
    a, b = two.nodes
    time = Time(two)
    entomb(a, 1, 2)
    entomb(b, 3)
    all_know(two, 1, 2, 3)
    time.passes(WAIT_S - 2 * SAMPLE_S)
    assert dead(a) == dead(b) == [1, 2, 3]
    time.passes(5 * SAMPLE_S)
    assert dead(a) == dead(b) == []
    entomb(a, 4)
    all_know(two, 4)
    time.passes(WAIT_S - 2 * SAMPLE_S)
    assert dead(a) == dead(b) == [4]
    time.passes(5 * SAMPLE_S)
    assert dead(a) == dead(b) == []


@pytest.mark.parametrize("state", [Membership.ACTIVE, Membership.ABSENT])
def test_a_member_that_is_away_keeps_what_it_does_not_have(
    two: ClusterBench, state: Membership
) -> None:
    """The mutant forget-absent."""
    a, b = two.nodes
    time = Time(two)
    entomb(a, 1)
    all_know(two, 1)
    time.ticks()
    b.stop()
    entomb(a, 2)
    if state is Membership.ABSENT:
        view = a.layer.peers.view()
        absent = view.with_member(2, state=Membership.ABSENT)
        a.layer.adopt(view.changed(members=absent, alone="accept"))
    time.passes(3 * WAIT_S)
    assert dead(a) == [2]  # it told that it has the first
    b.start()
    time.give(b)
    time.ticks()
    assert 2 in dead(b)
    time.passes(WAIT_S + 3 * SAMPLE_S)
    assert dead(a) == dead(b) == []


def test_what_an_absent_member_told_is_known_after_a_restart(two: ClusterBench) -> None:
    a, b = two.nodes
    time = Time(two)
    entomb(a, 1)
    all_know(two, 1)
    time.ticks()
    two.until(lambda: bool(two.tick() or known(a).get(2)), "what b told is stored")
    b.stop()
    a.stop()
    a.start()
    time.give(a)
    time.passes(WAIT_S + 3 * SAMPLE_S)
    assert dead(a) == []


def known(node: Node) -> dict[int, int]:
    """How many tombstones of node 1 each member is known to have, on the disk."""
    rows = node.layer.marks._heard.all()
    return {
        number: max([0, *(last for origin, last in one.vector.items() if origin[0] == 1)])
        for number, one in rows.items()
    }


def test_the_hour_begins_again_when_a_member_joins() -> None:
    with ClusterBench(3) as bench:
        a, b, c = bench.nodes
        time = Time(bench)
        view = a.layer.peers.view()
        removed = view.with_member(3, state=Membership.REMOVED)
        c.stop()
        a.layer.adopt(view.changed(members=removed))
        entomb(a, 1)
        bench.until(lambda: bool(bench.tick() or dead(b) == [1]), "b has it")
        time.passes(WAIT_S - 5 * SAMPLE_S)
        view = a.layer.peers.view()
        enters = view.with_member(3, state=Membership.ENTERING, healed=True)
        a.layer.adopt(view.changed(members=enters))
        time.passes(10 * SAMPLE_S)
        assert dead(a) == dead(b) == [1]


def test_a_tombstone_stays_while_its_message_lies_in_a_log(two: ClusterBench) -> None:
    a, b = two.nodes
    time = Time(two)
    assert a.send([BOX], TEXT) is None
    assert a.delete(BOX, 1) is None
    entomb(a, 1)
    time.passes(2 * WAIT_S)
    for node in (a, b):
        (left,) = node.layer.tombstones.of_mailbox(BOX)
        assert left != an_id(1)


def other_lags(node: Node) -> None:
    node._area.process(9)[Cell.INDEX_BEHIND] = 1


def has_pending_deletions(node: Node) -> None:
    node._area.pending_cells()[99] = 1


def has_old_mail(node: Node) -> None:
    node._area.unentered_cells()[0][9] = 1


def waits_for_recovery(node: Node) -> None:
    row = node.layer.log.table.row(1)
    node.layer.log.table.restore(row._replace(number=50, state=LogState.ACTIVE, owner=0))


def has_a_silent_process(node: Node) -> None:
    node._area.process(1)[Cell.HEARTBEAT] = 1


@pytest.mark.parametrize(
    "trouble",
    [
        other_lags, has_pending_deletions, has_old_mail, waits_for_recovery,
        has_a_silent_process,
    ],
)  # fmt: skip
def test_nothing_is_forgotten_while_the_index_may_lack_a_copy(
    two: ClusterBench, trouble: Callable[[Node], None]
) -> None:
    a, b = two.nodes
    time = Time(two)
    entomb(a, 1)
    all_know(two, 1)
    trouble(a)
    time.passes(WAIT_S + 5 * SAMPLE_S)
    assert (dead(a), dead(b)) == ([1], [])


def test_many_are_forgotten_in_steps(two: ClusterBench, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two.nodes
    monkeypatch.setattr(forgetting, "MOST", 7)
    time = Time(two)
    entomb(a, *range(1, 101))
    all_know(two, *range(1, 101))
    time.passes(WAIT_S + 2 * SAMPLE_S)
    before = len(dead(a))
    assert before > 50
    time.ticks(1)
    assert before - len(dead(a)) == 7
    time.ticks(15)
    assert dead(a) == dead(b) == []


def test_a_busy_index_is_tried_again(two: ClusterBench, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = two.nodes
    time = Time(two)
    entomb(a, 1)
    all_know(two, 1)
    monkeypatch.setattr(a.layer.log.index, "try_lock", lambda: False)
    time.passes(WAIT_S + 5 * SAMPLE_S)
    assert dead(a) == [1]
    monkeypatch.undo()
    time.passes(SAMPLE_S)
    assert dead(a) == []


def test_what_stays_does_not_keep_other_origins_waiting(
    two: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round goes through all that may be forgotten, however long it takes."""
    a, b = two.nodes
    monkeypatch.setattr(forgetting, "MOST", 2)
    time = Time(two)
    for _ in range(6):
        assert a.send([BOX], TEXT) is None
    assert a.delete(BOX, *range(1, 7)) is None
    entomb(b, 1)
    two.until(lambda: bool(two.tick() or 1 in dead(a)), "a has it")
    a.layer.forgetting.sample_s = b.layer.forgetting.sample_s = 1.0
    time.passes(WAIT_S + 3 * SAMPLE_S)
    time.passes(10, step=1.0)
    for node in (a, b):
        assert len(dead(node)) == 6
        assert 1 not in dead(node)
