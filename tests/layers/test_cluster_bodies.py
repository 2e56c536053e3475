"""Messages that another node has, or has undamaged: two and three nodes in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from metad.cluster.fetching import FETCHED
from metad.errors import RefusedError
from metad.layers import far_bodies
from metad.layers.merged_mailbox import MergedMaildrop
from metad.store.log.header import log_path
from tests.layers.test_cluster import BOX, TEXT, here
from tests.support.cluster_bench import ClusterBench, Node

pytestmark = pytest.mark.slow


def a_text(size: int) -> bytes:
    lines = size // 64
    return b"Subject: large\r\n\r\n" + b"".join(b"%061d.\r\n" % line for line in range(lines))


def damage(node: Node, mailbox: int = BOX) -> bytes:
    """Flip a bit of the last message of a mailbox, on this node's disk; its id."""
    here(node, mailbox)
    log = node.layer.log
    message_id = log.index.listing_piece(mailbox, b"", 1000)[-1][:16]
    (place,) = log.index.places(message_id)
    with open(log_path(log.store.logs, place.log), "r+b") as file:
        file.seek(place.offset + place.size - 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return bytes(message_id)


def lacking(bench: ClusterBench) -> Node:
    """The node that has nothing of the mailbox."""
    (node,) = [one for one in bench.nodes if here(one) == 0]
    return node


def idle(bench: ClusterBench) -> None:
    """Nothing of what was fetched counts any more, on any node."""
    bench.until(lambda: not any(n.layer.log.budget.used for n in bench.nodes), "memory is free")


@pytest.mark.parametrize("size", [3_000, 300_000, 1_500_000], ids=["small", "pieces", "large"])
def test_a_message_that_is_damaged_here_comes_from_another_node(
    two: ClusterBench, size: int
) -> None:
    a, b = two.nodes
    assert a.stream([BOX], a_text(size)) is None
    (good,) = b.texts(BOX)
    damage(a)
    assert a.texts(BOX) == [good]
    b.stop()
    with pytest.raises(RefusedError):
        a.texts(BOX)


def test_a_message_that_is_damaged_everywhere_is_an_error(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.stream([BOX], a_text(300_000)) is None
    damage(a)
    damage(b)
    for node in (a, b):
        with pytest.raises(RefusedError, match="does not verify"):
            node.texts(BOX)
    idle(two)


def test_one_holder_is_damaged_and_the_next_is_asked(three: ClusterBench) -> None:
    a, _, _ = three.nodes
    assert a.stream([BOX], a_text(1_500_000)) is None
    far = lacking(three)
    holders = [node for node in three.nodes if node is not far]
    damage(holders[0])
    (text,) = far.texts(BOX)
    assert len(text) > 1_500_000
    assert holders[1].texts(BOX) == [text]


def test_a_large_message_from_elsewhere_waits_in_a_file(three: ClusterBench) -> None:
    a = three.nodes[0]
    assert a.stream([BOX], a_text(6_000_000)) is None
    far = lacking(three)
    drop = far.open(BOX)
    used: list[int] = []
    asked = three.wait(lambda done: drop.bring(1, done))
    assert asked is None
    found = drop.fetch(1, 1 << 20)
    assert isinstance(found, Iterator)
    for piece in found:
        used.append(far.layer.log.budget.used)
        assert len(piece) <= 1 << 20
    assert max(used) < 2 * FETCHED
    drop.close()
    idle(three)


def test_the_next_messages_are_fetched_before_they_are_asked_for(three: ClusterBench) -> None:
    """Of 40 messages a client that takes them in order waits for the first one alone."""
    count = 40
    for _ in range(count):
        assert three.nodes[0].send([BOX], TEXT) is None
    far = lacking(three)
    waits, drop = watched(far)
    for number in range(1, count + 1):
        assert far.text(drop, number)
        three.until(lambda: not drop._far._coming, "nothing is on its way")
        assert len(drop._far._here) <= far_bodies.AHEAD
    assert waits == [1]
    drop.close()
    idle(three)


def test_a_client_that_takes_one_message_gets_no_others(three: ClusterBench) -> None:
    for _ in range(10):
        assert three.nodes[0].send([BOX], TEXT) is None
    far = lacking(three)
    waits, drop = watched(far)
    for number in (5, 9, 2):
        assert far.text(drop, number)
        assert not drop._far._coming
    assert waits == [5, 9, 2]
    drop.close()


def test_what_is_fetched_ahead_is_bounded(three: ClusterBench) -> None:
    for _ in range(6):
        assert three.nodes[0].stream([BOX], a_text(400_000)) is None
    far = lacking(three)
    waits, drop = watched(far)
    most = 0
    for number in range(1, 7):
        assert far.text(drop, number)
        three.until(lambda: not drop._far._coming, "nothing is on its way")
        most = max(most, drop._far.fetched)
        assert drop._far.fetched <= far.layer.log.budget.used
    assert waits == [1]
    assert 0 < most <= far_bodies.AHEAD_SIZE
    drop.close()
    idle(three)


def test_nothing_is_fetched_ahead_while_memory_is_short(three: ClusterBench) -> None:
    for _ in range(4):
        assert three.nodes[0].send([BOX], TEXT) is None
    far = lacking(three)
    budget = far.layer.log.budget
    taken = budget.half
    assert budget.take(taken)
    waits, drop = watched(far)
    for number in range(1, 5):
        assert far.text(drop, number)
    assert waits == [1, 2, 3, 4]
    drop.close()
    budget.give_back(taken)
    idle(three)


def watched(node: Node) -> tuple[list[int], Any]:
    """An open mailbox, and the numbers for which its session had to wait."""
    drop = node.open(BOX)
    assert isinstance(drop, MergedMaildrop)
    waits: list[int] = []
    far = drop._far
    bring = far.bring

    def counted(number: int, done: Any) -> None:
        waits.append(number)
        bring(number, done)

    far.bring = counted  # type: ignore[method-assign]
    return waits, drop


def test_a_walk_does_not_count_while_the_only_good_copy_may_be_away() -> None:
    with ClusterBench(2, copies=1, entering=2) as bench:
        a, b = bench.nodes
        assert a.send([BOX], TEXT) is None
        assert a.send([BOX], TEXT) is None
        message_id = damage(a)
        bench.until(lambda: bench.tick() or here(b) == 1, "the good message is on both")
        bench.until(lambda: any("can read 1 messages" in one for one in a.reports), "a line")
        view = a.layer.peers.view()
        assert a.layer.walked[0] < view.epoch
        assert (view.copies, view.read_copies) == (2, 1)
        a.layer._steward._walks_after_ns = 0  # a minute later, the message has been deleted
        assert bench.wait(lambda done: a.layer.entomb(BOX, message_id, done)) is None
        assert bench.settle().read_copies == 2
