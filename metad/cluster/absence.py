"""Rule Absent: the view in which the cluster goes on without a member that is away.

Any active member may propose it.  The transaction compares the lease, the view and the identity, so
a member that is back, or another change, makes it fail.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from metad.cluster.view import Membership, View

LEFT_OUT = frozenset({Membership.ABSENT, Membership.REMOVED})


def without(view: View, number: int, by: int) -> View | None:
    """The view in which member `number` is absent; None: it must not be, or not by member `by`.

    An active member can be spared if `copies` remain, or if the rest may accept mail alone.  While
    another is entering it need not: of two members one disk is dead and a new machine joins; the
    dead one never adopts the view, so the new one could not become active.
    """
    member = view.member(number)
    if by not in view.active or number == by or member is None or member.state in LEFT_OUT:
        return None
    if number in view.active:
        spare = len(view.active) > view.copies or view.alone == "accept" or view.entering
        if not spare:
            return None
        return view.changed(members=view.with_member(number, state=Membership.ABSENT, healed=False))
    return view.changed(members=view.with_member(number, state=Membership.ABSENT))


def leaving(old: View, view: View) -> Iterator[int]:
    """The members that must have no lease for this change (rules Absent and Remove).  One that has
    drained stops serving before it is removed."""
    for member in view.members:
        before = old.member(member.number)
        if before is None or member.state not in LEFT_OUT or before.state is member.state:
            continue
        if before.state is not Membership.DRAINING:
            yield member.number


class Absences:
    """Since when each member has had no lease, as this node has seen it."""

    def __init__(self, after_s: float, gap_s: float) -> None:
        """`gap_s`: after looks that are further apart, all begin afresh: etcd was away, and so may
        the leases of all members have ended."""
        self._after_s = after_s
        self._gap_s = gap_s
        self._since: dict[int, float] = {}
        self._looked = float("-inf")

    def forget(self) -> None:
        self._since.clear()

    def look(self, view: View, alive: Collection[int], now: float) -> list[int]:
        """The members that have been away for long enough, in the order of their numbers."""
        if now - self._looked > self._gap_s:
            self._since.clear()
        self._looked = now
        away = [one.number for one in view.members if one.state not in LEFT_OUT]
        away = [number for number in away if number not in alive]
        self._since = {number: self._since.get(number, now) for number in away}
        return [number for number in away if now - self._since[number] >= self._after_s]

    def ages(self, now: float) -> Mapping[int, float]:
        """Seconds for which each member has been away."""
        return {number: now - since for number, since in self._since.items()}
