"""The HELLO that a node sends, and why it refuses another's: by the view, then by the disks."""

from __future__ import annotations

from typing import Final

from metad.cluster import hello
from metad.cluster.hello import Hello
from metad.cluster.node import Node
from metad.cluster.old_disks import Marks
from metad.errors import ClusterError

# Refusals that are remembered, so that each is one line of the log.
MOST_REFUSALS: Final = 64


def my_hello(node: Node, fingerprint: str) -> Hello:
    """For the other side, which has shown that certificate.  Raises ClusterError."""
    view, marks = node.current_view(), Marks()
    if node.disks is not None:
        its = (one.number for one in view.members if one.fingerprint == fingerprint)
        try:
            marks = node.disks.tell(next(its, 0))
        except OSError as error:
            raise ClusterError(f"the marks of this node cannot be read: {error}") from None
    return Hello(
        *hello.PROTOCOLS, node.release, view.cluster, node.number, node.start, view.epoch,
        view.digest, node.hub_time_us(), *marks, node.is_command, node.etcd(),
    )  # fmt: skip


def fault(node: Node, theirs: Hello, mine: Hello, fingerprint: str, dialed: int) -> str | None:
    """Why a peer is refused, None if it is not.  Raises ClusterError."""
    found = hello.fault(theirs, mine, node.current_view(), fingerprint, dialed)
    if found is not None or node.disks is None:
        return found
    try:
        return node.disks.fault(theirs.number, Marks(theirs.told, theirs.heard))
    except OSError as error:
        raise ClusterError(f"the marks of a node cannot be stored: {error}") from None


def is_news(node: Node, peer: int, reason: str) -> bool:
    """Whether a refusal is to be reported: nodes dial each other again each second or two."""
    known = node.refusals
    if (peer, reason) in known:
        return False
    if len(known) >= MOST_REFUSALS:
        known.clear()
    if peer:
        known.add((peer, reason))
    return True


def forget_refusals(node: Node, peer: int) -> None:
    """A link with that node is up."""
    node.refusals = {one for one in node.refusals if one[0] != peer}
