"""Rule Walk: one node sends what others lack; the test answers for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from metad.cluster.answers import Answer, Answered, LinkFailed, Refused
from metad.cluster.fetching import Ask, unpack_ask
from metad.cluster.frames import Kind
from metad.cluster.view import Membership, View
from metad.cluster.walking import MOST_REFUSED, WINDOW, Missing, Sent, Walk
from tests.cluster.test_mail import LOST, THREE, TWO, FakePeers, an_id, view_of


def key(mailbox: int, number: int) -> bytes:
    return mailbox.to_bytes(4, "big") + an_id(number)


class FakeMail:
    def __init__(self, *pieces: list[bytes]) -> None:
        self.its = pieces
        self.missing: dict[bytes, Missing] = {}
        self.peers: FakePeers

    def pieces(self) -> Iterator[list[bytes]]:
        return iter(self.its)

    def send(self, member: int, message_id: bytes, mailboxes: Sequence[int], done: Sent) -> None:
        named = b",".join(b"%d" % one for one in mailboxes)
        if missing := self.missing.get(message_id):
            done(missing)
        else:
            self.peers.request(member, Kind.COPY, (message_id, named), done, 30.0)


class Walking:
    def __init__(self, view: View, mail: FakeMail) -> None:
        self.peers = mail.peers = FakePeers(view)
        self.outcome: list[bool] = []
        self.walk = Walk(self.peers, mail, self.outcome.append)
        self.walk.start()

    def lacks(self, member: int, *keys: bytes) -> None:
        self.peers.answer(member, Answered(b"".join(keys)), Kind.LACKS)

    def stored(self, member: int, answer: Answer | None = None) -> bytes:
        """Answer a COPY; its body."""
        body = next(one[2] for one in self.peers.asked if one[:2] == (member, Kind.COPY))
        self.peers.answer(member, answer or Answered(b""), Kind.COPY)
        return body


def test_only_what_is_missing_is_sent_and_once_for_all_its_mailboxes() -> None:
    walking = Walking(TWO, FakeMail([key(1, 1), key(1, 2), key(2, 1)], [key(3, 3)]))
    assert walking.peers.asked[0][2] == key(1, 1) + key(1, 2) + key(2, 1)
    walking.lacks(2, key(1, 1), key(2, 1))
    assert walking.stored(2) == an_id(1) + b"1,2"
    assert not walking.outcome
    walking.lacks(2)
    assert walking.outcome == [True]
    assert walking.walk.sent == 1


def test_a_member_is_asked_for_what_it_should_have_alone() -> None:
    boxes = range(1, 40)
    walking = Walking(THREE, FakeMail([key(box, 1) for box in boxes]))
    for member, _, body, _ in walking.peers.asked:
        asked = {int.from_bytes(body[at : at + 4], "big") for at in range(0, len(body), 20)}
        assert asked == {box for box in boxes if member in THREE.expected(box, an_id(1))}


def test_entering_members_get_all_while_too_few_are_active() -> None:
    short = view_of(Membership.ACTIVE, Membership.ENTERING, alone="accept")
    assert Walking(short, FakeMail([key(1, 1)])).peers.members == [2]
    enough = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ENTERING)
    assert Walking(enough, FakeMail([key(1, 1)])).peers.members == [2]


def test_so_many_copies_are_on_their_way_and_no_more() -> None:
    keys = [key(1, number) for number in range(100)]
    walking = Walking(TWO, FakeMail(keys))
    walking.lacks(2, *keys)
    for _ in range(100 - WINDOW):
        assert len(walking.peers.asked) == WINDOW
        walking.stored(2)
    assert not walking.outcome
    while walking.peers.asked:
        walking.stored(2)
    assert walking.outcome == [True]
    assert walking.walk.sent == 100


def test_a_walk_in_which_a_member_fails_was_none() -> None:
    for answer in (LinkFailed("lost"), Refused("no space"), Answered(b"torn")):
        walking = Walking(TWO, FakeMail([key(1, 1)]))
        walking.peers.answer(2, answer)
        assert walking.outcome == [False]
    walking = Walking(TWO, FakeMail([key(1, 1)], [key(1, 2)]))
    walking.lacks(2, key(1, 1))
    walking.stored(2, LinkFailed("lost"))
    assert walking.outcome == [False]


def test_a_message_that_is_refused_does_not_keep_the_others_back() -> None:
    walking = Walking(TWO, FakeMail([key(1, 1)], [key(1, 2)]))
    walking.lacks(2, key(1, 1))
    walking.stored(2, Refused("too large"))
    walking.lacks(2, key(1, 2))
    walking.stored(2)
    assert walking.outcome == [False]
    assert (walking.walk.sent, walking.walk.refused) == (1, 1)
    assert walking.walk.refusal == "node 2: too large"


def test_a_member_that_refuses_many_is_left_in_peace() -> None:
    keys = [key(1, number) for number in range(100)]
    walking = Walking(TWO, FakeMail(keys))
    walking.lacks(2, *keys)
    for _ in range(MOST_REFUSED + 1):
        assert not walking.outcome
        walking.stored(2, Refused("no space for mail"))
    assert walking.outcome == [False]
    assert walking.walk.refused == MOST_REFUSED


def test_a_walk_ends_with_its_epoch() -> None:
    walking = Walking(TWO, FakeMail([key(1, 1)], [key(1, 2)]))
    walking.peers.adopt()
    walking.lacks(2)
    assert walking.outcome == [False]


def test_what_was_deleted_meanwhile_is_left_out() -> None:
    mail = FakeMail([key(1, 1), key(1, 2)])
    mail.missing[an_id(1)] = Missing.GONE
    walking = Walking(TWO, mail)
    walking.lacks(2, key(1, 1), key(1, 2))
    assert walking.stored(2) == an_id(2) + b"1"
    assert walking.outcome == [True]


def test_a_walk_that_meets_damage_sends_the_rest_and_is_not_done() -> None:
    mail = FakeMail([key(1, 1), key(1, 2)], [key(1, 3)])
    mail.missing[an_id(1)] = Missing.DAMAGED
    walking = Walking(TWO, mail)
    walking.lacks(2, key(1, 1), key(1, 2))
    assert walking.stored(2) == an_id(2) + b"1"
    walking.lacks(2, key(1, 3))
    assert walking.stored(2) == an_id(3) + b"1"
    assert walking.outcome == [False]
    assert walking.walk.damaged == 1


@pytest.mark.parametrize(
    ("answer", "whole"), [(Answered(b"a piece"), True), (Refused("damaged"), False), (LOST, False)]
)
def test_what_is_damaged_here_is_the_task_of_a_member_that_can_read_it(
    answer: Answer, whole: bool
) -> None:
    box = next(box for box in range(1, 99) if set(THREE.expected(box, an_id(1))) == {1, 2})
    mail = FakeMail([key(box, 1)])
    mail.missing[an_id(1)] = Missing.DAMAGED
    walking = Walking(THREE, mail)
    walking.lacks(2, key(box, 1))
    ((member, kind, body, _),) = walking.peers.asked
    assert (member, kind) == (3, Kind.FETCH)
    assert unpack_ask(body) == Ask(box, an_id(1), 0, 0)
    assert not walking.outcome
    walking.peers.answer(3, answer)
    assert walking.outcome == [whole]


def test_an_answer_that_names_what_was_not_asked_is_not_believed() -> None:
    walking = Walking(TWO, FakeMail([key(1, 1)]))
    walking.lacks(2, key(9, 9))
    assert walking.outcome == [True]
    assert not walking.peers.asked
