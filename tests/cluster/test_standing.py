"""What a node tells of itself is what the rules do with mail and logins, since when, and why."""

from __future__ import annotations

from random import Random

import pytest

from metad.cluster import rules
from metad.cluster.standing import Sight, Standings, find, short_of_copies
from metad.cluster.view import Membership, View
from metad.system import node_standing
from metad.system.node_standing import Obstacle, Short, Standing
from tests.cluster.views import make_member, make_view, random_view
from tests.support.sizes import SEED, reached, scaled

from .test_mail import FakePeers

ABSENT, ENTERING, REMOVED = Membership.ABSENT, Membership.ENTERING, Membership.REMOVED
THREE = make_view(*map(make_member, (1, 2, 3)))
TWO = make_view(*map(make_member, (1, 2)))
CASES = scaled(2000)


def changed(view: View, number: int, state: Membership, *, healed: bool = False) -> View:
    return view.changed(members=view.with_member(number, state=state, healed=healed))


@pytest.mark.parametrize(
    ("sight", "mail", "logins"),
    [
        (Sight(THREE, 1, {1, 2, 3}), Obstacle.NONE, Obstacle.NONE),
        (Sight(THREE, 1, {1, 2}), Obstacle.NONE, Obstacle.NONE),
        (Sight(THREE, 1, {1}), Obstacle.FEW, Obstacle.FEW),
        (Sight(THREE, 1, {1, 2}, is_refused=True), Obstacle.OLD_DISK, Obstacle.OLD_DISK),
        (Sight(TWO, 1, {1}), Obstacle.FEW, Obstacle.NONE),
        (Sight(TWO, 1, {1}, has_word=False), Obstacle.FEW, Obstacle.NO_WORD),
        (Sight(changed(THREE, 1, ABSENT), 1, {1, 2, 3}), Obstacle.ABSENT, Obstacle.ABSENT),
        (Sight(changed(THREE, 1, ENTERING), 1, {1, 2, 3}), Obstacle.ENTERING, Obstacle.ENTERING),
        (Sight(changed(THREE, 1, REMOVED), 1, {1, 2, 3}), Obstacle.REMOVED, Obstacle.REMOVED),
        (Sight(THREE, 9, {9, 1, 2, 3}), Obstacle.REMOVED, Obstacle.REMOVED),
        (
            Sight(changed(changed(THREE, 2, ABSENT), 3, ABSENT), 1, {1}),
            Obstacle.FEW, Obstacle.AWAY,
        ),
    ],
)  # fmt: skip
def test_why_mail_and_logins_are_refused(sight: Sight, mail: Obstacle, logins: Obstacle) -> None:
    found = find(sight)
    assert (found.mail, found.logins) == (mail, logins)


@pytest.mark.slow
def test_what_is_told_is_what_the_rules_do() -> None:
    random = Random(f"{SEED} standing")
    told = set()
    for _ in range(CASES):
        view = random_view(random)
        number = random.choice(view.members).number
        up = {one.number for one in view.members if random.random() < 0.7} | {number}
        word = random.random() < 0.5
        found = find(Sight(view, number, up, word))
        serves = rules.serves(view, number)
        entering = up.intersection(view.entering)
        takes = serves and rules.is_durable(view, up)
        lists = serves and rules.may_list(view, up, entering, has_word=word)
        assert (found.mail is Obstacle.NONE, found.logins is Obstacle.NONE) == (takes, lists)
        told |= {found.mail, found.logins}
        assert found.reached == len(up.intersection(view.active)) <= found.active
        assert number not in found.silent
        assert not up.intersection(found.silent)
    assert told == set(Obstacle) - {Obstacle.OLD_DISK}
    reached("cluster: random views, standings compared with the rules", CASES)


def test_which_mail_is_short_of_copies() -> None:
    assert short_of_copies(THREE) is Short.NONE
    assert short_of_copies(make_view(make_member(1))) is Short.NEW
    assert short_of_copies(changed(THREE, 3, ABSENT)) is Short.OLD
    assert short_of_copies(changed(THREE, 3, ABSENT, healed=True)) is Short.NONE
    assert short_of_copies(make_view(*THREE.members, read=1)) is Short.OLD
    four = make_view(*map(make_member, (1, 2, 3, 4)))
    assert short_of_copies(changed(changed(four, 3, ABSENT), 4, ABSENT)) is Short.AWAY


def test_others_that_can_hold_all_copies_suffice() -> None:
    assert find(Sight(THREE, 1, {1, 2, 3})).suffice
    assert not find(Sight(THREE, 1, {1, 2})).suffice
    assert not find(Sight(TWO, 1, {1, 2})).suffice


class Node:
    """Node 1, a second at a time."""

    def __init__(self, view: View = THREE) -> None:
        self.peers = FakePeers(view)
        self.up: set[int] = set()
        self.seconds = 1_000
        self.is_refused = False
        self.cells = memoryview(bytearray(8 * node_standing.CELLS)).cast("Q")
        self.begin()

    def begin(self) -> None:
        """A worker starts."""
        clocks = (lambda: self.seconds * 10**9, lambda: self.seconds * 10**9)
        self.standings = Standings(self.cells, self.peers, self.up.__contains__, clocks)

    def tick(self) -> Standing | None:
        self.seconds += 1
        self.standings.tick(is_refused=self.is_refused)
        return node_standing.read(self.cells, self.seconds * 10**9)

    def now(self) -> Standing:
        found = self.tick()
        assert found is not None
        return found


def test_nothing_is_told_before_links_could_be_made() -> None:
    node = Node()
    assert node.tick() is None
    node.up |= {2, 3}
    assert node.now().silent == ()


def test_a_link_that_is_dialed_again_at_once_is_no_alarm() -> None:
    node = Node()
    node.up |= {2, 3}
    node.tick()
    node.up.clear()
    assert node.now().mail is Obstacle.NONE
    node.up |= {2, 3}
    assert node.now().silent == ()
    node.up.clear()
    node.tick()
    assert node.now().silent == (2, 3)


def test_a_refusal_keeps_the_time_of_its_beginning_whatever_its_reason() -> None:
    node = Node()
    node.tick()
    began = node.now().mail_since
    assert began == node.seconds
    node.is_refused = True
    found = node.now()
    assert (found.mail, found.mail_since, found.logins_since) == (Obstacle.OLD_DISK, began, began)
    node.begin()  # the worker died
    node.tick()
    assert node.now().mail_since == began
    node.is_refused = False
    node.up |= {2, 3}
    assert (node.now().mail_since, node.now().logins_since) == (0, 0)
    node.up.clear()
    node.tick()
    assert node.now().mail_since == node.seconds > began


def test_a_lone_reader_without_word() -> None:
    node = Node(TWO)
    node.tick()
    assert node.now().logins is Obstacle.NONE
    node.peers.word = False
    found = node.now()
    assert (found.logins, found.logins_since) == (Obstacle.NO_WORD, node.seconds)
