"""The view in which a node of a cluster without etcd goes on without the other.

The operator decides it: the nodes cannot tell a node that is off from a link that is cut.
"""

from __future__ import annotations

from dataclasses import replace

from metad.cluster.view import State, View
from metad.errors import ClusterError

COPIES = 2


def alone(view: View, number: int) -> View:
    """What member `number` uses from now on.  Raises ClusterError.

    What only the other has is not shown until it is back: it stays unhealed.
    """
    others = [one for one in view.members if one.number != number]
    if all(one.state is State.REMOVED for one in others):
        raise ClusterError("there is no other node")
    if number not in view.active:
        raise ClusterError(f"node {number} is not active and may lack mail; it cannot go on alone")
    if view.copies < COPIES:
        raise ClusterError("mail has one copy, so this node goes on without the other already")
    if view.read_copies < COPIES:
        raise ClusterError("not all mail is on both nodes yet; this node cannot go on alone")
    members = tuple(
        one
        if one.number == number or one.state is State.REMOVED
        else replace(one, state=State.ABSENT, healed=False)
        for one in view.members
    )
    return view.changed(members=members, alone="accept")
