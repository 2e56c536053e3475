"""Copies that travel together: messages of one moment, on two and three real nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from metad.cluster.copies import Copy
from metad.cluster.frames import Kind
from metad.cluster.serving import Reply
from metad.errors import NoSpaceError, RefusedError
from metad.layers.base import Done
from metad.layers.bench import make_envelope, stuff
from tests.layers.test_cluster import BOX, TEXT, here
from tests.support.cluster_bench import ClusterBench, Node

pytestmark = pytest.mark.slow


def count_requests(node: Node, kind: Kind) -> list[int]:
    """Gets an item for each request of a kind that a node takes from now on."""
    taken: list[int] = []
    handlers = node.layer.requests._handlers
    real = handlers[kind]

    def counting(body: bytes, reply: Reply) -> None:
        taken.append(len(body))
        real(body, reply)

    handlers[kind] = counting
    return taken


def send_at_once(bench: ClusterBench, node: Node, boxes: Sequence[int]) -> list[object]:
    """The answers to messages that arrive in one turn of the loop."""
    answers: list[object] = [...] * len(boxes)
    for place, box in enumerate(boxes):
        envelope = make_envelope(node.layer, [box], TEXT)
        node.layer.deliver(envelope, stuff(TEXT), partial(answers.__setitem__, place))
    bench.until(lambda: ... not in answers, "all are answered")
    return answers


def test_messages_that_arrive_together_go_to_a_peer_in_one_request(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    copies = count_requests(b, Kind.COPY)
    assert send_at_once(two, a, [BOX] * 20) == [None] * 20
    assert len(copies) == 1
    assert (here(a), here(b)) == (21, 21)
    assert a.listing(BOX) == b.listing(BOX)


def test_a_peer_that_refuses_one_of_a_request_costs_no_other(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    taking = b.layer.requests.copies
    real = taking._take

    def take(copy: Copy, done: Done) -> None:
        if copy.recipients[0].mailbox == BOX + 1:
            done(NoSpaceError("full"))
        else:
            real(copy, done)

    taking._take = take  # type: ignore[method-assign]
    copies = count_requests(b, Kind.COPY)
    answers = send_at_once(two, a, [BOX, BOX + 1, BOX])
    assert len(copies) == 1
    assert answers[::2] == [None, None]
    assert isinstance(answers[1], RefusedError)
    assert (here(a), here(b)) == (3, 3)
    assert (a.listing(BOX + 1), b.listing(BOX + 1)) == ([], [])


def test_so_many_messages_of_a_link_may_wait_and_no_more(
    two: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metad.layers.arriving_copies.MOST_UNANSWERED", 5)
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    assert send_at_once(two, a, [BOX] * 5) == [None] * 5
    assert all(isinstance(one, RefusedError) for one in send_at_once(two, a, [BOX] * 6))
    assert not b.layer.requests.copies._unanswered
    assert send_at_once(two, a, [BOX] * 5) == [None] * 5
    assert (here(a), here(b)) == (11, 11)


def test_a_peer_that_refuses_one_is_replaced_for_it_alone(three: ClusterBench) -> None:
    a, b, c = three.nodes
    boxes = [one for one in range(1, 200) if three.view.line(one)[:2] in ((1, 2), (2, 1))][:3]
    assert a.send(boxes, TEXT) is None
    taking = b.layer.requests.copies
    real = taking._take

    def take(copy: Copy, done: Done) -> None:
        if copy.recipients[0].mailbox == boxes[1]:
            done(NoSpaceError("full"))
        else:
            real(copy, done)

    taking._take = take  # type: ignore[method-assign]
    assert send_at_once(three, a, boxes) == [None] * 3
    assert [here(b, box) for box in boxes] == [2, 1, 2]
    assert [here(c, box) for box in boxes] == [0, 1, 0]
    for box in boxes:
        assert len(c.listing(box)) == 2


@pytest.mark.parametrize("timer", ["late", "first"])
def test_the_copy_is_on_its_way_before_the_own_disk_is_waited_for(
    two: ClusterBench, timer: str
) -> None:
    """Also if a busy loop runs the timer of the copies before the group begins."""
    a = two.nodes[0]
    for _ in range(3):
        assert a.send([BOX], TEXT) is None  # the disk is known to be quick, the loop waits for it
    committer = a.layer.log.committer
    committer._seconds = 0.0
    events: list[str] = []
    append, flush = committer._append, a.layer.links.flush

    def appended(*group: Any) -> Any:
        events.append("own disk")
        return append(*group)

    def flushed() -> bool:
        has_sent: bool = flush()
        events.extend(["sent"] * has_sent)
        return has_sent

    committer._append = appended  # type: ignore[assignment, method-assign]
    a.layer.links.flush = flushed  # type: ignore[method-assign]
    if timer == "first":
        a.layer.copies._later = lambda _, call: a.layer.log.loop.call_soon(call)
    assert a.send([BOX], TEXT) is None
    assert events[0] == "sent"
    assert "own disk" in events
