"""Rules Enter, Set copies and Heal: which view follows what the members answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metad.cluster.entering import (
    Found,
    MemberState,
    decides,
    following,
    may_decide,
    next_view,
    still_there,
    unpack_state,
    walks,
)
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from tests.cluster.test_mail import THREE, TWO, view_of

ORIGIN = (1, 7)


def state(view: View, *, walked: bool = True, last: int = 5) -> MemberState:
    return MemberState(view.epoch if walked else view.epoch - 1, {ORIGIN: last})


def states_of(view: View, *, walked: bool = True) -> dict[int, MemberState]:
    return {one.number: state(view, walked=walked) for one in view.members}


def test_a_view_in_which_all_is_well_stays() -> None:
    for view in (TWO, THREE):
        assert next_view(view, states_of(view)) is None


def test_nothing_changes_before_every_active_member_has_adopted_the_view() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ENTERING)
    states = states_of(view)
    del states[2]
    assert next_view(view, states) is None


def test_one_that_enters_needs_the_tombstones_both_ways() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ENTERING)
    for number, last, enters in ((3, 4, False), (3, 6, False), (1, 4, False), (3, 5, True)):
        states = states_of(view) | {number: state(view, last=last)}
        then = next_view(view, states)
        assert (then is not None and then.active == (1, 2, 3)) is enters
        if then is not None and enters:
            assert then.epoch == view.epoch + 1
            entered = then.member(3)
            assert entered is not None
            assert not entered.healed


def test_one_that_enters_a_cluster_that_is_short_needs_all_its_mail() -> None:
    view = view_of(Membership.ACTIVE, Membership.ENTERING, alone="accept")
    assert next_view(view, states_of(view) | {1: state(view, walked=False)}) is None
    # Both may have gone on alone: it gives what it has, too.
    assert next_view(view, states_of(view) | {2: state(view, walked=False)}) is None
    then = next_view(view, states_of(view))
    assert then is not None
    assert then.active == (1, 2)


def test_who_sends_what_others_lack() -> None:
    short = view_of(Membership.ACTIVE, Membership.ENTERING, Membership.ABSENT)
    assert [walks(short, number) for number in (1, 2, 3)] == [True, True, False]
    enough = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ENTERING)
    assert [walks(enough, number) for number in (1, 2, 3)] == [True, True, False]


def test_one_that_is_away_and_answers_enters_first() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT)
    then = next_view(view, states_of(view))
    assert then is not None
    assert then.entering == (3,)
    states = states_of(view)
    del states[3]
    healed = next_view(view, states)
    assert healed is not None  # it does not answer: all its mail is on the others
    assert not healed.unhealed


def test_none_is_healed_before_a_walk_or_while_too_many_are_away() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT)
    states = {number: state(view) for number in (1, 2)}
    assert next_view(view, states | {2: state(view, walked=False)}) is None
    assert next_view(view, states | {2: state(view, last=4)}) is None
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT, Membership.ABSENT)
    assert next_view(view, {number: state(view) for number in (1, 2)}) is None
    view = view_of(Membership.ACTIVE, Membership.ABSENT, alone="accept")
    assert next_view(view, {1: state(view)}) is None


def test_none_is_healed_while_readers_count_on_fewer_copies_than_are_written() -> None:
    """Mail of before the change may be on the absent member alone."""
    view = replace(view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT), read_copies=1)
    assert next_view(view, {number: state(view) for number in (1, 2)}) is None


def test_copies_are_written_at_once_and_counted_by_readers_after_a_walk() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, copies=1)
    written = next_view(view, states_of(view, walked=False))
    assert written is not None
    assert (written.copies, written.read_copies) == (2, 1)
    assert next_view(written, states_of(written, walked=False)) is None
    behind = states_of(written) | {2: state(written, last=4)}
    assert next_view(written, behind) is None  # a deletion would come back
    read = next_view(written, states_of(written))
    assert read is not None
    assert (read.copies, read.read_copies) == (2, 2)


def test_copies_do_not_grow_while_a_member_is_away_unhealed() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT, copies=1)
    states = states_of(view)
    del states[3]
    assert next_view(view, states) is None


def test_alone_ends_when_there_are_enough_again() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, alone="accept")
    assert next_view(view, states_of(view, walked=False)) is None
    then = next_view(view, states_of(view))
    assert then is not None
    assert then.alone == "refuse"


def test_a_member_that_returns_waits_for_no_dead_one() -> None:
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT)
    states = states_of(view)
    del states[2]
    then = next_view(view, states)
    assert then is not None
    assert then.entering == (3,)


def test_one_that_does_not_reach_etcd_neither_returns_nor_enters() -> None:
    for its in (Membership.ABSENT, Membership.ENTERING):
        view = view_of(Membership.ACTIVE, Membership.ACTIVE, its)
        states = states_of(view) | {3: MemberState(view.epoch, {ORIGIN: 5}, has_word=False)}
        then = next_view(view, states)
        assert then is None or then.those(its) == (3,)


def test_deletions_that_go_on_hold_nothing_up() -> None:
    """No two members ever have the same tombstones while users delete."""
    view = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT)
    first = {1: state(view, last=5), 2: state(view, last=4)}
    assert following(view, Found(first, first)) is None
    later = {1: state(view, last=9), 2: state(view, last=7)}
    healed = following(view, Found(first, later))
    assert healed is not None
    assert not healed.unhealed
    assert following(view, Found({1: first[1]}, later)) is None


def test_what_a_member_told_before_its_index_was_rebuilt_holds_nothing_up() -> None:
    """Regression: a node that entered waited for tombstones with numbers that were gone."""
    view = view_of(Membership.ACTIVE, Membership.ACTIVE)
    first = {1: state(view, last=5), 2: state(view, last=6)}
    rebuilt = MemberState(view.epoch, {ORIGIN: 5, (2, 2): 1})
    assert still_there(first, {1: state(view, last=7), 2: rebuilt}) == {1: first[1]}
    assert still_there(first, {1: state(view, last=5)}) == first


def test_the_first_active_member_decides() -> None:
    view = view_of(Membership.ABSENT, Membership.ACTIVE, Membership.ACTIVE)
    who = [may_decide(view, number, compares=False) for number in (1, 2, 3)]
    assert who == [False, True, False]


def test_with_etcd_the_first_decides_that_answers_and_reaches_it() -> None:
    view = view_of(Membership.ABSENT, Membership.ACTIVE, Membership.ACTIVE, Membership.ACTIVE)
    who = [may_decide(view, number, compares=True) for number in (1, 2, 3, 4)]
    assert who == [False, True, True, True]
    cut_off = MemberState(view.epoch, {}, has_word=False)
    for changed, decider in (({}, 2), ({2: cut_off}, 3), ({2: cut_off, 3: cut_off}, 4)):
        states = states_of(view) | changed
        assert [number for number in view.active if decides(view, states, number)] == [decider]
    silent = states_of(view)
    del silent[2]
    assert decides(view, silent, 3)
    assert not any(decides(view, dict.fromkeys(view.active, cut_off), one) for one in view.active)


def test_a_state_goes_over_the_link_as_it_is() -> None:
    for has_word in (True, False):
        one = MemberState(5, {ORIGIN: 7, (2, 1 << 60): 0}, has_word)
        assert unpack_state(one.pack()) == one
    infinite = b"\x93\xca\x7f\x80\x00\x00\x90\xc3"
    for body in (b"", b"\xc1", b"\x91\x05", b"\x92\x05\x91\x01", b"\x93\x05\x91\x01\xc3", infinite):
        with pytest.raises(ClusterError):
            unpack_state(body)


DRAINS = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.DRAINING)


def test_one_that_drains_is_removed_when_its_mail_is_on_others() -> None:
    then = next_view(DRAINS, states_of(DRAINS))
    assert then is not None
    assert (then.active, then.those(Membership.REMOVED), then.unhealed) == ((1, 2), (3,), ())
    assert then.epoch == DRAINS.epoch + 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_that_drains_stays_until_all_have_walked_and_have_the_same_tombstones(
    number: int,
) -> None:
    states = states_of(DRAINS)
    assert next_view(DRAINS, states | {number: state(DRAINS, walked=False)}) is None
    assert next_view(DRAINS, states | {number: state(DRAINS, last=4)}) is None
    del states[number]
    assert next_view(DRAINS, states) is None


def test_one_that_drains_stays_while_its_copies_count() -> None:
    """Another one is away: with one less, mail would be on one node."""
    view = view_of(Membership.ACTIVE, Membership.DRAINING)
    assert next_view(view, states_of(view)) is None
