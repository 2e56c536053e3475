"""Two links over a pipe, without sockets: what is served, what is refused, and what time does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from metad import limits
from metad.cluster import frames, greeting, hello
from metad.cluster.answers import TOO_MANY, Answer, Answered, EpochChanged, LinkFailed, Refused
from metad.cluster.frames import HEAD_SIZE, Kind, encode
from metad.cluster.outgoing import MOST_FRAMES
from metad.cluster.serving import Reply
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from tests.cluster.link_kit import Pipe, with_states
from tests.cluster.views import make_member, make_view
from tests.support.sizes import SEED

VIEW = make_view(make_member(1), make_member(2))
NEXT = VIEW.changed(copies=1)


def failed(got: list[Answer]) -> str:
    assert len(got) == 1
    assert isinstance(got[0], LinkFailed)
    return got[0].reason


# -- asking and answering


def test_a_request_is_answered():
    pipe = Pipe().connect()
    got = pipe.ask(b"mail")
    assert got == []
    pipe.run()
    assert got == [Answered(b"16:mail")]
    assert pipe.a.lines == ["link with node 2 (127.0.0.3:7525) is up"]
    assert pipe.b.lines == ["link with node 1 (127.0.0.2:40000) is up"]


def test_the_link_of_a_command_is_not_in_the_log_of_the_other_node():
    pipe = Pipe()
    pipe.a.node.is_command = True
    pipe.connect()
    assert pipe.taker.is_ready
    pipe.taker.close("closed by the other side")
    assert pipe.b.lines == []


def test_both_sides_may_ask():
    pipe = Pipe().connect()
    got, other = pipe.ask(b"x"), pipe.ask(b"y", kind=17, link=pipe.taker)
    pipe.run()
    assert (got, other) == ([Answered(b"16:x")], [Answered(b"17:y")])
    assert [reply.member for _, _, reply in pipe.b.asked] == [1]


def test_what_is_asked_before_the_link_is_up_is_sent_then():
    pipe = Pipe()
    got = pipe.ask(b"early")
    pipe.connect()
    assert got == [Answered(b"16:early")]


def test_an_early_request_without_patience_left_is_not_carried_out():
    pipe = Pipe()
    got = pipe.ask(b"early", patience=0.5)
    pipe.pass_time(0.75, deliver=False)
    assert failed(got) == "no answer in time"
    pipe.connect()
    assert pipe.b.asked == []
    assert pipe.dialer._asking.outstanding == 0


def test_a_refusal_reaches_the_asker():
    pipe = Pipe().connect()
    pipe.b.answers = lambda kind, body: Refused("the disk is full\x1b[2J")
    got = pipe.ask(b"")
    pipe.run()
    assert got == [Refused("the disk is full?[2J")]


def test_a_handler_that_fails_answers_and_the_link_goes_on():
    pipe = Pipe().connect()
    pipe.b.answers = lambda kind, body: [body[5:6] + body[9]]  # type: ignore[operator]
    got = pipe.ask(b"")
    pipe.run()
    assert got == [Refused("internal error")]
    assert pipe.b.lines[-1].startswith("panic: request 16 of node 1")
    pipe.b.answers = pipe.b.echo
    got = pipe.ask(b"x")
    pipe.run()
    assert got == [Answered(b"16:x")]


def test_answers_in_another_order_find_their_requests():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = [pipe.ask(b"%d" % number) for number in range(5)]
    pipe.run()
    for _, body, reply in reversed(pipe.b.asked):
        reply([body])
    pipe.run()
    assert got == [[Answered(b"%d" % number)] for number in range(5)]


def test_a_second_answer_is_dropped():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x")
    pipe.run()
    reply = pipe.b.asked[0][2]
    reply([b"1"])
    reply([b"2"])
    pipe.run()
    assert got == [Answered(b"1")]
    assert not pipe.dialer.is_closed


def test_an_answer_after_the_end_is_dropped():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x")
    pipe.run()
    pipe.taker.close("cut")
    pipe.b.asked[0][2]([b"late"])
    assert pipe.right.sent == type(pipe.right.sent)()
    pipe.dialer.close("cut")
    assert failed(got) == "cut"


# -- large bodies


@pytest.mark.parametrize("chop", [0, 1000])
def test_large_bodies_go_in_pieces(chop: int) -> None:
    pipe = Pipe().connect()
    pipe.chop = chop
    body = random.Random(SEED).randbytes(3 * frames.PIECE + 5)
    got = pipe.ask(body)
    pipe.run()
    assert got == [Answered(b"16:" + body)]
    assert pipe.dialer._asking.outstanding == 0


def test_small_frames_pass_between_the_pieces_of_a_large_one():
    pipe = Pipe().connect()
    pipe.left.full_after = 2
    large = pipe.ask(bytes(10 * frames.PIECE))
    small = pipe.ask(b"small", kind=17)
    pipe.step(pipe.left, pipe.taker, pipe.right)
    pipe.step(pipe.left, pipe.taker, pipe.right)
    pipe.step(pipe.left, pipe.taker, pipe.right)
    assert [kind for kind, _, _ in pipe.b.asked] == [17]
    pipe.run()
    assert small == [Answered(b"17:small")]
    assert [len(one.body) for one in large] == [10 * frames.PIECE + 3]


def test_pieces_of_several_requests_may_be_mixed():
    pipe = Pipe().connect()
    one = list(frames.pieces(16, 1001, 1, [b"1" * (frames.PIECE + 1)]))
    two = list(frames.pieces(17, 1002, 1, [b"2" * (frames.PIECE + 1)]))
    for frame in (one[0], two[0], one[1], two[1]):
        pipe.taker.feed(frame)
    assert [(kind, body[:1], len(body)) for kind, body, _ in pipe.b.asked] == [
        (16, b"1", frames.PIECE + 1),
        (17, b"2", frames.PIECE + 1),
    ]


def test_pieces_of_one_request_have_one_kind_and_epoch():
    pipe = Pipe().connect()
    one = list(frames.pieces(16, 1001, 1, [bytes(frames.PIECE + 1)]))
    pipe.taker.feed(one[0])
    pipe.taker.feed(encode(17, 1001, 1, (), 0))
    assert pipe.taker.reason == "the pieces of a request differ in kind or epoch"


# -- bounds


def test_so_much_may_be_outstanding_and_no_more():
    pipe = Pipe().connect()
    pipe.b.answers = None
    body = bytes(1024 * 1024)
    got = [pipe.ask(body) for _ in range(9)]
    assert [len(one) for one in got] == [0] * 7 + [1, 1]  # each costs a little more than 1 MiB
    assert failed(got[7]) == "too much waits for answers on this link"
    assert pipe.dialer._asking.outstanding <= limits.CLUSTER_OUTSTANDING
    pipe.run()
    pipe.b.asked[0][2]([])
    pipe.run()
    assert got[0] == [Answered(b"")]
    assert pipe.ask(body) == []


def test_parts_of_large_messages_leave_room_for_small_ones():
    pipe = Pipe().connect()
    pipe.b.answers = None
    part: list[Answer] = []
    sent = 0
    while not part:
        pipe.dialer.request(frames.Kind.PART, [bytes(frames.PIECE)], part.append, 1.0)
        sent += 1
    assert failed(part) == "too much waits for answers on this link"
    assert sent - 1 == limits.CLUSTER_PARTS // (frames.PIECE + limits.CLUSTER_REQUEST_MEMORY)
    assert pipe.ask(bytes(1024 * 1024)) == []


def test_requests_without_a_body_are_bounded_too():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = [pipe.ask(b"") for _ in range(5000)]
    waiting = sum(one == [] for one in got)
    assert waiting == limits.CLUSTER_OUTSTANDING // limits.CLUSTER_REQUEST_MEMORY
    pipe.run()
    assert len(pipe.b.asked) == waiting
    assert not pipe.taker.is_closed


@pytest.mark.parametrize("kind", sorted(frames.RELEASES))
def test_a_lock_or_a_message_is_given_back_however_much_waits(kind: int) -> None:
    pipe = Pipe().connect()
    pipe.b.answers = None
    size = limits.CLUSTER_OUTSTANDING + 1  # a large copy, of which the disk takes its time
    pipe.ask(bytes(size))
    pipe.run()
    pipe.b.answers = pipe.b.echo
    assert failed(pipe.ask(b"other")) == "too much waits for answers on this link"
    got: list[Answer] = []
    pipe.dialer.request(kind, [b"given back"], got.append, 1.0)
    pipe.run()
    assert got == [Answered(b"%d:given back" % kind)]
    assert not pipe.taker.is_closed


def test_one_large_request_may_be_larger_than_what_many_may_have():
    pipe = Pipe().connect()
    got = pipe.ask(bytes(limits.CLUSTER_OUTSTANDING + 1))
    pipe.run()
    assert len(got[0].body) == limits.CLUSTER_OUTSTANDING + 4
    assert failed(pipe.ask(bytes(limits.CLUSTER_BODY + 1))) == "larger than 64 MiB"


def test_a_stalled_peer_gets_no_more_although_nothing_waits_for_its_answers():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = [pipe.ask(bytes(1024 * 1024), patience=0.5) for _ in range(7)]
    pipe.pass_time(1.0)
    assert [failed(one) for one in got] == ["no answer in time"] * 7
    assert failed(pipe.ask(bytes(1024 * 1024))) == "too much waits for answers on this link"
    for _, _, reply in pipe.b.asked:
        reply([b"late"])
    pipe.run()
    assert [len(one) for one in got] == [1] * 7
    assert pipe.dialer._asking.outstanding == 0


def test_a_peer_that_sends_more_than_it_may_is_cut_off():
    pipe = Pipe().connect()
    pipe.b.answers = None
    body = bytes(frames.PIECE)
    for tag in range(1, 40):
        pipe.taker.feed(encode(16, tag, 1, (body,), len(body)))
    assert pipe.taker.reason == "more than 8 MiB of requests wait"
    assert len(pipe.b.asked) <= limits.CLUSTER_OUTSTANDING // frames.PIECE


@pytest.mark.slow
def test_a_request_without_an_end_is_cut_off():
    pipe = Pipe().connect()
    head = frames.HEAD.pack(frames.PIECE, 16, frames.MORE, 0, 1, 1)
    body = head + bytes(frames.PIECE)
    for _ in range(limits.CLUSTER_BODY // frames.PIECE + 1):
        pipe.taker.feed(body)
    assert pipe.taker.reason == "requests of more than 64 MiB at once"


@pytest.mark.slow
def test_an_answer_without_an_end_is_cut_off():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x")
    pipe.run()
    body = frames.HEAD.pack(frames.PIECE, 32, frames.MORE, 0, 1, 1) + bytes(frames.PIECE)
    for _ in range(limits.CLUSTER_BODY // frames.PIECE + 1):
        pipe.dialer.feed(body)
    assert failed(got) == "answers of more than 64 MiB at once"


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.ANSWER])
def test_pieces_that_are_smaller_than_they_must_be_are_refused(kind: int) -> None:
    pipe = Pipe().connect()
    pipe.b.answers = None
    pipe.ask(b"x")
    pipe.run()
    link = pipe.taker if kind == Kind.COPY else pipe.dialer
    link.feed(frames.HEAD.pack(0, kind, frames.MORE, 0, 1, 1))
    assert link.reason == "a piece is too small"


@pytest.mark.slow
@pytest.mark.parametrize(
    "frame", [encode(Kind.PING, 0, 1, (), 0), encode(16, 1, 0, (), 0), encode(16, 1, 1, (), 0)]
)
def test_a_peer_that_asks_and_never_reads_is_cut_off(frame: bytes) -> None:
    pipe = Pipe().connect()
    pipe.taker.pause()
    for _ in range(MOST_FRAMES + 1):
        pipe.taker.feed(frame)
    pipe.pass_time(0.25, deliver=False)
    assert pipe.taker.reason == "it does not read what it is sent"


def test_answers_that_the_asker_does_not_read_are_bounded():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = [pipe.ask(b"fetch") for _ in range(6)]
    pipe.run()
    pipe.taker.pause()
    for _, _, reply in pipe.b.asked:
        reply([bytes(3 * 1024 * 1024)])
    pipe.taker.resume()
    pipe.run()
    assert [type(one[0]) for one in got] == [Answered] * 2 + [Refused] * 4
    assert got[5] == [TOO_MANY]


def test_a_lock_that_was_granted_is_told_however_large_an_answer_waits():
    pipe = Pipe().connect()
    pipe.b.answers = lambda kind, body: (bytes(9 * 1024 * 1024),) if kind == Kind.LIST else ()
    pipe.right.full_after = 2
    listing = pipe.ask(b"", kind=Kind.LIST)
    lock, copy = pipe.ask(b"", kind=Kind.LOCK), pipe.ask(b"")
    pipe.run()
    assert (lock, copy) == ([Answered(b"")], [Answered(b"")])
    assert len(listing[0].body) == 9 * 1024 * 1024


# -- epochs


def test_the_older_side_adopts_the_newer_view_first():
    pipe = Pipe(VIEW, NEXT)
    got = pipe.ask(b"asked under epoch 1")
    pipe.connect()
    assert pipe.a.view == NEXT
    assert got == [EpochChanged()]
    assert pipe.b.asked == []
    got = pipe.ask(b"again")
    pipe.run()
    assert got == [Answered(b"16:again")]


def test_the_newer_asker_sends_its_view_first():
    pipe = Pipe(NEXT, VIEW)
    got = pipe.ask(b"x")
    pipe.connect()
    assert pipe.b.view == NEXT
    assert got == [Answered(b"16:x")]


def test_a_view_goes_once_over_each_link():
    pipe = Pipe().connect()
    pipe.a.view = NEXT
    for _ in range(3):
        pipe.ask(b"x")
    pipe.run()
    assert pipe.b.view == NEXT
    assert bytes(pipe.left.everything).count(NEXT.encode()) == 1
    assert bytes(pipe.right.everything).count(NEXT.encode()) == 0


def test_a_request_of_an_older_epoch_is_not_carried_out():
    pipe = Pipe().connect()
    got = pipe.ask(b"old")
    pipe.b.view = NEXT  # by another way, before the request arrives
    pipe.run()
    assert pipe.b.asked == []
    assert got == [EpochChanged()]
    assert pipe.a.view == NEXT


@pytest.mark.parametrize("kind", [Kind.UNLOCK, Kind.DROP])
def test_what_gives_something_back_is_carried_out_under_any_epoch(kind):
    """Found by the simulator, seed 2374: one that ceased to wait for the answer never asked again,
    and a mailbox stayed locked."""
    pipe = Pipe().connect()
    got = pipe.ask(b"mine", kind)
    pipe.b.view = NEXT
    pipe.run()
    assert [(asked, body) for asked, body, _ in pipe.b.asked] == [(kind, b"mine")]
    assert got == [EpochChanged()]


def test_a_large_request_whose_epoch_ends_under_way_is_not_carried_out():
    pipe = Pipe().connect()
    got = pipe.ask(bytes(3 * frames.PIECE))
    pipe.step(pipe.left, pipe.taker, pipe.right)
    pipe.b.view = NEXT
    pipe.run()
    assert (pipe.b.asked, got) == ([], [EpochChanged()])


def test_an_answer_under_another_epoch_does_not_count():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x")
    pipe.run()
    pipe.b.view = NEXT  # between the request and its answer
    pipe.b.asked[0][2]([b"done"])
    pipe.run()
    assert got == [EpochChanged()]
    assert pipe.a.view == NEXT


def test_an_answer_does_not_count_if_the_asker_has_another_view_now():
    pipe = Pipe().connect()
    got = pipe.ask(b"x")
    pipe.step(pipe.left, pipe.taker, pipe.right)
    pipe.a.view = NEXT
    pipe.run()
    assert got == [EpochChanged()]


def test_a_view_spreads_without_a_request():
    pipe = Pipe().connect()
    pipe.b.view = NEXT
    pipe.pass_time(0.25)
    assert pipe.a.view == NEXT


def test_a_view_that_cannot_be_stored_is_not_used():
    pipe = Pipe(NEXT, VIEW)
    pipe.b.cannot_adopt = OSError(28, "No space left on device")
    got = pipe.ask(b"x")
    pipe.connect()
    assert pipe.b.view == VIEW
    assert pipe.b.asked == []
    reason = "the view cannot be stored: No space left on device"
    assert failed(got) == reason
    assert f"warning: link with node 1 (127.0.0.2:40000) refused: {reason}" in pipe.b.lines
    assert f"warning: node 2 (127.0.0.3:7525) refuses the link: {reason}" in pipe.a.lines


def test_a_view_that_is_refused_closes_the_link():
    pipe = Pipe(NEXT, VIEW)
    pipe.b.cannot_adopt = ClusterError("another view of epoch 2")
    pipe.connect()
    assert pipe.dialer.reason == pipe.taker.reason == "another view of epoch 2"


def test_a_request_of_an_epoch_without_its_view_closes_the_link():
    pipe = Pipe().connect()
    pipe.taker.feed(encode(16, 1, 9, (), 0))
    assert pipe.taker.reason == "a request of epoch 9 without its view"
    assert pipe.b.asked == []


# -- who is refused: both logs tell why, and nothing is served


def refusal(pipe: Pipe, dialer: str = f"{1:064x}", taker: str = f"{2:064x}") -> tuple[str, str]:
    got = pipe.ask(b"mail")
    other = pipe.ask(b"mail", link=pipe.taker)
    pipe.connect(dialer, taker)
    assert pipe.a.asked == pipe.b.asked == []
    assert pipe.dialer.is_closed
    assert pipe.taker.is_closed
    assert len(pipe.ended) == 2
    failed(got)
    failed(other)
    assert len(pipe.a.lines) == len(pipe.b.lines) == 1, (pipe.a.lines, pipe.b.lines)
    return pipe.a.lines[0], pipe.b.lines[0]


def test_another_cluster():
    other = replace(VIEW, cluster="deadbeef" * 4)
    a, b = refusal(Pipe(VIEW, other))
    assert a == (
        "warning: link with node 2 (127.0.0.3:7525) refused: another cluster: deadbeef and c0ffee00"
    )
    assert b == (
        "warning: link with node 1 (127.0.0.2:40000) refused: "
        "another cluster: c0ffee00 and deadbeef"
    )


def test_a_refusal_is_in_each_log_once_until_a_link_is_up():
    other = replace(VIEW, cluster="deadbeef" * 4)
    pipe = Pipe(VIEW, other)
    refusal(pipe)
    for _ in range(3):
        pipe.dial().connect()
    assert len(pipe.a.lines) == len(pipe.b.lines) == 1
    pipe.b.view = VIEW
    assert pipe.dial().connect().dialer.is_ready
    pipe.b.view = other
    pipe.dial().connect()
    for station in (pipe.a, pipe.b):
        assert ["refused" in line for line in station.lines] == [True, False, True]


def test_refusals_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(greeting, "MOST_REFUSALS", 2)
    node = Pipe().a.node
    assert all(greeting.is_news(node, 2, reason) for reason in ("a", "b", "c"))
    assert len(node.refusals) == 1
    assert greeting.is_news(node, 0, "of a node that has not told its number")
    assert greeting.is_news(node, 0, "of a node that has not told its number")


def test_a_removed_member_is_refused_and_told():
    removed = NEXT.changed(members=with_states(VIEW, node1=Membership.REMOVED))
    a, b = refusal(Pipe(VIEW, removed))
    text = "node 1 was removed from the cluster; empty it and join again"
    assert b == f"warning: link with node 1 (127.0.0.2:40000) refused: {text}"
    assert a == f"warning: node 2 (127.0.0.3:7525) refuses the link: {text}"


def test_a_removed_member_cannot_make_itself_one_again():
    """It has its certificate and the CA's key; so its newer view must not be taken from it."""
    removed = NEXT.changed(members=with_states(VIEW, node1=Membership.REMOVED))
    forged = replace(VIEW, epoch=99)
    pipe = Pipe(forged, removed)
    refusal(pipe)
    assert pipe.b.view == removed


def test_a_view_sent_before_the_hello_is_not_taken():
    pipe = Pipe()
    pipe.taker.connected(pipe.right, f"{1:064x}")
    forged = replace(VIEW, epoch=99)
    pipe.taker.feed(encode(Kind.VIEW, 0, 99, (forged.encode(),), len(forged.encode())))
    assert pipe.taker.reason == "a frame before the HELLO"
    assert pipe.b.view == VIEW


def test_a_member_that_is_removed_while_the_link_is_up_is_out_at_once():
    pipe = Pipe().connect()
    pipe.b.view = NEXT.changed(members=with_states(VIEW, node1=Membership.REMOVED))
    got = pipe.ask(b"x")
    pipe.run()
    assert pipe.b.asked == []
    assert failed(got) == "node 1 was removed from the cluster; empty it and join again"


def test_a_removed_member_is_not_asked():
    pipe = Pipe().connect()
    pipe.a.view = NEXT.changed(members=with_states(VIEW, node2=Membership.REMOVED))
    assert failed(pipe.ask(b"x")) == "node 2 was removed from the cluster; empty it and join again"
    pipe.run()
    assert pipe.b.asked == []


def test_a_removed_member_cannot_send_a_view_over_an_old_link():
    pipe = Pipe().connect()
    pipe.b.view = NEXT.changed(members=with_states(VIEW, node1=Membership.REMOVED))
    forged = replace(VIEW, epoch=99).encode()
    pipe.taker.feed(encode(Kind.VIEW, 0, 99, (forged,), len(forged)))
    assert pipe.b.view.epoch == 3
    assert pipe.taker.is_closed


def test_an_unknown_node():
    a, b = refusal(Pipe(VIEW, make_view(make_member(2))))
    assert b == (
        "warning: link with node 1 (127.0.0.2:40000) refused: node 1 is not in the view of epoch 1"
    )
    # The other finds at the same time that there are two views.
    assert "there are two views of epoch 1" in a


def test_another_certificate():
    a, b = refusal(Pipe(), dialer="f" * 64)
    text = "node 1 does not have the certificate of the view of epoch 1"
    assert b == f"warning: link with node 1 (127.0.0.2:40000) refused: {text}"
    assert a == f"warning: node 2 (127.0.0.3:7525) refuses the link: {text}"


def test_the_other_nodes_certificate_at_the_address_that_was_dialed():
    a, _ = refusal(Pipe(), taker="e" * 64)
    assert a == (
        "warning: link with node 2 (127.0.0.3:7525) refused: "
        "node 2 does not have the certificate of the view of epoch 1"
    )


def test_another_node_at_the_address():
    three = make_view(make_member(1), make_member(2), make_member(3))
    pipe = Pipe(three)
    pipe.b.node.number = 3
    a, _ = refusal(pipe, taker=f"{3:064x}")
    assert a.endswith("refused: node 3 answers at the address of node 2")


def test_a_clone():
    pipe = Pipe()
    pipe.a.node.number = 2
    _, b = refusal(pipe, dialer=f"{2:064x}")
    assert b.endswith("refused: both are node 2: a copy of a node, or a wrong address")


def test_two_views_of_one_epoch():
    a, b = refusal(Pipe(VIEW, replace(VIEW, copies=1)))
    text = (
        "there are two views of epoch 1; on the node whose view is to win, "
        "use `metad cluster alone` once more"
    )
    assert a == f"warning: link with node 2 (127.0.0.3:7525) refused: {text}"
    assert b == f"warning: link with node 1 (127.0.0.2:40000) refused: {text}"


def test_two_views_of_one_epoch_that_arise_later():
    pipe = Pipe().connect()
    pipe.a.view, pipe.b.view = NEXT, VIEW.changed(alone="accept")
    pipe.pass_time(0.25)
    assert pipe.dialer.is_closed
    assert pipe.taker.is_closed
    assert any("two views of epoch 2" in line for line in pipe.a.lines + pipe.b.lines)


def test_no_common_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr(hello, "PROTOCOLS", (3, 4))
    pipe.b.node.release = "9.0"
    pipe.taker.connected(pipe.right, f"{1:064x}")
    monkeypatch.setattr(hello, "PROTOCOLS", (1, 2))
    pipe.dialer.connected(pipe.left, f"{2:064x}")
    pipe.step(pipe.right, pipe.dialer, pipe.left)
    assert pipe.a.lines == [
        "warning: link with node 2 (127.0.0.3:7525) refused: no common protocol: "
        "release 9.0 speaks 3 to 4, release 1.0 1 to 2"
    ]


def test_neighbouring_releases_share_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr(hello, "PROTOCOLS", (1, 2))
    pipe.taker.connected(pipe.right, f"{1:064x}")
    monkeypatch.setattr(hello, "PROTOCOLS", (1, 1))
    pipe.dialer.connected(pipe.left, f"{2:064x}")
    pipe.run()
    assert pipe.dialer.is_ready
    assert pipe.taker.is_ready


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode(16, 1, 1, (), 0), "a request before the HELLO"),
        (encode(Kind.PING, 0, 1, (), 0), "a frame before the HELLO"),
        (encode(Kind.HELLO, 0, 1, (b"\xc1",), 1), "a HELLO cannot be read"),
        (encode(Kind.HELLO, 0, 1, (b"\x80",), 1), "a HELLO cannot be read"),
        (encode(Kind.HELLO, 0, 1, (bytes(2000),), 2000), "a frame of 2,000 bytes is too long"),
        (frames.HEAD.pack(2000, Kind.HELLO, 0, 0, 0, 1), "a frame of 2,000 bytes is too long"),
        (encode(Kind.ANSWER, 1, 1, (), 0), "an answer to no request"),
        (b"GET / HTTP/1.1\r\n\r\n", "is too long"),
    ],
)
def test_nothing_is_served_before_the_hello(frame: bytes, reason: str) -> None:
    pipe = Pipe()
    pipe.taker.connected(pipe.right, f"{1:064x}")
    pipe.taker.feed(frame)
    assert reason in pipe.taker.reason
    assert pipe.b.asked == []
    assert pipe.right.closed == "close"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (encode(16, 0, 1, (), 0), "a request without a tag"),
        (encode(Kind.ANSWER, 7, 1, (), 0), "an answer to no request"),
        (encode(Kind.VIEW, 0, 1, (b"{}",), 2), "a view"),
    ],
)
def test_a_frame_that_has_no_place_closes_the_link(frame: bytes, reason: str) -> None:
    pipe = Pipe().connect()
    pipe.taker.feed(frame)
    assert reason in pipe.taker.reason
    assert pipe.b.asked == []


def test_two_requests_with_one_tag():
    pipe = Pipe().connect()
    pipe.b.answers = None
    pipe.taker.feed(encode(16, 5, 1, (), 0) * 2)
    assert pipe.taker.reason == "two requests have one tag"


def test_a_second_hello():
    pipe = Pipe().connect()
    data = bytes(pipe.left.everything)
    size = HEAD_SIZE + int.from_bytes(data[:4], "big")
    pipe.taker.feed(data[:size])
    assert pipe.taker.reason == "a second HELLO"


@pytest.mark.parametrize("field", hello.Hello._fields)
def test_a_hello_with_a_bad_field(field: str) -> None:
    good = hello.Hello(1, 1, "1.0", "c0ffee00" * 4, 1, bytes(8), 1, bytes(16), 5)
    assert hello.unpack(good.pack()) == good
    with pytest.raises(ClusterError, match=field):
        hello.unpack(hello.Hello(**good._asdict() | {field: None}).pack())


@pytest.mark.parametrize(
    "change", [{"number": 0}, {"epoch": 0}, {"digest": b""}, {"start": b""}, {"number": 1 << 16}]
)
def test_a_hello_out_of_bounds(change: dict[str, object]) -> None:
    good = hello.Hello(1, 1, "1.0", "c0ffee00" * 4, 1, bytes(8), 1, bytes(16), 5)
    with pytest.raises(ClusterError, match="bad"):
        hello.unpack(hello.Hello(**good._asdict() | change).pack())


# -- time


def test_a_deadline():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x", patience=1.0)
    pipe.pass_time(0.75)
    assert got == []
    pipe.pass_time(0.25)
    assert failed(got) == "no answer in time"
    assert not pipe.dialer.is_closed


def test_pings_keep_a_quiet_link():
    pipe = Pipe().connect()
    pipe.pass_time(60)
    assert pipe.dialer.is_ready
    assert pipe.taker.is_ready
    assert len(pipe.left.everything) < 60 * 2 * HEAD_SIZE + 300 + HEAD_SIZE


def test_silence_ends_a_link_after_three_seconds():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = pipe.ask(b"x", patience=60)
    pipe.pass_time(3.0, deliver=False)
    assert not pipe.dialer.is_closed
    pipe.pass_time(0.25, deliver=False)
    assert failed(got) == "silent for 3 s"
    assert pipe.left.closed == "abort"
    assert pipe.a.lines[-1] == ("warning: link with node 2 (127.0.0.3:7525) lost: silent for 3 s")
    assert failed(pipe.ask(b"y")) == "silent for 3 s"


def test_a_peer_that_sends_no_hello():
    pipe = Pipe()
    pipe.dialer.connected(pipe.left, f"{2:064x}")
    got = pipe.ask(b"x", patience=60)
    pipe.pass_time(3.25, deliver=False)
    assert failed(got) == "silent for 3 s"
    assert pipe.a.lines == ["warning: no link with node 2 (127.0.0.3:7525): silent for 3 s"]


def test_a_peer_that_sends_its_hello_byte_by_byte():
    pipe = Pipe()
    pipe.taker.connected(pipe.right, f"{1:064x}")
    pipe.taker.feed(frames.HEAD.pack(hello.MOST_HELLO, Kind.HELLO, 0, 0, 0, 1))
    for _ in range(13):
        pipe.taker.feed(b"x")
        pipe.pass_time(0.25)
    assert (pipe.taker.reason, pipe.right.closed) == ("not up after 3 s", "abort")


def test_a_connection_that_never_comes_about():
    pipe = Pipe()
    got = pipe.ask(b"x", patience=60)
    pipe.pass_time(3.25, deliver=False)
    assert failed(got) == "silent for 3 s"


def test_a_process_that_stood_still_reads_nothing_of_what_waits():
    pipe = Pipe().connect()
    got = pipe.ask(b"old")
    pipe.clock.now += 1.25  # SIGSTOP, or a machine that slept
    pipe.run()
    assert pipe.b.asked == []
    assert pipe.taker.reason == "this process stood still for 1.2 s"
    assert pipe.right.closed == "abort"
    pipe.dialer.tick()
    assert failed(got) == "this process stood still for 1.2 s"


def test_less_than_a_second_is_no_standing_still():
    pipe = Pipe().connect()
    got = pipe.ask(b"x")
    pipe.clock.now += 1.0
    pipe.run()
    assert got == [Answered(b"16:x")]


# -- the end


def test_all_that_waits_fails_when_the_link_ends():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got = [pipe.ask(b"%d" % number) for number in range(3)]
    pipe.run()
    pipe.dialer.close("closed by the other side")
    assert [failed(one) for one in got] == ["closed by the other side"] * 3
    assert pipe.ended == [pipe.dialer]
    pipe.dialer.close("again")
    assert pipe.ended == [pipe.dialer]
    assert failed(pipe.ask(b"")) == "closed by the other side"


def fail(_answer: Answer) -> None:
    raise OSError("too many open files")


@pytest.mark.parametrize("how", ["answered", "refused", "late", "stale", "ended"])
def test_a_done_that_raises_costs_no_other_request_its_answer(how: str) -> None:
    pipe = Pipe().connect()
    pipe.b.answers = None
    pipe.dialer.request(16, [b"1"], fail, 5.0)
    got = pipe.ask(b"2")
    pipe.run()
    if how == "late":
        pipe.pass_time(6.0)
    elif how == "ended":
        pipe.dialer.close("cut")
    else:
        if how == "stale":
            pipe.b.view = NEXT
        for _, _, reply in pipe.b.asked:
            reply(Refused("no") if how == "refused" else ())
        pipe.run()
    assert len(got) == 1
    assert [one for one in pipe.a.lines if "panic" in one] == [
        "panic: after the answer of another node: OSError('too many open files')"
    ]
    assert pipe.dialer.is_closed == (how == "ended")


def test_requests_are_answered_and_the_wire_is_closed_though_the_end_is_told_in_vain() -> None:
    pipe = Pipe().connect()
    pipe.a.node.ended = fail  # type: ignore[assignment]
    pipe.b.answers = None
    got = pipe.ask(b"x")
    pipe.run()
    pipe.dialer.close("cut")
    assert (failed(got), pipe.left.closed) == ("cut", "abort")


def test_done_may_ask_again():
    pipe = Pipe().connect()
    pipe.b.answers = None
    got: list[Answer] = []
    pipe.dialer.request(16, [b"x"], lambda one: pipe.dialer.request(16, [], got.append, 1), 5)
    pipe.run()
    pipe.dialer.close("cut")
    assert failed(got) == "cut"


def test_tags_start_again_and_skip_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe().connect()
    pipe.b.answers = None
    first = pipe.ask(b"first")
    pipe.dialer._asking._tag = frames.MOST_TAG - 1
    got = [pipe.ask(b"%d" % number) for number in range(3)]
    pipe.run()
    replies: list[Reply] = [reply for _, _, reply in pipe.b.asked]
    assert [reply._tag for reply in replies] == [1, frames.MOST_TAG, 2, 3]
    for number, reply in enumerate(replies):
        reply([b"%d" % number])
    pipe.run()
    assert (first, got) == ([Answered(b"0")], [[Answered(b"%d" % n)] for n in (1, 2, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_is_answered_exactly_once(seed: int) -> None:
    """Both ask, views change, transports are full, bytes are cut anywhere, a link may break."""
    rng = random.Random(SEED * 1000 + seed)
    pipe = Pipe().connect()
    pipe.chop = rng.choice([0, 7, 1000])
    pipe.left.full_after, pipe.right.full_after = rng.choice([0, 1, 3]), rng.choice([0, 2])
    asked: list[tuple[bytes, list[Answer]]] = []
    views: list[View] = [VIEW]
    for _ in range(150):
        if rng.random() < 0.1:
            views.append(views[-1].changed(copies=rng.choice([1, 2])))
            rng.choice([pipe.a, pipe.b]).view = views[-1]
        size = rng.choice([0, 5, 5000, 5000, 300_000]) if pipe.chop != 7 else rng.choice([0, 500])
        body = rng.randbytes(size)
        asked.append((body, pipe.ask(body, link=rng.choice([pipe.dialer, pipe.taker]))))
        for _ in range(rng.randrange(4)):
            pipe.step(*rng.choice([
                (pipe.left, pipe.taker, pipe.right), (pipe.right, pipe.dialer, pipe.left),
            ]))  # fmt: skip
    if seed % 4 == 3:
        pipe.dialer.close("cut")
        pipe.taker.close("cut")
    pipe.run()
    pipe.pass_time(0.5)
    for body, got in asked:
        assert len(got) == 1
        if isinstance(got[0], Answered):
            assert got[0].body == b"16:" + body
    if seed % 4 != 3:
        last = pipe.ask(b"last")
        pipe.run()
        assert last == [Answered(b"16:last")]
        assert pipe.a.view == pipe.b.view == views[-1]
        assert pipe.dialer._asking.outstanding == pipe.taker._asking.outstanding == 0
