"""A mailbox is tried once more if a link was lost or the view changed, and never shown short."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from metad.cluster import rules
from metad.cluster.answers import (
    IN_USE,
    TOO_MANY,
    Answer,
    Answered,
    EpochChanged,
    LinkFailed,
    Refused,
)
from metad.cluster.frames import Kind
from metad.cluster.listed import ENTRY_SIZE, Listed
from metad.cluster.opening import Opened, open_mailbox
from metad.cluster.peers import AGAIN_S
from metad.cluster.uniting import PIECE
from metad.cluster.view import Membership, View
from metad.errors import ClusterError, MailboxInUseError, RefusedError
from tests.support.sizes import SEED, reached, scaled

from .test_mail import DONE, LOST, THREE, TWO, FakePeers, Own, box_of, entry, listed, view_of

OWN = Listed(entry(1))


class Session:
    """A session of node 1 opens a mailbox; the test decides when its timers are due."""

    def __init__(self, view: View, home: int = 1) -> None:
        self.peers = FakePeers(view)
        self.own = Own(OWN)
        self.outcome: list[Opened | RefusedError] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        box = box_of(view, home)
        open_mailbox(self.peers, box, self.own, self._later, self.outcome.append)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))

    def go_on(self) -> float:
        """The timer is due.  Returns its seconds."""
        (timer,) = self.timers
        self.timers.clear()
        self.peers.time += timer[0]
        timer[1]()
        return timer[0]

    @property
    def entries(self) -> list[bytes]:
        (outcome,) = self.outcome
        assert isinstance(outcome, Opened), outcome
        packed = bytes(outcome.union.entries)
        return [packed[at : at + ENTRY_SIZE] for at in range(0, len(packed), ENTRY_SIZE)]

    @property
    def error(self) -> str:
        (outcome,) = self.outcome
        assert isinstance(outcome, RefusedError)
        assert not self.own.is_locked
        return str(outcome)


def test_a_link_that_was_lost_while_it_was_asked_is_asked_again() -> None:
    session = Session(THREE)
    session.peers.answer(2, LOST)
    session.peers.answer(3, LOST)
    assert not session.outcome
    assert not session.own.is_locked
    assert session.go_on() == AGAIN_S
    session.peers.answer(2, LOST)
    session.peers.answer(3, listed(entry(2)))
    assert session.entries == [entry(1), entry(2)]
    assert session.own.is_locked


def test_a_view_that_changes_while_lists_come_is_used_at_once() -> None:
    session = Session(TWO)
    session.peers.adopt()
    session.peers.answer(2, EpochChanged())
    assert session.go_on() == 0
    session.peers.answer(2, listed(entry(2)))
    assert session.entries == [entry(1), entry(2)]


def test_a_view_that_changes_while_the_lock_is_asked_for() -> None:
    session = Session(TWO, home=2)
    (first,) = (one[2] for one in session.peers.asked)
    session.peers.adopt()
    session.peers.answer(2, EpochChanged(), Kind.LOCK)
    session.go_on()
    session.peers.answer(2, DONE, Kind.UNLOCK)  # of the first attempt
    (second,) = (one[2] for one in session.peers.asked)
    assert first != second  # so an UNLOCK that is late releases nothing
    session.peers.answer(2, DONE, Kind.LOCK)
    session.peers.answer(2, listed(entry(2)), Kind.LIST)
    assert session.entries == [entry(1), entry(2)]


@pytest.mark.parametrize("answer", [LOST, EpochChanged()])
def test_it_is_tried_twice_and_no_more(answer: Answer) -> None:
    session = Session(THREE)
    for attempt in range(2):
        session.peers.answer(2, answer)
        session.peers.answer(3, answer)
        if not attempt:
            session.go_on()
    assert not session.timers
    assert session.error == "nodes 2 and 3 do not answer"


def test_the_lock_at_another_node_is_given_back_before_the_second_attempt() -> None:
    session = Session(THREE, home=2)
    session.peers.answer(2, DONE, Kind.LOCK)
    session.peers.answer(2, LOST, Kind.LIST)
    session.peers.answer(3, LOST, Kind.LIST)
    assert [one[1] for one in session.peers.asked] == [Kind.UNLOCK]
    session.peers.answer(2, DONE, Kind.UNLOCK)
    session.go_on()
    assert [one[1] for one in session.peers.asked] == [Kind.LOCK]


@pytest.mark.parametrize("word", [True, False])
def test_what_a_second_attempt_cannot_mend_is_refused_at_once(word: bool) -> None:
    session = Session(THREE)
    session.peers.word = word
    session.peers.answer(2, Refused("the index lags"))
    session.peers.answer(3, Refused("the index lags"))
    assert session.error == "nodes 2 and 3 do not answer"
    away = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT, Membership.ABSENT)
    session = Session(away)
    session.peers.answer(2, LOST)
    assert "nodes 3 and 4 may have mail that no other node has" in session.error
    session = Session(TWO, home=2)
    session.peers.answer(2, IN_USE, Kind.LOCK)
    (outcome,) = session.outcome
    assert isinstance(outcome, MailboxInUseError)


def test_a_node_that_is_no_longer_active_in_the_new_view() -> None:
    session = Session(TWO)
    members = TWO.with_member(1, state=Membership.ABSENT)
    session.peers.current = TWO.changed(members=members)
    session.peers.answer(2, EpochChanged())
    session.go_on()
    assert "not an active member" in session.error


def test_the_second_attempt_is_under_the_view_of_its_own_time() -> None:
    session = Session(THREE)
    session.peers.answer(2, LOST)
    session.peers.answer(3, LOST)
    session.peers.adopt()  # a node is back
    session.go_on()
    session.peers.answer(2, listed(entry(2)))
    session.peers.answer(3, listed())
    assert session.entries == [entry(1), entry(2)]


def test_a_member_with_too_much_to_send_is_asked_again() -> None:
    session = Session(THREE)
    session.peers.answer(2, TOO_MANY)
    session.peers.answer(3, LOST)
    assert session.go_on() == AGAIN_S
    session.peers.answer(2, listed(entry(2)))
    session.peers.answer(3, LOST)
    assert session.entries == [entry(1), entry(2)]


def test_a_lock_that_is_refused_for_another_reason_is_given_back() -> None:
    """The refusal may have replaced the answer to a lock that was given."""
    session = Session(TWO, home=2)
    session.peers.answer(2, TOO_MANY, Kind.LOCK)
    assert [one[1] for one in session.peers.asked] == [Kind.UNLOCK]
    session.peers.answer(2, DONE, Kind.UNLOCK)
    assert session.go_on() == AGAIN_S
    session.peers.answer(2, Refused("this node distrusts its disk"), Kind.LOCK)
    session.peers.answer(2, DONE, Kind.UNLOCK)
    assert not session.own.is_locked  # the next in line may not give what others get at the home
    assert "node 2: this node distrusts its disk" in session.error


def test_a_lock_or_a_view_that_cannot_be_read_is_an_error() -> None:
    session = Session(TWO, home=2)
    session.own.fails = True
    session.peers.answer(2, LOST, Kind.LOCK)
    assert "Too many open files" in session.error
    session = Session(TWO)
    session.peers.view = unreadable  # type: ignore[method-assign]
    session.peers.answer(2, listed())
    assert "the cluster's view cannot be read: torn" in session.error
    session = Session(THREE)
    session.peers.answer(2, LOST)
    session.peers.answer(3, LOST)
    session.peers.view = unreadable  # type: ignore[method-assign]
    session.go_on()
    assert "the cluster's view cannot be read: torn" in session.error


def unreadable() -> View:
    raise ClusterError("torn")


def test_others_have_their_turn_while_long_lists_are_united() -> None:
    many = b"".join(map(entry, range(2 * PIECE + 1)))
    session = Session(TWO)
    session.peers.answer(2, Answered(Listed(many).pack()))
    turns = 0
    while session.timers:
        assert session.go_on() == 0
        turns += 1
    assert turns == 2
    assert len(session.entries) == 2 * PIECE + 1


def test_a_list_that_is_not_in_order_is_an_error() -> None:
    session = Session(TWO)
    session.peers.answer(2, listed(entry(3), entry(2)))
    assert "not in the order of their ids" in session.error


@pytest.mark.slow
def test_whatever_is_lost_no_list_is_short() -> None:
    """Nodes answer, are lost or refuse, in any order and in both attempts: a list that comes heard
    as many as the rule wants, all in one attempt."""
    random = Random(f"{SEED} opening")
    opened = again = 0
    for _ in range(scaled(2000)):
        session = Session(random.choice([TWO, THREE]), home=random.choice([1, 2]))
        session.peers.word = random.random() < 0.7
        heard: set[int] = set()
        while not session.outcome:
            if session.timers:
                session.go_on()
                heard = set()
                again += 1
            elif random.random() < 0.1:
                session.peers.adopt()
            else:
                heard |= _answer_one(random, session)
        (outcome,) = session.outcome
        if isinstance(outcome, Opened):
            opened += 1
            view, word = session.peers.view(), session.peers.word
            assert rules.may_list(view, heard | {1}, (), has_word=word)
            assert {one for held in outcome.union.holders.values() for one in held} == heard
    assert opened
    assert again
    reached("cluster: mailboxes opened while links are lost", opened)


def _answer_one(random: Random, session: Session) -> set[int]:
    """The member whose list was heard, if it was one."""
    member, kind, *_ = random.choice(session.peers.asked)
    answers: list[Answer] = [DONE, DONE, LinkFailed("lost"), EpochChanged(), Refused("no")]
    if kind == Kind.LIST:
        answers[:2] = [listed(entry(100 + member))] * 2
    answer = random.choice(answers)
    session.peers.answer(member, answer, kind)
    return {member} if kind == Kind.LIST and answer in answers[:2] else set()
