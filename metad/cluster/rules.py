"""The rules of the cluster's protocol that decide about mail, as pure functions of a view.

Rules of this file:

* A rule looks at one view and at the members that answered under its epoch.  The caller compares it
  with its own epoch when the last answer is there: answers of two epochs never count together.
* `got`, `heard`: numbers of the members that confirmed or answered, this node included.
* Each rule's reason is the accident that it prevents.  tests/cluster/cluster_model.py has the same
  rules as a model, and shows those accidents when one is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from metad.cluster.view import LINES, View


def enough(view: View, got: Collection[int]) -> bool:
    """Write: `copies` counting members have it; with `alone = "accept"` all active ones, if those
    are fewer."""
    need = min(view.copies, len(view.active)) if view.alone == "accept" else view.copies
    return need <= len(set(got).intersection(view.counting))


def also(view: View) -> tuple[int, ...]:
    """Write: the members that must have it besides: entering ones, while too few are active.

    B is active alone and C is entering.  C copied all mail; then B acknowledges m alone.  C becomes
    active, B dies, and C lists without m.
    """
    return view.entering if view.short else ()


def peers_in_order(view: View, number: int, mailbox: int) -> tuple[int, ...]:
    """The members that member `number` asks for copies of a mailbox's mail, in this order."""
    return tuple([one for one in (*also(view), *view.line(mailbox)) if one != number])


def first_peers(view: View, number: int, mailboxes: Sequence[int]) -> tuple[int, ...] | None:
    """The peers whose copies, with that of member `number`, make a message durable, if they are the
    same ones for all its mailboxes.  None: they are not, or all peers are too few."""
    first: tuple[int, ...] | None = None
    for mailbox in mailboxes:
        try:
            found = view.first_peers[number, mailbox]
        except KeyError:
            found = _find_first_peers(view, number, mailbox)
        if found is None or (first is not None and found != first):
            return None
        first = found
    return first


def _find_first_peers(view: View, number: int, mailbox: int) -> tuple[int, ...] | None:
    """The same for one mailbox; the view remembers it."""
    found: list[int] = []
    must = also(view)
    for one in peers_in_order(view, number, mailbox):
        if one in must or not enough(view, (number, *found)):
            found.append(one)
    known = view.first_peers
    if len(known) >= LINES:
        known.clear()
    known[number, mailbox] = first = tuple(found) if is_durable(view, (number, *found)) else None
    return first


def is_durable(view: View, got: Collection[int]) -> bool:
    """Write: whether a message may be acknowledged."""
    return enough(view, got) and set(got).issuperset(also(view))


def may_list(
    view: View, heard: Collection[int], entering_heard: Collection[int], *, has_word: bool
) -> bool:
    """Read and Lone reader: whether the union of what was heard is complete.

    Every message is on `copies` members, so while fewer are missing, one that has it was heard.
    Missing are the active members that did not answer and the unhealed ones, which may have mail
    that no active member has.

    A reader that heard fewer than `copies` members may be cut off, and others may have gone on
    without it.  If a member is missing it needs `has_word`: that the epoch is still this one.
    Entering members that did not confirm this epoch (`entering_heard`: those that did) are missing
    then, because they may have become active in the next epoch.
    """
    there = set(heard).intersection(view.active)
    missing = len(view.active) - len(there) + len(view.unhealed)
    lone = len(there) < view.read_copies
    if lone:
        missing += len(set(view.entering).difference(view.unhealed, entering_heard))
    return missing < view.read_copies and (has_word or not (lone and missing))


def deletion_confirmed(view: View, got: Collection[int], *, has_word: bool) -> bool:
    """Delete: whether the user may be told that messages are deleted.

    The tombstones are as safe as mail is, and every listing hears a member that has them.
    """
    missing = len(set(view.active).difference(got)) + len(view.unhealed)
    lone = len(set(got)) < view.read_copies
    return is_durable(view, got) and missing < view.read_copies and (has_word or not lone)


def serves(view: View, number: int) -> bool:
    """Epoch: a member that is not active neither serves nor counts."""
    return number in view.active


def takes_part(view: View, number: int) -> bool:
    """Epoch: whether requests to this member are answered: entering ones are written to."""
    return number in view.active or number in view.entering
