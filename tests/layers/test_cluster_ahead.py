"""Small messages that lie elsewhere, several in one request: three real nodes."""

from __future__ import annotations

from typing import Any

import pytest

from metad.cluster.answers import TOO_MANY
from metad.cluster.frames import Kind
from metad.cluster.small_texts import MOST_TEXTS
from tests.layers.test_cluster import BOX
from tests.layers.test_cluster_bodies import a_text, damage, idle, lacking, watched
from tests.layers.test_cluster_together import count_requests
from tests.support.cluster_bench import ClusterBench, Node

pytestmark = pytest.mark.slow

COUNT = 40


def fill(bench: ClusterBench, count: int = COUNT) -> tuple[Node, list[Node]]:
    """The node that has none of so many messages, and those that have all."""
    for number in range(count):
        assert bench.nodes[0].send([BOX], b"Subject: %d\r\n\r\n.%d\r\n" % (number, number)) is None
    far = lacking(bench)
    return far, [node for node in bench.nodes if node is not far]


def counted(nodes: list[Node], kind: Kind) -> list[list[int]]:
    return [count_requests(node, kind) for node in nodes]


def take_all(bench: ClusterBench, far: Node) -> list[bytes]:
    """All texts of the mailbox, as a client takes them that is slower than the link."""
    _, drop = watched(far)
    texts = []
    for number in range(1, len(drop) + 1):
        texts.append(far.text(drop, number))
        bench.until(lambda: not drop._far._coming, "nothing is on its way")
    drop.close()
    idle(bench)
    return texts


def test_small_messages_come_several_at_a_time(three: ClusterBench) -> None:
    far, holders = fill(three)
    expected = holders[0].texts(BOX)
    single, together = counted(holders, Kind.FETCH), counted(holders, Kind.TEXTS)
    assert take_all(three, far) == expected
    assert sum(map(len, single)) == 1  # the first one, for which the client waits
    assert COUNT // MOST_TEXTS <= sum(map(len, together)) <= COUNT // (MOST_TEXTS // 2)


def test_one_that_is_damaged_comes_by_itself_from_another_holder(three: ClusterBench) -> None:
    far, holders = fill(three, 12)
    expected = holders[0].texts(BOX)
    damage(holders[0])
    single = counted(holders, Kind.FETCH)
    assert take_all(three, far) == expected
    assert sum(map(len, single)) >= 1


def test_a_holder_that_does_not_answer_is_replaced(three: ClusterBench) -> None:
    far, holders = fill(three)
    expected = holders[0].texts(BOX)
    _, drop = watched(far)
    texts = [far.text(drop, 1)]
    far.cut(drop._far.holders[drop._id(2)][0])
    texts += [far.text(drop, number) for number in range(2, COUNT + 1)]
    assert texts == expected
    drop.close()
    far.cut()
    idle(three)


def test_a_holder_with_too_much_to_send_is_asked_for_what_the_client_wants_alone(
    three: ClusterBench,
) -> None:
    far, holders = fill(three)
    expected = holders[0].texts(BOX)
    for node in holders:
        node.layer.requests._handlers[Kind.TEXTS] = lambda body, reply: reply(TOO_MANY)
    single = counted(holders, Kind.FETCH)
    _, drop = watched(far)
    texts = [far.text(drop, 1)]
    three.until(lambda: not drop._far._coming, "nothing is on its way")
    assert sum(map(len, single)) == 1
    texts += [far.text(drop, number) for number in range(2, COUNT + 1)]
    assert texts == expected
    drop.close()
    idle(three)


def test_an_answer_that_makes_no_sense_is_not_used(three: ClusterBench) -> None:
    far, holders = fill(three)
    expected = holders[0].texts(BOX)
    for node in holders:
        node.layer.requests._handlers[Kind.TEXTS] = lambda body, reply: reply([b"?"])
    assert take_all(three, far) == expected


def test_messages_that_are_not_in_memory_are_read_by_the_thread(
    three: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, holders = fill(three)
    expected = holders[0].texts(BOX)
    for node in holders:
        monkeypatch.setattr(node.layer.log.reader, "read_now", lambda *_: None)
    assert take_all(three, far) == expected


def test_a_session_that_ends_wants_nothing_more(three: ClusterBench) -> None:
    far, holders = fill(three)
    waiting: list[Any] = []
    for node in holders:
        node.layer.requests._handlers[Kind.TEXTS] = lambda body, reply: waiting.append(reply)
    _, drop = watched(far)
    assert far.text(drop, 1)
    three.until(lambda: bool(waiting), "the next ones are asked for")
    drop.close()
    for reply in waiting:
        reply([b"late"])
    idle(three)


def test_large_and_small_messages_between_each_other(three: ClusterBench) -> None:
    a = three.nodes[0]
    for size in (100, 300_000, 100, 200_000, 100, 100, 120_000, 100):
        assert a.stream([BOX], a_text(size)) is None
    far = lacking(three)
    (one, _) = [node for node in three.nodes if node is not far]
    assert take_all(three, far) == one.texts(BOX)
