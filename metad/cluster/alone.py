"""The view in which a node goes on without all others, because the operator decides it.

Without etcd the nodes cannot tell a node that is off from a link that is cut.  With etcd they can,
and go on by themselves; only a cluster that has too few nodes left to do so waits for this.
"""

from __future__ import annotations

from dataclasses import replace

from metad.cluster.view import Membership, View
from metad.errors import ClusterError

COPIES = 2
_NEEDLESS = "start the hub, if it does not run: it needs nothing more"


def alone(view: View, number: int) -> View:
    """What member `number` uses from now on.  Raises ClusterError.

    What only the other has is not shown until it is back: it stays unhealed.
    """
    others = [one for one in view.members if one.number != number]
    if all(one.state is Membership.REMOVED for one in others):
        raise ClusterError("there is no other node", remedy=_NEEDLESS)
    if number not in view.active:
        raise ClusterError(
            f"node {number} is not active and may lack mail; it cannot go on alone",
            remedy=f"start node {view.active[0]}, and wait until this one is active",
        )
    if view.copies < COPIES:
        raise ClusterError(
            "mail has one copy, so this node goes on without the other already", remedy=_NEEDLESS
        )
    if view.read_copies < COPIES:
        raise ClusterError(
            "not all mail is on both nodes yet; this node cannot go on alone",
            remedy="start the other node, and wait until metad cluster status shows that no mail is"
            " short of copies",
        )
    members = tuple(
        one
        if one.number == number or one.state is Membership.REMOVED
        else replace(one, state=Membership.ABSENT, healed=False)
        for one in view.members
    )
    return view.changed(members=members, alone="accept")


def alone_with_etcd(view: View, number: int, *, is_lossy: bool = False) -> View:
    """What the cluster uses from now on if no other member has a lease, which the transaction that
    makes it compares.  Raises ClusterError.

    The node accepts mail at once.  It lists only if fewer than `copies` others are unhealed: until
    they are back or removed, it may lack what only they have.  One that was not active itself may
    lack what was accepted without it.  So that takes `is_lossy`, and what the others have is not
    waited for then.
    """
    others = [one for one in view.members if one.number != number]
    if all(one.state is Membership.REMOVED for one in others):
        raise ClusterError("there is no other node", remedy=_NEEDLESS)
    member = view.member(number)
    if member is None or member.state is Membership.REMOVED:
        raise ClusterError(
            f"node {number} was removed from the cluster",
            remedy="join again with an empty data directory: metad cluster join",
        )
    was_active = number in view.active
    if was_active and len(view.active) == 1 and view.alone == "accept":
        raise ClusterError("this node goes on alone already", remedy=_NEEDLESS)
    if not was_active and not is_lossy:
        raise ClusterError(
            f"node {number} is not active and may lack mail of nodes that are "
            f"({', '.join(map(str, view.active)) or 'none'})",
            remedy="start one of them, or give --lossy to lose their mail",
        )
    members = [replace(member, state=Membership.ACTIVE, healed=False)]
    for one in others:
        healed = not was_active or (one.healed and one.number not in view.active)
        is_out = one.state is Membership.REMOVED
        members.append(one if is_out else replace(one, state=Membership.ABSENT, healed=healed))
    in_order = tuple(sorted(members, key=lambda one: one.number))
    return view.changed(members=in_order, alone="accept")
