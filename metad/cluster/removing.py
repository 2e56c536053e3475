"""Rule Remove: an operator takes a member out of the cluster for good, in a cluster with etcd.

Its number is never used again, its certificate is refused from then on, and what it had counts as
lost unless other members have it.

Rules of this file:

* A refusal names the reason and what to do.
* What is decided here holds for one view.  The transaction that replaces that view compares the
  view and the member's lease again, so of two operators the second one starts again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from metad.cluster.view import Membership, View
from metad.errors import ClusterError


class ViewDirectory(Protocol):
    """What the operator's request needs of this node's directory process."""

    def view(self) -> View: ...

    def leased(self) -> Collection[int]:
        """The members that had a lease when etcd was read last."""

    async def propose(self, view: View) -> None: ...


@dataclass(frozen=True, slots=True)
class Removal:
    """What is known when member `by` is to remove member `number`.

    `answering`: the members that answer, `by` included.  `leased`: those with a lease in etcd.
    """

    number: int
    by: int
    answering: Collection[int]
    leased: Collection[int]
    is_lossy: bool = False


def without(view: View, removal: Removal) -> View:
    """The view in which the member is removed.  Raises ClusterError: why it stays.

    `is_lossy` overrides the last two reasons: the operator accepts that mail may be lost, and the
    member counts as healed, so that the others may list what is left.
    """
    for reason in (_is_no_member, _may_serve, _is_unanswered, _leaves_few, _leaves_unhealed):
        text = reason(view, removal)
        if text:
            raise ClusterError(text)
    healed = removal.is_lossy or _is_healed(view, removal.number)
    members = view.with_member(removal.number, state=Membership.REMOVED, healed=healed)
    return view.changed(members=members)


async def answer_removal(
    directory: ViewDirectory, own: int, message: dict[str, Any]
) -> dict[str, Any]:
    """Carry out {"op": "remove", "number": N, "answering": [...], "lossy": false} of a command on
    node `own`.  Raises ClusterError."""
    number, answering = message.get("number"), message.get("answering")
    if not isinstance(number, int) or not isinstance(answering, list):
        raise ClusterError("a removal has no number, or not who answers")
    is_lossy = message.get("lossy") is True
    removal = Removal(number, own, {own, *answering}, directory.leased(), is_lossy)
    following = without(directory.view(), removal)
    await directory.propose(following)
    return {"epoch": following.epoch}


def _is_no_member(view: View, removal: Removal) -> str:
    """Only an active member's word counts, and it cannot be about itself."""
    number, member = removal.number, view.member(removal.number)
    if member is None:
        return f"there is no node {number}"
    if member.state is Membership.REMOVED:
        return f"node {number} is removed already"
    if number == removal.by:
        return f"this is node {number}; give the command on another node"
    if removal.by not in view.active:
        return "this node is not active; give the command on a node that is"
    return ""


def _may_serve(view: View, removal: Removal) -> str:
    """While its lease lasts, its word of etcd may be fresh.  Cut off from all others, it would go
    on listing alone by the view in which it is a member, without what the others accept now."""
    if removal.number not in removal.leased:
        return ""
    return (
        f"node {removal.number} has a lease in etcd, so it runs or ran a moment ago; "
        "stop it there (metad stop), wait 15 seconds, and give the command again"
    )


def _is_unanswered(view: View, removal: Removal) -> str:
    """A member that stays and is silent may be dead: with its copy lost as well, mail that it
    shared with the removed one would be gone."""
    silent = [one for one in _staying(view, removal) if one not in removal.answering]
    if not silent:
        return ""
    return f"{_nodes(silent)} {_does(silent)} not answer, and every active node that stays must"


def _leaves_few(view: View, removal: Removal) -> str:
    """Fewer than `copies` active members accept no mail."""
    staying = len(_staying(view, removal))
    if removal.is_lossy or staying >= view.copies:
        return ""
    return (
        f"{staying} active {'node' if staying == 1 else 'nodes'} would be left for "
        f"{view.copies} copies; join another node first, or use --lossy"
    )


def _leaves_unhealed(view: View, removal: Removal) -> str:
    """With `copies` members unhealed, some mail may be on these alone.  No walk can show that it is
    not, so none of them would ever be healed and nothing could be listed again."""
    is_healed = _is_healed(view, removal.number)
    unhealed = {*view.unhealed, *([] if is_healed else [removal.number])}
    if removal.is_lossy or len(unhealed) < view.read_copies:
        return ""
    return (
        f"only {_nodes(sorted(unhealed))} may have some of the mail; wait until "
        "`metad cluster status` shows that the others have it, start those nodes again, or lose "
        "that mail with --lossy"
    )


def _is_healed(view: View, number: int) -> bool:
    """Of one that serves, the mark of an earlier absence means nothing."""
    member = view.member(number)
    return member is not None and member.healed and number not in view.active


def _staying(view: View, removal: Removal) -> list[int]:
    return [one for one in view.active if one != removal.number]


def _nodes(numbers: Iterable[int]) -> str:
    shown = [str(one) for one in numbers]
    return f"node {shown[0]}" if len(shown) == 1 else f"nodes {' and '.join(shown)}"


def _does(numbers: Collection[int]) -> str:
    return "does" if len(numbers) == 1 else "do"
