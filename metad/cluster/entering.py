"""Rules Enter, Set copies, Heal, Drain: the view that follows, once members have what it requires.

One active member decides.  It asks all others what they have, and changes one thing at a time:

    absent, answers           -> entering
    entering, has tombstones  -> active (with all mail, if fewer than `copies` are active)
    two are active, `copies` is 1                    -> `copies` is 2
    all have walked           -> reads count on `copies`; those that are away are healed
    all have walked, one drains                      -> it is removed

Without etcd that is the first active member, and only the operator's command also changes a view.
With etcd any active member may: the first of those that answer, and that reach etcd, does.  If two
decide at once, because they do not reach each other, etcd refuses one of them.

Rules of this file:

* A member counts only if it answered under this very view: then it has adopted it.
* Nothing is assumed of a member that did not answer.
* A member that does not reach etcd neither decides nor enters: it would be marked absent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack

from metad.cluster.view import Member, Membership, View
from metad.errors import ClusterError

COPIES = 2  # as soon as there are two nodes


class MemberState(NamedTuple):
    """What a member has: the epoch of its last walk, and of each origin (number, incarnation) the
    number up to which it has its tombstones.  `has_word`: it reaches etcd, or there is none."""

    walked: int
    vector: Mapping[tuple[int, int], int]
    has_word: bool = True

    def pack(self) -> bytes:
        rows = [(*origin, last) for origin, last in self.vector.items()]
        packed: bytes = msgpack.packb((self.walked, rows, self.has_word))
        return packed

    def covers(self, other: MemberState) -> bool:
        """Whether this member has all tombstones that the other has."""
        return all(self.vector.get(origin, 0) >= last for origin, last in other.vector.items())


def unpack_state(body: bytes) -> MemberState:
    """Raises ClusterError."""
    try:
        walked, rows, has_word = msgpack.unpackb(body, use_list=False)
        vector = {(int(number), int(life)): int(last) for number, life, last in rows}
        return MemberState(int(walked), vector, bool(has_word))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ClusterError(f"not a member's state: {error}") from None


def may_decide(view: View, number: int, *, compares: bool) -> bool:
    """Whether this member may change the view.  `compares`: of two that do, one is refused."""
    return number in (view.active if compares else view.active[:1])


def decides(view: View, states: Mapping[int, MemberState], number: int) -> bool:
    """Whether it is this one of those that may: the first that answered and reaches etcd."""
    able = (one for one in view.active if one in states and states[one].has_word)
    return next(able, 0) == number


def walks(view: View, number: int) -> bool:
    """Whether this member sends what others lack: the active ones do.  While too few are active
    entering ones do, too: of two that went on alone each has mail that the other lacks."""
    return number in view.active or (view.short and number in view.entering)


class Found(NamedTuple):
    """What the members answered under one view.  `first`: when all active ones had adopted it, the
    earliest that each has answered since; `last`: what they answered now."""

    first: Mapping[int, MemberState]
    last: Mapping[int, MemberState]

    def are_level(self, some: Iterable[int], others: Iterable[int]) -> bool:
        """Whether these have all tombstones that those had when all had adopted the view.

        Later ones are on `copies` members of this view, so nothing waits for them: while users
        delete, no two members ever have the same.
        """
        there = tuple(others)
        if not all(number in self.first for number in there):
            return False
        return all(self.last[one].covers(self.first[other]) for one in some for other in there)

    def have_walked(self, view: View, numbers: Iterable[int]) -> bool:
        return all(self.last[number].walked == view.epoch for number in numbers)


def still_there(
    first: Mapping[int, MemberState], now: Mapping[int, MemberState]
) -> dict[int, MemberState]:
    """First answers without those of members that no longer have what they told.  The tombstones of
    an index that was rebuilt have other numbers: nothing ever has the old ones."""
    return {
        number: state
        for number, state in first.items()
        if number not in now or now[number].covers(state)
    }


def next_view(view: View, states: Mapping[int, MemberState]) -> View | None:
    """The view that follows if this is all that the members ever answered under `view`."""
    return following(view, Found(states, states))


def following(view: View, found: Found) -> View | None:
    """The view that follows; None: this one stays."""
    have_adopted = all(number in found.last for number in view.active)
    for member in view.members:
        change = _of_member(view, found, member, have_adopted=have_adopted)
        if change is not None:
            return view.changed(members=view.with_member(member.number, **change))
    if not have_adopted:
        return None
    return _of_copies(view, found) or _drained(view, found)


def _of_member(
    view: View, found: Found, member: Member, *, have_adopted: bool
) -> dict[str, Any] | None:
    """Enter.  A member that returns does not wait for all active ones: one of them may be dead, and
    be marked absent only because this one enters."""
    state = found.last.get(member.number)
    if state is None or not state.has_word:
        return None
    if member.state is Membership.ABSENT:
        return {"state": Membership.ENTERING}
    if (
        member.state is Membership.ENTERING
        and have_adopted
        and _may_serve(view, found, member.number)
    ):
        return {"state": Membership.ACTIVE, "healed": False}
    return None


def _may_serve(view: View, found: Found, number: int) -> bool:
    """Enter: tombstones went both ways; if too few are active, mail did, too."""
    both_ways = found.are_level([number], view.active) and found.are_level(view.active, [number])
    return both_ways and (not view.short or found.have_walked(view, (*view.active, number)))


def _of_copies(view: View, found: Found) -> View | None:
    """Set copies, and Heal."""
    is_even = view.copies == view.read_copies
    if is_even and view.copies < COPIES <= len(view.keeping) and not view.unhealed:
        return view.changed(copies=COPIES)
    if view.short or not found.have_walked(view, view.active):
        return None
    are_level = found.are_level(view.active, view.active)
    if view.read_copies < view.copies and not view.unhealed and are_level:
        return view.changed(read_copies=view.copies)
    if view.alone == "accept":
        return view.changed(alone="refuse")
    return _healed(view) if are_level else None


def _healed(view: View) -> View | None:
    """Heal: all active members have all mail and the same tombstones, so what those that are away
    have is there, unless `copies` of them are away."""
    if not view.unhealed or len(view.unhealed) >= view.read_copies:
        return None
    away = set(view.unhealed)
    members = tuple(
        replace(one, healed=True) if one.number in away else one for one in view.members
    )
    return view.changed(members=members)


def _drained(view: View, found: Found) -> View | None:
    """Drain: all active members have sent what others lack, and have the same tombstones.  So what
    the draining one has is on `copies` others, and what was written since does not count on it."""
    leaving = view.those(Membership.DRAINING)[:1]
    if not leaving or len(view.keeping) < view.copies:
        return None
    if not found.have_walked(view, view.active) or not found.are_level(view.active, view.active):
        return None
    members = view.with_member(leaving[0], state=Membership.REMOVED, healed=True)
    return view.changed(members=members)
