"""Rule Drain: an operator takes a member that runs out of the cluster, and no copy is lost.

    active -> draining    the last in every line; its copies count only if too few others are active
    all mail of it is on others, and its tombstones -> removed (cluster.entering)

Rules of this file:

* A refusal names the reason and what to do.
* Until it is removed, a draining member serves as any other, and can be kept after all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from metad.cluster.removing import ViewDirectory
from metad.cluster.view import Membership, View
from metad.errors import ClusterError


def draining(view: View, number: int, by: int, answering: Collection[int]) -> View:
    """The view in which the member drains.  Raises ClusterError: why it cannot.

    `by`: the member where the command was given; `answering`: the members that answer.
    """
    text = (
        _is_not_active(view, number, by)
        or _is_silent(view, number, answering)
        or _is_another(view, number)
        or _leaves_few(view, number)
    )
    if text:
        raise ClusterError(text)
    return view.changed(members=view.with_member(number, state=Membership.DRAINING))


def kept(view: View, number: int, by: int) -> View:
    """The view in which a member that drains does so no more.  Raises ClusterError."""
    member = view.member(number)
    if by not in view.active:
        raise ClusterError("this node is not active; give the command on a node that is")
    if member is None or member.state is not Membership.DRAINING:
        raise ClusterError(f"node {number} does not drain; metad cluster status shows its state")
    return view.changed(members=view.with_member(number, state=Membership.ACTIVE))


async def answer_drain(
    directory: ViewDirectory, own: int, message: dict[str, Any]
) -> dict[str, Any]:
    """Carry out {"op": "drain", "number": N, "answering": [...], "cancel": false} of a command on
    node `own`.  Raises ClusterError."""
    number, answering = message.get("number"), message.get("answering")
    if not isinstance(number, int) or not isinstance(answering, list):
        raise ClusterError("the request names no node, or not who answers")
    view = directory.view()
    if message.get("cancel") is True:
        following = kept(view, number, own)
    else:
        following = draining(view, number, own, {own, *answering})
    await directory.propose(following)
    return {"epoch": following.epoch}


def _is_not_active(view: View, number: int, by: int) -> str:
    member = view.member(number)
    if member is None:
        return f"there is no node {number}"
    if by not in view.active:
        return "this node is not active; give the command on a node that is"
    if number not in view.active:
        return f"node {number} is {member.state}; only an active node can drain"
    return ""


def _is_silent(view: View, number: int, answering: Collection[int]) -> str:
    """A member that is lost gives nothing; and while another one is down, mail needs the copies
    that would cease to count."""
    if number not in answering:
        remedy = f"start it, or take it out: metad cluster remove {number}"
        return f"node {number} does not answer; {remedy}"
    silent = [one for one in view.active if one not in answering]
    return f"node {silent[0]} does not answer, and every active node must" if silent else ""


def _is_another(view: View, number: int) -> str:
    """One at a time: each walk is for one."""
    found = view.those(Membership.DRAINING)
    if not found:
        return ""
    if number in found:
        return f"node {number} drains already; metad cluster status shows when it is removed"
    return f"node {found[0]} drains; wait until it is removed"


def _leaves_few(view: View, number: int) -> str:
    """Its copies would go on counting, so it could never leave."""
    left = len(view.keeping) - (number in view.keeping)
    if left >= max(view.copies, view.read_copies):
        return ""
    return (
        f"{left} active {'node' if left == 1 else 'nodes'} would be left for {view.copies} copies; "
        "join another node first"
    )
