"""Joining with etcd: the second answer waits for the proposal, which another may overtake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metad.cluster import joining
from metad.cluster.frames import Decoder, Kind, encode
from metad.cluster.identity import CA, CA_KEY
from metad.cluster.joining import JoinExchange, JoinService, read_answer, with_entering
from metad.cluster.proposals import Done
from metad.cluster.tokens import Tokens
from metad.cluster.view import Member, Membership, View
from metad.errors import ClusterError
from metad.system.osio import Osio
from tests.cluster.link_kit import Clock, End, Station
from tests.cluster.views import make_member, make_view

NOW = 1_000_000
ADDRESS, FINGERPRINT = "127.0.0.99:7525", "ab" * 32
TWO = make_view(make_member(1), make_member(2), epoch=4)


class FakeProposals:
    """They wait until the test decides."""

    compares = True

    def __init__(self) -> None:
        self.waiting: list[tuple[View, Done]] = []

    def propose(self, view: View, done: Done) -> None:
        self.waiting.append((view, done))


class Joining:
    """Node 1, and a client that has shown its token."""

    def __init__(self, place: Path, view: View = TWO) -> None:
        self.station = Station(1, view, Clock())
        self.proposals = FakeProposals()
        for name in (CA, CA_KEY):
            (place / name).write_text(name)
        self.stored: View | None = None
        self.waits: list[Callable[[], None]] = []
        service = JoinService(
            self.station.node,
            Osio(),
            place,
            lambda: NOW,
            self.proposals,
            lambda seconds, call: self.waits.append(call),
            self._look,
        )
        secret = Tokens(Osio(), place).make(NOW)
        self.wire = End()
        self.exchange = JoinExchange(service, self.wire, "127.0.0.99")
        self._decoder = Decoder()
        self.ask(joining.ask(secret, "1", ""))
        kind, body = self.answer()
        assert kind == Kind.ANSWER
        number, with_etcd = read_answer(body, number=int, with_etcd=bool)
        assert with_etcd
        self.number: int = number

    def _look(self) -> None:
        if self.stored is not None:
            self.station.view = self.stored

    def ask(self, body: bytes) -> None:
        self.exchange.feed(encode(Kind.JOIN, 1, 0, (body,), len(body)))

    def enter(self) -> None:
        self.ask(joining.enter(ADDRESS, FINGERPRINT))

    def answer(self) -> tuple[int, bytes]:
        data = b"".join(self.wire.sent)
        self.wire.sent.clear()
        ((kind, _, _, _, body),) = self._decoder.feed(data)
        return kind, body

    def hear(self) -> None:
        """The time has passed in which its node hears of a view that came first."""
        (call,) = self.waits
        self.waits.clear()
        call()

    def decide(self, reason: str = "", view: View | None = None) -> View:
        """The proposal that waits stands, or `view` is in force and it does not."""
        proposed, done = self.proposals.waiting.pop(0)
        self.station.view = view or (self.station.view if reason else proposed)
        done(reason)
        return proposed


def test_the_answer_comes_when_the_view_stands(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    assert not one.wire.sent
    proposed = one.decide()
    kind, body = one.answer()
    (encoded,) = read_answer(body, view=bytes)
    assert (kind, View.decode(encoded)) == (Kind.ANSWER, proposed)
    assert proposed.epoch == 5
    assert proposed.members[2] == Member(3, ADDRESS, FINGERPRINT, Membership.ENTERING, healed=True)
    assert one.station.lines == [f"node 3 ({ADDRESS}) has joined: epoch 5"]


def test_another_change_of_the_view_comes_first(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    healed = TWO.changed()
    one.decide("another view came first", healed)
    proposed = one.decide()
    assert proposed.epoch == healed.epoch + 1
    assert one.answer()[0] == Kind.ANSWER


def test_a_node_hears_late_of_the_change_that_came_first(tmp_path: Path) -> None:
    """Then the node that joins is not refused for it."""
    one = Joining(tmp_path)
    one.enter()
    one.decide("the view has changed meanwhile")
    assert not one.wire.sent
    one.station.view = TWO.changed()
    one.hear()
    assert one.decide().epoch == TWO.epoch + 2
    assert one.answer()[0] == Kind.ANSWER


def test_a_client_asks_again_while_its_node_waits_to_hear(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    one.decide("the view has changed meanwhile")
    one.enter()
    assert one.answer()[0] == Kind.REFUSED
    assert one.wire.closed
    one.hear()
    assert not one.wire.sent


def test_a_view_that_a_command_has_stored_counts(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.stored = TWO.changed(alone="accept")
    one.enter()
    proposed = one.decide()
    assert (proposed.epoch, proposed.alone) == (one.stored.epoch + 1, "accept")
    assert one.answer()[0] == Kind.ANSWER


def test_another_node_gets_the_number_first(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    other = with_entering(TWO, 3, "127.0.0.8:7525", "cd" * 32, with_etcd=True)
    one.decide("another view came first", other)
    assert one.answer() == (Kind.REFUSED, b"another node has joined meanwhile; use another token")
    assert one.wire.closed


def test_the_proposal_fails(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    one.decide("etcd does not answer")
    one.hear()
    assert one.answer() == (Kind.REFUSED, b"etcd does not answer")
    assert "may not join: etcd does not answer" in one.station.lines[0]


def test_views_that_keep_coming_end_the_attempt(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    for _ in range(joining.TRIES):
        one.decide("another view came first", one.station.view.changed())
    assert not one.proposals.waiting
    assert one.answer() == (Kind.REFUSED, b"another view came first")


def test_a_client_that_left_gets_its_number_all_the_same(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    one.exchange.close()
    proposed = one.decide()
    assert not one.wire.sent
    again = with_entering(proposed, 3, ADDRESS, FINGERPRINT, with_etcd=True)
    assert again is proposed


@pytest.mark.parametrize("address", [ADDRESS, "127.0.0.8:7525"])
def test_a_client_whose_node_was_removed_meanwhile_is_refused(tmp_path: Path, address: str) -> None:
    one = Joining(tmp_path)
    member = Member(3, address, FINGERPRINT, Membership.REMOVED, healed=True)
    one.station.view = TWO.changed(members=(*TWO.members, member))
    one.enter()
    text = b"node 3 was removed from the cluster; empty it and join again"
    assert one.answer() == (Kind.REFUSED, text)


def test_a_client_that_does_not_wait_is_refused(tmp_path: Path) -> None:
    one = Joining(tmp_path)
    one.enter()
    one.enter()
    assert one.answer()[0] == Kind.REFUSED
    one.decide()
    assert not one.wire.sent


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (make_member(9), "the address of node 9, which is active; .*remove 9` first"),
        (make_member(9, Membership.ENTERING), "which is entering"),
        (
            make_member(9, Membership.ABSENT),
            "which is absent, and not all mail is on other nodes yet",
        ),
    ],
)
def test_whose_address_a_new_node_does_not_get(member: Member, text: str) -> None:
    view = make_view(make_member(1), make_member(2), member)
    with pytest.raises(ClusterError, match=text):
        with_entering(view, 10, member.address, FINGERPRINT, with_etcd=True)


@pytest.mark.parametrize("state", [Membership.ABSENT, Membership.REMOVED])
def test_a_member_whose_mail_is_on_others_is_replaced(state: Membership) -> None:
    member = make_member(9, state, healed=True)
    view = make_view(make_member(1), make_member(2), member)
    entered = with_entering(view, 10, member.address, FINGERPRINT, with_etcd=True)
    assert entered.those(Membership.REMOVED) == (9,)
    assert entered.entering == (10,)
    assert entered.unhealed == ()


def test_a_removed_member_that_is_not_healed_stays_so() -> None:
    member = make_member(9, Membership.REMOVED)
    view = make_view(make_member(1), make_member(2), member)
    entered = with_entering(view, 10, member.address, FINGERPRINT, with_etcd=True)
    assert entered.unhealed == (9,)


def test_a_cluster_has_at_most_eight_nodes() -> None:
    view = make_view(*(make_member(number) for number in range(1, 9)))
    with pytest.raises(ClusterError, match="at most 8 nodes"):
        with_entering(view, 9, ADDRESS, FINGERPRINT, with_etcd=True)
    left = view.changed(members=view.with_member(3, state=Membership.REMOVED, healed=True))
    assert with_entering(left, 9, ADDRESS, FINGERPRINT, with_etcd=True).entering == (9,)
