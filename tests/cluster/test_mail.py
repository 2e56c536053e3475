"""Rules Write, Read and Delete at work: one node asks, the test answers for the others."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from metad.cluster.answers import IN_USE, Answer, Answered, EpochChanged, LinkFailed, Refused
from metad.cluster.copying import Copying
from metad.cluster.deleting import Deleting
from metad.cluster.frames import Kind
from metad.cluster.listed import ENTRY_SIZE, Listed
from metad.cluster.opening import LISTING_S, Opened, Opening
from metad.cluster.peers import AGAIN_S, Peers
from metad.cluster.uniting import Union
from metad.cluster.view import Member, Membership, View
from metad.errors import BehindError, MailboxInUseError, RefusedError

BOX = 7
LOST = LinkFailed("lost")
DONE = Answered(b"")


def view_of(*states: Membership, epoch: int = 5, copies: int = 2, alone: str = "refuse") -> View:
    members = tuple(
        Member(number, f"127.0.0.{number}:7525", f"{number:064x}", state, healed=False)
        for number, state in enumerate(states, 1)
    )
    return View("0" * 32, epoch, members, copies, copies, alone)


TWO = view_of(Membership.ACTIVE, Membership.ACTIVE)
THREE = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ACTIVE)


class FakePeers(Peers):
    """Node 1; requests wait in `asked` until the test answers, but for those to `unreachable`."""

    number = 1

    def __init__(self, view: View) -> None:
        self.current = view
        self.time = 100.0
        self.word = True
        self.asked: list[tuple[int, int, bytes, Callable[[Answer], None]]] = []
        self.unreachable: set[int] = set()

    def view(self) -> View:
        return self.current

    def now(self) -> float:
        return self.time

    def has_word(self) -> bool:
        return self.word

    def request(
        self,
        member: int,
        kind: int,
        parts: Sequence[Any],
        answered: Callable[[Answer], None],
        patience_s: float,
    ) -> None:
        if member in self.unreachable:
            answered(LOST)
        else:
            self.asked.append((member, kind, b"".join(parts), answered))

    def answer(self, member: int, answer: Answer, kind: int | None = None) -> None:
        """Answer the oldest request to a member."""
        for one in self.asked:
            if one[0] == member and kind in (None, one[1]):
                self.asked.remove(one)
                one[3](answer)
                return
        raise AssertionError(f"nothing was asked of {member}: {self.asked}")

    @property
    def members(self) -> list[int]:
        return sorted(one[0] for one in self.asked)

    def adopt(self) -> None:
        self.current = self.current.changed()


# --- Write ----------------------------------------------------------------------------------------


class Write(Copying):
    """One message of node 1 to mailboxes."""

    def __init__(self, view: View, *mailboxes: int) -> None:
        self.peers = FakePeers(view)
        super().__init__(self.peers, mailboxes or (BOX,))
        self.outcome: list[str | None] = []
        self.named: dict[int, list[int]] = {}
        self.due: list[Callable[[], None]] = []
        self.start()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == AGAIN_S
        self.due.append(call)

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        self.named[member] = list(mailboxes)
        self.peers.request(member, Kind.COPY, (), answered, 5.0)

    def _finish(self, reason: str | None) -> None:
        self.outcome.append(reason)

    def own(self, *, stored: bool = True) -> None:
        self.own_done(None if stored else RefusedError("full"))

    def answer(self, member: int, answer: Answer = DONE) -> None:
        self.peers.answer(member, answer)

    def pass_time(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()

    @property
    def failed(self) -> bool:
        return len(self.outcome) == 1 and isinstance(self.outcome[0], str)


def test_250_needs_the_own_copy_and_a_peers() -> None:
    for own_first in (True, False):
        write = Write(TWO)
        assert write.peers.members == [2]
        write.own() if own_first else write.answer(2)
        assert not write.outcome
        write.answer(2) if own_first else write.own()
        assert write.outcome == [None]


@pytest.mark.parametrize("answer", [LOST, Refused("no space for mail")])
def test_with_two_nodes_a_peer_that_does_not_store_it_costs_the_message(answer: Answer) -> None:
    write = Write(TWO)
    write.answer(2, answer)
    assert not write.outcome  # the own copy may still be on its way: the tombstone comes after it
    write.own()
    assert write.failed is (answer is not LOST)
    write.pass_time()
    if answer is LOST:
        write.answer(2, LOST)
        write.pass_time()
    assert write.failed
    assert not write.peers.asked


def test_a_lost_link_is_tried_once_more_and_the_same_message_is_confirmed() -> None:
    """Regression: while a process of the only other node died, the client got 451."""
    write = Write(TWO)
    write.own()
    write.answer(2, LOST)
    assert not write.outcome
    assert not write.peers.asked
    write.pass_time()
    assert write.peers.members == [2]
    write.answer(2)
    assert write.outcome == [None]


def test_a_member_that_refuses_is_asked_again_only_if_another_was_lost() -> None:
    write = Write(THREE)
    write.own()
    first, second = [one for one in THREE.line(BOX) if one != 1]
    write.answer(first, LOST)
    write.answer(second, Refused("no space for mail"))
    write.pass_time()
    assert write.peers.members == [first]
    write.answer(first)
    assert write.outcome == [None]


def test_answers_of_before_count_for_nothing_after_a_lost_link() -> None:
    """Three copies: what a member confirmed is asked for again, and confirmed again."""
    view = View("0" * 32, 5, THREE.members, 3, 3, "refuse")
    write = Write(view)
    write.own()
    write.answer(2)
    write.answer(3, LOST)
    write.pass_time()
    assert write.peers.members == [2, 3]
    write.answer(3)
    assert not write.outcome
    write.answer(2)
    assert write.outcome == [None]


def test_a_view_that_changes_after_a_lost_link_has_the_members_of_the_new_one_asked() -> None:
    write = Write(TWO)
    write.own()
    write.answer(2, LOST)
    write.peers.adopt()
    write.pass_time()
    write.answer(2, EpochChanged())  # the other has changed it once more
    write.peers.adopt()
    assert not write.outcome
    write.answer(2)
    assert write.failed  # the view changed again before the answer: not a third time


def test_the_next_in_line_replaces_a_peer() -> None:
    write = Write(THREE)
    first, second = [one for one in THREE.line(BOX) if one != 1]
    assert write.peers.members == [first]
    write.own()
    write.answer(first, LOST)
    assert write.peers.members == [second]
    write.answer(second)
    assert write.outcome == [None]


def test_two_peers_replace_the_own_disk() -> None:
    write = Write(THREE)
    write.own(stored=False)
    assert write.peers.members == [2, 3]
    write.answer(2)
    assert not write.outcome
    write.answer(3)
    assert write.outcome == [None]


def test_an_own_copy_that_fails_with_two_nodes_is_too_few() -> None:
    write = Write(TWO)
    write.answer(2)
    write.own(stored=False)
    assert write.failed


def test_entering_members_must_have_it_while_too_few_are_active() -> None:
    view = view_of(Membership.ACTIVE, Membership.ENTERING, Membership.ABSENT, alone="accept")
    write = Write(view)
    write.own()
    assert write.peers.members == [2]
    assert not write.outcome
    write.answer(2)
    assert write.outcome == [None]


def test_alone_is_refused_unless_it_is_allowed() -> None:
    for alone, outcome in (("accept", True), ("refuse", False)):
        write = Write(view_of(Membership.ACTIVE, Membership.ABSENT, alone=alone))
        write.own()
        assert (write.outcome == [None]) is outcome
        assert write.failed is not outcome


def test_copies_of_two_epochs_are_not_counted_together() -> None:
    write = Write(TWO)
    write.own()
    write.peers.adopt()
    write.answer(2)  # under the old epoch
    assert not write.outcome
    assert write.peers.members == [2]  # asked again
    write.answer(2)
    assert write.outcome == [None]


def test_the_epoch_may_change_once() -> None:
    write = Write(TWO)
    write.own()
    for _ in range(2):
        write.peers.adopt()
        write.answer(2, EpochChanged())
    assert write.failed


def test_a_late_answer_of_an_earlier_try_counts_for_nothing() -> None:
    write = Write(THREE)
    first, second = [one for one in THREE.line(BOX) if one != 1]
    write.own()
    late = write.peers.asked.pop()[3]
    write.peers.adopt()
    late(EpochChanged())
    late(DONE)
    assert not write.outcome
    write.answer(first, LOST)
    write.answer(second)
    assert write.outcome == [None]


def test_one_copy_to_each_peer_names_the_mailboxes_that_are_for_it() -> None:
    boxes = [next(n for n in range(1, 500) if THREE.line(n)[0] == home) for home in (2, 3)]
    write = Write(THREE, *boxes)
    assert write.named == {2: [boxes[0]], 3: [boxes[1]]}
    write.own()
    write.answer(2)
    assert not write.outcome
    write.answer(3)
    assert write.outcome == [None]


# --- Delete ---------------------------------------------------------------------------------------


class Delete:
    """A QUIT at node 1.  `due`: what waits for AGAIN_S to pass."""

    def __init__(self, view: View, *, own: bool | None = True) -> None:
        self.peers = FakePeers(view)
        self.outcome: list[str | None] = []
        self.due: list[Callable[[], None]] = []
        self.deleting = Deleting(self.peers, (b"ids",), self._later, self.outcome.append)
        self.deleting.start()
        if own is not None:
            self.deleting.own_done(stored=own)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == AGAIN_S
        self.due.append(call)

    def answer(self, member: int, answer: Answer = DONE) -> None:
        self.peers.answer(member, answer)

    def pass_time(self) -> None:
        (call,) = self.due
        self.due.clear()
        call()

    @property
    def failed(self) -> bool:
        assert not self.peers.asked
        assert not self.due
        return len(self.outcome) == 1 and isinstance(self.outcome[0], str)


def test_ok_to_quit_needs_all_answers_and_enough_of_them() -> None:
    delete = Delete(THREE)
    assert delete.peers.members == [2, 3]
    delete.answer(2)
    assert not delete.outcome
    delete.answer(3, LOST)
    assert delete.outcome == [None]


def test_no_member_can_be_reached_when_the_view_has_changed_and_the_outcome_is_told_once() -> None:
    delete = Delete(THREE)
    delete.answer(2, LOST)
    delete.answer(3, LOST)
    delete.peers.adopt()
    delete.peers.unreachable = {2, 3}
    delete.pass_time()
    assert delete.failed


def test_a_deletion_on_one_of_two_is_not_confirmed() -> None:
    delete = Delete(TWO)
    delete.answer(2, Refused("full"))
    assert delete.failed


@pytest.mark.parametrize("answer", [LOST, EpochChanged()])
def test_a_member_that_was_missed_is_asked_once_more(answer: Answer) -> None:
    """Regression: while a process of the only other node died, QUIT got -ERR."""
    delete = Delete(TWO)
    delete.answer(2, answer)
    assert not delete.outcome
    assert not delete.peers.asked
    delete.pass_time()
    delete.answer(2)
    assert delete.outcome == [None]


@pytest.mark.parametrize("answer", [LOST, EpochChanged(), Refused("full")])
def test_a_member_is_not_asked_a_third_time(answer: Answer) -> None:
    delete = Delete(TWO)
    delete.answer(2, LOST)
    delete.pass_time()
    delete.answer(2, answer)
    assert delete.failed


def test_what_members_confirmed_counts_when_the_others_are_asked_again() -> None:
    view = View("0" * 32, 5, THREE.members, 3, 3, "refuse")
    delete = Delete(view)
    delete.answer(2)
    delete.answer(3, LOST)
    delete.pass_time()
    assert delete.peers.members == [3]
    delete.answer(3)
    assert delete.outcome == [None]


def test_a_deletion_is_told_to_all_again_under_another_view() -> None:
    """What they confirmed under the view before does not count."""
    delete = Delete(THREE, own=None)
    delete.answer(2)
    delete.peers.adopt()
    delete.answer(3)
    assert not delete.peers.asked  # the own record comes first: it may fail
    delete.deleting.own_done(stored=True)
    assert delete.peers.members == [2, 3]
    delete.answer(2, LOST)
    assert not delete.outcome
    delete.answer(3)
    assert delete.outcome == [None]


def test_a_view_that_changes_while_a_link_is_dialed_has_all_asked() -> None:
    view = View("0" * 32, 5, THREE.members, 3, 3, "refuse")
    delete = Delete(view)
    delete.answer(2)
    delete.answer(3, LOST)
    delete.peers.adopt()
    delete.pass_time()
    assert delete.peers.members == [2, 3]
    delete.answer(3)
    delete.peers.adopt()
    delete.answer(2)
    assert delete.failed  # not a third time


def test_a_node_that_was_left_out_of_the_view_confirms_no_deletion() -> None:
    delete = Delete(TWO)
    delete.peers.current = view_of(Membership.ABSENT, Membership.ACTIVE, alone="accept")
    delete.answer(2)
    assert delete.failed


def test_a_deletion_that_goes_on_alone_is_confirmed_if_the_view_says_so() -> None:
    """The operator declares the other node off while QUIT waits for it."""
    delete = Delete(TWO)
    delete.peers.current = view_of(Membership.ACTIVE, Membership.ABSENT, alone="accept")
    delete.answer(2, LOST)
    assert delete.outcome == [None]


def test_a_deletion_that_is_not_stored_here_is_not_confirmed() -> None:
    delete = Delete(THREE, own=None)
    for member in (2, 3):
        delete.answer(member, LOST)
    delete.deleting.own_done(stored=False)
    assert delete.failed


# --- Read -----------------------------------------------------------------------------------------


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry(number: int, size: int = 10) -> bytes:
    return an_id(number) + size.to_bytes(4, "big")


class Own:
    def __init__(self, listed: Listed, *, is_free: bool = True) -> None:
        self.listed: Listed | RefusedError = listed
        self.is_free = is_free
        self.is_locked = self.fails = False

    def lock(self) -> bool:
        if self.fails:
            raise OSError(errno.EMFILE, "Too many open files")
        self.is_locked = self.is_free
        return self.is_free

    def unlock(self) -> None:
        self.is_locked = False

    def list(self, done: Callable[[Listed | RefusedError], None]) -> None:
        done(self.listed)


def box_of(view: View, home: int) -> int:
    return next(number for number in range(1, 500) if view.home(number) == home)


def at_once(seconds: float, call: Callable[[], None]) -> None:
    """In place of the loop's `call_later`."""
    assert not seconds
    call()


class Read:
    """A session of node 1 opens a mailbox whose home is `home`."""

    def __init__(self, view: View, own: Listed, home: int = 1, *, is_free: bool = True) -> None:
        self.peers = FakePeers(view)
        self.outcome: list[Opened | RefusedError] = []
        self.own = Own(own, is_free=is_free)
        box = box_of(view, home)
        Opening(self.peers, box, self.own, at_once, self.outcome.append).start()

    def answer(self, member: int, answer: Answer, kind: int | None = None) -> None:
        self.peers.answer(member, answer, kind)

    @property
    def opened(self) -> Opened:
        (outcome,) = self.outcome
        assert isinstance(outcome, Opened)
        return outcome

    @property
    def union(self) -> Union:
        return self.opened.union

    @property
    def entries(self) -> list[bytes]:
        packed = bytes(self.union.entries)
        return [packed[at : at + ENTRY_SIZE] for at in range(0, len(packed), ENTRY_SIZE)]

    @property
    def error(self) -> RefusedError:
        (outcome,) = self.outcome
        assert isinstance(outcome, RefusedError)
        assert not self.own.is_locked
        assert all(one[1] == Kind.UNLOCK for one in self.peers.asked)
        return outcome


def listed(*entries: bytes, dead: tuple[int, ...] = ()) -> Answered:
    return Answered(Listed(b"".join(entries), b"".join(map(an_id, dead))).pack())


def test_a_session_shows_the_union_without_any_tombstone() -> None:
    read = Read(TWO, Listed(entry(1) + entry(3) + entry(4), an_id(2)))
    read.answer(2, listed(entry(1), entry(2), entry(5), dead=(4,)))
    assert read.entries == [entry(1), entry(3), entry(5)]
    assert read.union.holders == {an_id(5): [2]}
    assert read.own.is_locked


def test_a_message_elsewhere_names_all_that_have_it() -> None:
    read = Read(THREE, Listed(b""))
    read.answer(2, listed(entry(1)))
    read.answer(3, listed(entry(1)))
    assert read.union.holders == {an_id(1): [2, 3]}


def test_unique_ids_come_with_the_list() -> None:
    read = Read(TWO, Listed(entry(1)))
    read.answer(2, Answered(Listed(entry(1), b"", {an_id(1): "theirs"}).pack()))
    assert read.union.uids == {an_id(1): "theirs"}


def test_one_of_two_lists_alone_one_of_three_does_not() -> None:
    for word in (True, False):
        read = Read(TWO, Listed(entry(1)))
        read.peers.word = word
        read.answer(2, LOST)
        if word:
            assert read.entries == [entry(1)]
        else:  # it may be cut off: rule Lone reader
            assert "node 2 does not answer" in str(read.error)
    read = Read(THREE, Listed(entry(1)))
    read.answer(2, LOST)
    read.answer(3, listed())
    assert read.entries == [entry(1)]
    read = Read(THREE, Listed(entry(1)))
    read.answer(2, LOST)
    read.answer(3, Refused("the index lags"))
    assert "nodes 2 and 3 do not answer" in str(read.error)


def test_members_that_are_away_with_mail_are_named() -> None:
    read = Read(view_of(Membership.ACTIVE, Membership.ABSENT, Membership.ABSENT), Listed(entry(1)))
    assert "nodes 2 and 3 may have mail that no other node has" in str(read.error)


OWN = Listed(entry(1) + entry(3), an_id(2), {an_id(3): "one"})


@pytest.mark.parametrize(
    "theirs",
    [
        OWN,
        OWN._replace(entries=entry(1)),
        OWN._replace(entries=entry(1) + entry(2) + entry(4)),
        OWN._replace(entries=entry(1) + entry(3, 11)),
        OWN._replace(tombstones=an_id(1)),
        OWN._replace(tombstones=b"", uids={}),
        OWN._replace(uids={an_id(3): "other"}),
        Listed(b""),
    ],
)
def test_a_list_that_is_partly_the_same_is_heard_as_if_it_came_whole(theirs: Listed) -> None:
    asked = Read(TWO, OWN)
    digests = asked.peers.asked[0][2][4:]
    answer = theirs.pack(digests)
    assert len(answer) <= len(theirs.pack())
    asked.answer(2, Answered(answer))
    whole = Read(TWO, OWN)
    whole.answer(2, Answered(theirs.pack()))
    assert asked.entries == whole.entries
    assert asked.union.holders == whole.union.holders
    assert asked.union.uids == whole.union.uids


def test_what_is_the_same_is_not_sent() -> None:
    many = Listed(b"".join(map(entry, range(10_000))), b"".join(map(an_id, range(10_000))))
    digests = b"".join(many.digests)
    assert len(many.pack(digests)) < 10
    one_more = many._replace(tombstones=many.tombstones + an_id(10_000))
    assert 160_000 < len(one_more.pack(digests)) < 161_000  # not the entries
    assert many.digests[2] == Listed(b"", b"", {}).digests[2]


def test_a_tombstone_that_one_member_alone_has_counts_though_the_entries_are_the_same() -> None:
    """The accident of the model's mutant own-tombstones."""
    for own, other in ((b"", an_id(1)), (an_id(1), b"")):
        read = Read(TWO, Listed(entry(1) + entry(2), own))
        theirs = Listed(entry(1) + entry(2), other)
        read.answer(2, Answered(theirs.pack(read.peers.asked[0][2][4:])))
        assert read.entries == [entry(2)]


def test_a_member_that_enters_is_asked_for_its_epoch_alone() -> None:
    read = Read(
        view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ENTERING), Listed(entry(1))
    )
    assert [one[:2] for one in read.peers.asked] == [(2, Kind.LIST), (3, Kind.STATE)]
    read.answer(2, listed())
    read.answer(3, Answered(b"anything"))
    assert read.entries == [entry(1)]


@pytest.mark.parametrize("answer", [Answered(b"garbage"), Answered(b"\xc1")])
def test_an_answer_that_is_no_list_is_an_error(answer: Answer) -> None:
    read = Read(TWO, Listed(entry(1)))
    read.answer(2, answer)
    assert "not a listing" in str(read.error)


def test_a_listing_of_an_epoch_that_ended_or_that_took_long_is_discarded() -> None:
    read = Read(TWO, Listed(entry(1)))
    read.peers.adopt()
    read.answer(2, listed())
    assert "view changes" in str(read.error)
    read = Read(TWO, Listed(entry(1)))
    read.peers.time += LISTING_S + 0.1
    read.answer(2, listed())
    assert isinstance(read.error, BehindError)


def test_a_node_that_is_not_active_opens_no_mailbox() -> None:
    read = Read(
        view_of(Membership.ENTERING, Membership.ACTIVE, Membership.ACTIVE), Listed(b""), home=2
    )
    assert "not an active member" in str(read.error)


def test_the_lock_is_asked_for_at_the_home_first() -> None:
    read = Read(TWO, Listed(entry(1)), home=2)
    assert [one[:2] for one in read.peers.asked] == [(2, Kind.LOCK)]
    read.answer(2, IN_USE)
    assert isinstance(read.error, MailboxInUseError)
    read = Read(TWO, Listed(entry(1)), home=2)
    read.answer(2, DONE)
    read.answer(2, listed(entry(1)), Kind.LIST)
    assert read.opened.lock == 2
    assert not read.own.is_locked


def test_the_lock_is_the_next_ones_if_the_home_is_not_reached() -> None:
    read = Read(THREE, Listed(entry(1)), home=2)
    for member in THREE.line(box_of(THREE, 2)):
        if member == 1:
            break
        read.answer(member, LOST, Kind.LOCK)
    assert read.own.is_locked


def test_a_mailbox_in_use_here() -> None:
    read = Read(TWO, Listed(entry(1)), is_free=False)
    assert isinstance(read.error, MailboxInUseError)


def test_a_list_that_fails_gives_the_lock_back_at_the_home() -> None:
    read = Read(THREE, Listed(entry(1)), home=2)
    read.answer(2, DONE, Kind.LOCK)
    read.answer(2, LOST)
    read.answer(3, LOST)
    assert isinstance(read.error, RefusedError)
    assert [one[:2] for one in read.peers.asked] == [(2, Kind.UNLOCK)]


@pytest.mark.parametrize("answer", [LOST, EpochChanged()])
def test_a_lock_that_was_not_confirmed_is_given_back(answer: Answer) -> None:
    """It may be taken after the asker lost its patience, or under the epoch before."""
    read = Read(TWO, Listed(entry(1)), home=2)
    (lock,) = (one[2] for one in read.peers.asked)
    read.answer(2, answer, Kind.LOCK)
    unlocks = [one[2] for one in read.peers.asked if one[1] == Kind.UNLOCK]
    assert unlocks == [lock]


def test_a_lock_is_given_back_again_if_the_epoch_changed() -> None:
    read = Read(THREE, Listed(entry(1)), home=2)
    read.answer(2, DONE, Kind.LOCK)
    read.answer(2, LOST, Kind.LIST)
    read.answer(3, LOST, Kind.LIST)
    for _ in range(3):
        read.answer(2, EpochChanged(), Kind.UNLOCK)
    assert not read.peers.asked


def test_each_session_has_a_token_of_its_own() -> None:
    reads = [Read(TWO, Listed(entry(1)), home=2) for _ in range(2)]
    assert len({read.peers.asked[0][2] for read in reads}) == 2
