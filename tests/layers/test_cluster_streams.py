"""Large messages stream to nodes that get a copy while they arrive: two and three real nodes."""

from __future__ import annotations

import errno
import gc
import os
from typing import Any, cast

import pytest

from metad.cluster import streaming
from metad.cluster.frames import Kind
from metad.cluster.serving import Reply
from metad.cluster.streaming import Stream
from metad.errors import NoSpaceError, RefusedError
from metad.layers.base import Incoming
from metad.layers.bench import make_envelope, stuff
from metad.layers.cluster_outgoing import ClusterIncoming, CopiesAhead, Outgoing
from metad.layers.merged_mailbox import MergedMaildrop
from metad.limits import CHUNK_MEMORY, MESSAGE_MEMORY
from tests.layers.test_cluster import BOX, TEXT, here
from tests.layers.test_cluster_bodies import a_text, idle
from tests.support.cluster_bench import ClusterBench, Node

pytestmark = pytest.mark.slow

SIZE = 5_000_000
STEP = 64 << 10


class Sending:
    """A client of a node sends a large message, step by step."""

    def __init__(self, node: Node, size: int = SIZE) -> None:
        self._bench = node._bench
        self._layer = node.layer
        self.text = a_text(size)
        self._wire = stuff(self.text)
        self.incoming: Incoming = self._layer.begin_for([BOX])
        self._envelope = make_envelope(self._layer, [BOX], self.text)
        self.outcome: list[RefusedError | None] = []
        self.at = 0

    def step(self) -> bool:
        """One more piece arrives; False after the last."""
        piece = self._wire[self.at : self.at + STEP]
        if piece:
            self.incoming.write(piece)
            self.at += len(piece)
            self._bench.turn()
        return bool(piece)

    def go_to(self, share: float) -> None:
        while self.at < share * len(self._wire):
            self.step()

    def end(self) -> RefusedError | None:
        self.go_to(1)
        return self._bench.wait(lambda done: self.incoming.commit(self._envelope, done))

    @property
    def id(self) -> str:
        return self._envelope.id.hex()


def arriving(node: Node) -> list[int]:
    """The sizes of messages that come in pieces from other nodes."""
    return [one.spool.size for one in node.layer.requests.copies._arriving.values()]


def taker_of(bench: ClusterBench, *others: Node) -> Node:
    """The node to which the message streams."""
    bench.until(lambda: any(arriving(node) for node in others), "it streams")
    (node,) = [one for one in others if arriving(one)]
    return node


def ignore(node: Node, kind: Kind) -> None:
    """Have a node answer no requests of a kind."""
    node.layer.requests._handlers[kind] = lambda body, reply: None


def listed_once(bench: ClusterBench, sending: Sending) -> None:
    """Every node lists the message once, by the id that it got first, and sends it whole."""
    for node in bench.nodes:
        if node.is_up:
            assert [uid for uid, _ in node.listing(BOX)] == [sending.id]
            assert node.texts(BOX)[0].endswith(stuff(sending.text))


def test_the_copy_travels_while_the_message_arrives(two: ClusterBench) -> None:
    a, b = two.nodes
    sending = Sending(a)
    sending.go_to(0.9)
    two.until(lambda: sum(arriving(b)) > 0.8 * SIZE, "most of it is there before its end")
    assert (here(a), here(b)) == (0, 0)
    assert sending.end() is None
    assert (here(a), here(b)) == (1, 1)
    listed_once(two, sending)
    idle(two)


def test_neither_side_holds_it_in_memory(two: ClusterBench) -> None:
    a, b = two.nodes
    sending = Sending(a)
    most = {a.number: 0, b.number: 0}
    while sending.step():
        for node in (a, b):
            most[node.number] = max(most[node.number], node.layer.log.budget.used)
    window = streaming.WINDOW * streaming.STREAMED
    own = MESSAGE_MEMORY + CHUNK_MEMORY * MESSAGE_MEMORY // STEP
    assert streaming.STREAMED <= most[a.number] <= own + window
    assert most[b.number] <= own
    assert sending.end() is None
    idle(two)


def test_nothing_remains_of_a_message_that_the_client_aborts(two: ClusterBench) -> None:
    a, b = two.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    two.until(lambda: bool(arriving(b)), "it streams")
    sending.incoming.abort()
    two.until(lambda: not arriving(b), "the other has heard of it")
    idle(two)
    for node in (a, b):
        assert node.listing(BOX) == []


def test_nothing_remains_of_a_message_whose_node_is_gone(two: ClusterBench) -> None:
    a, b = two.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    two.until(lambda: bool(arriving(b)), "it streams")
    sending.incoming.abort()  # its spool; the worker ends before the other is told
    a.stop()
    two.until(lambda: not arriving(b), "its link has ended")
    idle(two)
    assert b.listing(BOX) == []


@pytest.mark.parametrize("when", ["arriving", "ended"])
def test_the_next_in_line_replaces_a_node_that_dies(three: ClusterBench, when: str) -> None:
    a, b, c = three.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    taker = taker_of(three, b, c)
    other = c if taker is b else b
    taker.stop()
    if when == "arriving":
        sending.go_to(0.6)
        three.until(lambda: bool(arriving(other)), "the next one has it from the start")
    assert sending.end() is None
    assert (here(a), here(other)) == (1, 1)
    listed_once(three, sending)
    idle_up(three)


def idle_up(bench: ClusterBench) -> None:
    up = [node for node in bench.nodes if node.is_up]
    bench.until(lambda: not any(one.layer.log.budget.used for one in up), "memory is free")


def test_the_next_in_line_replaces_a_node_that_refuses(three: ClusterBench) -> None:
    a, b, c = three.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    taker = taker_of(three, b, c)
    taker.layer.log.committer.blocked = True
    assert sending.end() is None
    taker.layer.log.committer.blocked = False
    assert here(taker) == 0
    listed_once(three, sending)
    idle(three)


@pytest.mark.parametrize("kind", [Kind.PART, Kind.STORE])
def test_the_next_in_line_replaces_a_node_that_stalls(
    three: ClusterBench, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PATIENCE_S", 0.3)
    a, b, c = three.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    taker = taker_of(three, b, c)
    ignore(taker, kind)
    assert sending.end() is None
    assert here(taker) == 0
    listed_once(three, sending)


def test_a_node_that_dies_after_its_sync_leaves_one_message(three: ClusterBench) -> None:
    """It has the message, but its answer is lost; the third copy shows nowhere twice."""
    a, b, c = three.nodes
    sending = Sending(a)
    sending.go_to(0.5)
    taker = taker_of(three, b, c)

    stored: list[object] = []

    class Silent:
        """A reply that never comes."""

        def __init__(self, reply: Reply) -> None:
            self.link = reply.link

        def __call__(self, answer: object) -> None:
            stored.append(answer)

    copies = taker.layer.requests.copies
    handlers = taker.layer.requests._handlers
    handlers[Kind.STORE] = lambda body, reply: copies.store(body, cast(Reply, Silent(reply)))
    outcome: list[Any] = []
    sending.go_to(1)
    sending.incoming.commit(sending._envelope, outcome.append)
    three.until(lambda: stored == [()], "it is durable there")
    taker.stop()
    three.until(lambda: bool(outcome), "an answer")
    assert outcome == [None]
    listed_once(three, sending)
    taker.start()
    listed_once(three, sending)
    assert [here(node) for node in three.nodes] == [1, 1, 1]


# --- The own disk ---------------------------------------------------------------------------------


def break_spool(node: Node, after: int) -> None:
    """From so many bytes on, nothing can be written to files without a name."""
    osio = node.layer.log.osio
    real_open, real_pwrite, written = osio.open, osio.pwrite, 0
    nameless: set[int] = set()

    def open_file(path: str, flags: int, mode: int = 0o600) -> int:
        fd = real_open(path, flags, mode)
        (nameless.add if flags & os.O_TMPFILE == os.O_TMPFILE else nameless.discard)(fd)
        return fd

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data) if fd in nameless else 0
        if fd in nameless and written > after:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real_pwrite(fd, data, offset)

    osio.open = open_file  # type: ignore[method-assign]
    osio.pwrite = pwrite  # type: ignore[method-assign]


@pytest.mark.parametrize("after", [0, 1_000_000])
def test_two_others_replace_a_full_disk(three: ClusterBench, after: int) -> None:
    a, b, c = three.nodes
    break_spool(a, after)
    sending = Sending(a)
    sending.go_to(0.5)
    a.layer.log.committer.blocked = True
    assert sending.end() is None
    a.layer.log.committer.blocked = False
    assert (here(a), here(b), here(c)) == (0, 1, 1)
    listed_once(three, sending)
    idle(three)


@pytest.mark.parametrize("after", [0, 1_000_000])
def test_a_log_that_has_room_takes_what_found_none_in_a_file(
    three: ClusterBench, after: int
) -> None:
    a = three.nodes[0]
    break_spool(a, after)
    sending = Sending(a)
    assert sending.end() is None
    assert here(a) == 1
    listed_once(three, sending)
    idle(three)


def test_a_node_that_takes_no_mail_streams_to_two_others(three: ClusterBench) -> None:
    a, b, c = three.nodes
    a.layer.log.committer.blocked = True
    sending = Sending(a)
    sending.go_to(0.5)
    three.until(lambda: bool(arriving(b) and arriving(c)), "it streams to both")
    assert sending.end() is None
    a.layer.log.committer.blocked = False
    assert (here(a), here(b), here(c)) == (0, 1, 1)


def test_a_full_disk_and_too_little_memory_is_no_space(three: ClusterBench) -> None:
    a, b, c = three.nodes
    break_spool(a, 0)
    budget = a.layer.log.budget
    taken = budget.half - 1_000_000
    assert budget.take(taken)
    sending = Sending(a)
    with pytest.raises(NoSpaceError):
        sending.go_to(1)
    sending.incoming.abort()
    three.until(lambda: not arriving(b) and not arriving(c), "the others have heard of it")
    budget.give_back(taken)
    idle(three)


def test_a_full_disk_of_one_of_two_is_no_space(two: ClusterBench) -> None:
    a, _ = two.nodes
    break_spool(a, 0)
    with pytest.raises(NoSpaceError):
        Sending(a).go_to(1)


# --- Views ----------------------------------------------------------------------------------------


def next_view(bench: ClusterBench, *nodes: Node) -> None:
    for node in nodes:
        view = node.layer.peers.view()
        node.layer.adopt(view.changed(members=view.with_member(1, weight=view.epoch + 200)))


def test_another_view_while_it_arrives_changes_nothing(two: ClusterBench) -> None:
    a, b = two.nodes
    sending = Sending(a)
    for share in (0.3, 0.6, 0.9):
        sending.go_to(share)
        next_view(two, a if share == 0.6 else b)
    two.until(lambda: len(arriving(b)) == 1, "one stream")
    assert sending.end() is None
    listed_once(two, sending)
    idle(two)


def test_a_view_that_changes_at_the_end_costs_one_more_try(two: ClusterBench) -> None:
    a, b = two.nodes
    stores: list[bytes] = []
    handlers = b.layer.requests._handlers
    real = handlers[Kind.STORE]

    def store(body: bytes, reply: Reply) -> None:
        stores.append(body)
        if len(stores) == 1:
            next_view(two, b)
        real(body, reply)

    handlers[Kind.STORE] = store
    sending = Sending(a)
    assert sending.end() is None
    assert len(stores) == 2
    listed_once(two, sending)
    idle(two)


def test_a_view_that_changes_twice_refuses_the_message(two: ClusterBench) -> None:
    a, b = two.nodes
    handlers = b.layer.requests._handlers
    real = handlers[Kind.STORE]

    def store(body: bytes, reply: Reply) -> None:
        next_view(two, b)
        real(body, reply)

    handlers[Kind.STORE] = store
    assert isinstance(Sending(a).end(), RefusedError)
    two.until(lambda: two.tick() or not a.listing(BOX), "its tombstone is known")
    assert b.listing(BOX) == []
    idle(two)


# --- Many, and bounds -----------------------------------------------------------------------------


def test_many_at_once_share_the_link(two: ClusterBench) -> None:
    """More than may be outstanding on a link."""
    a, b = two.nodes
    count, size = 12, 2_000_000
    sendings = [Sending(a, size) for _ in range(count)]
    outcomes: list[Any] = []
    while sum(sending.step() for sending in sendings):
        pass
    for sending in sendings:
        sending.incoming.commit(sending._envelope, outcomes.append)
    two.until(lambda: len(outcomes) == count, "all are answered")
    assert outcomes == [None] * count
    assert (here(a), here(b)) == (count, count)
    idle(two)


def names_of(kinds: tuple[type, ...]) -> list[str]:
    """Of each object of one of these classes that is not freed."""
    return sorted(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)


def test_messages_leave_no_garbage_that_a_collector_must_find(two: ClusterBench) -> None:
    """A worker collects garbage rarely, and does not count it in its budget."""
    a, b = two.nodes
    kinds = (Outgoing, CopiesAhead, Stream, ClusterIncoming, MergedMaildrop)
    gc.collect()
    gc.disable()
    try:
        for size in (1000, 300_000, 2_000_000):
            assert a.send([BOX], a_text(size)) is None
            assert a.stream([BOX], a_text(size)) is None
            sending = Sending(a, size)
            sending.go_to(1)
            sending.incoming.abort()
        del sending
        assert len(b.texts(BOX)) == 6
        copies = b.layer.requests.copies
        copies._is_taken = lambda: False  # type: ignore[method-assign]
        for size in (1000, 2_000_000):
            assert isinstance(a.stream([BOX], a_text(size)), RefusedError)
        del copies._is_taken
        # The thread of each committer keeps its last group until the next one.
        assert a.send([BOX], b"last\r\n") is None
        idle(two)
        # A thread lets go of what it has done a little after it has told so.
        two.until(lambda: names_of(kinds) in ([], ["Outgoing"]), "no more is left")
    finally:
        gc.enable()


def test_streams_that_arrive_are_bounded(
    two: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metad.layers.arriving_copies.CLUSTER_STREAMS", 2)
    a, b = two.nodes
    sendings = [Sending(a) for _ in range(3)]
    for sending in sendings:
        sending.go_to(0.3)
    two.until(lambda: len(arriving(b)) == 2, "two of them stream")
    assert sendings[0].end() is None
    assert sendings[2].end() is None  # again, from the start
    sendings[1].incoming.abort()
    idle(two)


def test_a_message_that_is_too_large_for_a_cluster_is_refused(
    two: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metad.layers.arriving_copies.CLUSTER_TEXT", 1_000_000)
    a, b = two.nodes
    sending = Sending(a)
    assert isinstance(sending.end(), RefusedError)
    assert not arriving(b)
    idle(two)


def test_a_message_that_is_larger_than_a_log_there_is_not_kept_at_all(two: ClusterBench) -> None:
    a, b = two.nodes
    writer = b.layer.log.committer.writer
    assert writer is not None
    whole, writer.log = writer.log, writer.log._replace(size=SIZE // 2)
    assert isinstance(Sending(a).end(), RefusedError)
    assert not arriving(b)
    writer.log = whole
    assert Sending(a).end() is None
    idle(two)


def test_a_stream_that_does_not_verify_is_not_stored(two: ClusterBench) -> None:
    a, b = two.nodes
    copies = b.layer.requests.copies
    sending = Sending(a)
    sending.go_to(0.5)
    two.until(lambda: bool(arriving(b)), "it streams")
    (one,) = copies._arriving.values()
    one.digest.update(b"?")
    assert isinstance(sending.end(), RefusedError)
    assert here(b) == 0
    idle(two)


def test_copies_wait_in_a_file_while_memory_is_short(two: ClusterBench) -> None:
    a, b = two.nodes
    budget = b.layer.log.budget
    taken = budget.limit
    assert budget.take(taken)
    assert a.send([BOX], a_text(100_000)) is None
    assert budget.used == taken
    budget.give_back(taken)
    assert len(b.texts(BOX)) == 1
    idle(two)


def test_a_message_that_a_member_cannot_take_keeps_no_other_one_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mail from before the cluster may be larger than what the new member's logs hold."""
    with ClusterBench(2, copies=1, entering=2) as bench:
        a, b = bench.nodes
        assert a.stream([BOX], a_text(SIZE)) is None
        for box in range(BOX + 1, BOX + 11):
            assert a.send([box], TEXT) is None
        monkeypatch.setattr("metad.layers.arriving_copies.CLUSTER_TEXT", SIZE // 2)
        bench.until(
            lambda: bench.tick() or all(here(b, BOX + one) for one in range(1, 11)), "the others"
        )
        bench.until(lambda: any("not taken by nodes" in one for one in a.reports), "a line")
        assert here(b) == 0
        assert a.layer.walked[0] < a.layer.peers.view().epoch
        monkeypatch.undo()
        a.layer._steward._walks_after_ns = 0
        assert bench.settle().copies == 2
        assert here(b) == 1
        idle_up(bench)


def test_a_walk_streams_large_messages() -> None:
    with ClusterBench(2, copies=1, entering=2) as bench:
        a, b = bench.nodes
        text = a_text(SIZE)
        assert a.stream([BOX, BOX + 1], text) is None
        kinds: list[int] = []
        handle = b.layer.requests.handle

        def counted(kind: int, body: bytes, reply: Reply) -> None:
            kinds.append(kind)
            assert len(body) <= 256 << 10
            handle(kind, body, reply)

        b.layer._node.handler = counted
        assert bench.settle().copies == 2
        assert (here(b), here(b, BOX + 1)) == (1, 1)
        assert Kind.COPY not in kinds
        a.stop()
        assert b.texts(BOX)[0].endswith(stuff(text))
        idle_up(bench)
