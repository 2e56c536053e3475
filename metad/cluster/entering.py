"""Rules Enter, Set copies and Heal: the view that follows, once members have what it requires.

The first of the active members decides.  Without etcd, only the operator's command also changes a
view.  The member asks all others what they have, and changes one thing at a time:

    absent, answers           -> entering
    entering, has tombstones  -> active (with all mail, if fewer than `copies` are active)
    two are active, `copies` is 1                    -> `copies` is 2
    all have walked           -> reads count on `copies`; those that are away are healed

Rules of this file:

* A member counts only if it answered under this very view: then it has adopted it.
* Nothing is assumed of a member that did not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack

from metad.cluster.view import Member, State, View
from metad.errors import ClusterError

COPIES = 2  # as soon as there are two nodes


class MemberState(NamedTuple):
    """What a member has: the epoch of its last walk, and of each origin (number, incarnation) the
    number up to which it has its tombstones."""

    walked: int
    vector: Mapping[tuple[int, int], int]

    def pack(self) -> bytes:
        rows = [(*origin, last) for origin, last in self.vector.items()]
        packed: bytes = msgpack.packb((self.walked, rows))
        return packed

    def covers(self, other: MemberState) -> bool:
        """Whether this member has all tombstones that the other has."""
        return all(self.vector.get(origin, 0) >= last for origin, last in other.vector.items())


def unpack_state(body: bytes) -> MemberState:
    """Raises ClusterError."""
    try:
        walked, rows = msgpack.unpackb(body, use_list=False)
        vector = {(int(number), int(life)): int(last) for number, life, last in rows}
        return MemberState(int(walked), vector)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ClusterError(f"not a member's state: {error}") from None


def decides(view: View, number: int) -> bool:
    """Whether this member is the one that changes the view."""
    return bool(view.active) and view.active[0] == number


def walks(view: View, number: int) -> bool:
    """Whether this member sends what others lack: the active ones do.  While too few are active
    entering ones do, too: of two that went on alone each has mail that the other lacks."""
    return number in view.active or (view.short and number in view.entering)


def next_view(view: View, states: Mapping[int, MemberState]) -> View | None:
    """The view that follows; None: this one stays.

    `states`: of this node, and of each member that answered under `view`.
    """
    if not all(number in states for number in view.active):
        return None
    for member in view.members:
        change = _of_member(view, states, member)
        if change is not None:
            return view.changed(members=view.with_member(member.number, **change))
    return _of_copies(view, states)


def _of_member(
    view: View, states: Mapping[int, MemberState], member: Member
) -> dict[str, Any] | None:
    state = states.get(member.number)
    if state is None:
        return None
    if member.state is State.ABSENT:
        return {"state": State.ENTERING}
    if member.state is State.ENTERING and _may_serve(view, states, state):
        return {"state": State.ACTIVE, "healed": False}
    return None


def _may_serve(view: View, states: Mapping[int, MemberState], entering: MemberState) -> bool:
    """Enter: tombstones went both ways; if too few are active, mail did, too."""
    active = [states[number] for number in view.active]
    if not all(one.covers(entering) and entering.covers(one) for one in active):
        return False
    return not view.short or (_all_walked(view, states) and entering.walked == view.epoch)


def _all_walked(view: View, states: Mapping[int, MemberState]) -> bool:
    return all(states[number].walked == view.epoch for number in view.active)


def _are_level(view: View, states: Mapping[int, MemberState]) -> bool:
    """Whether all active members have the same tombstones."""
    active = [states[number] for number in view.active]
    return all(one.covers(other) for one in active for other in active)


def _of_copies(view: View, states: Mapping[int, MemberState]) -> View | None:
    """Set copies, and Heal."""
    if view.entering:
        return None
    if view.copies < COPIES <= len(view.active) and not view.unhealed:
        return view.changed(copies=COPIES)
    if not _all_walked(view, states):
        return None
    if view.read_copies < view.copies and not view.unhealed and _are_level(view, states):
        return view.changed(read_copies=view.copies)
    if view.alone == "accept" and len(view.active) >= view.copies:
        return view.changed(alone="refuse")
    return _healed(view, states)


def _healed(view: View, states: Mapping[int, MemberState]) -> View | None:
    if not view.unhealed or len(view.unhealed) >= view.read_copies or view.short:
        return None
    if not _are_level(view, states):
        return None
    away = set(view.unhealed)
    members = tuple(
        replace(one, healed=True) if one.number in away else one for one in view.members
    )
    return view.changed(members=members)
