"""What a node of a cluster does besides serving clients: it walks, and moves the view on.

One worker of a node does it, once a second.

Rules of this file:

* No client waits for any of this.
* A view is decided by what members answered under the view before it (cluster.entering).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from metad.cluster import entering
from metad.cluster.answers import Answer, Answered
from metad.cluster.entering import Found, MemberState
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.cluster.proposals import Proposals
from metad.cluster.streaming import Streaming
from metad.cluster.view import View
from metad.cluster.walking import Walk
from metad.errors import ClusterError
from metad.layers.logs import LogLayer
from metad.layers.walked_mail import WalkedMail
from metad.store.background import Background
from metad.store.index.tombstones import Tombstones

PATIENCE_S = 1.0
# Until a walk that found damage is repeated: by then it may be repaired, or deleted.
DAMAGED_NS = 60_000_000_000
# Until one is repeated in which members refused messages: by then there may be room.
REFUSED_NS = 10_000_000_000


class ClusterStore(Protocol):
    """What the steward needs of the layer."""

    peers: Peers
    log: LogLayer
    streaming: Streaming
    tombstones: Tombstones
    proposals: Proposals

    @property
    def walked(self) -> memoryview:
        """The cell of the epoch of the last walk."""

    def state(self) -> MemberState: ...


class Steward:
    """One node's."""

    def __init__(
        self, layer: ClusterStore, thread: Background, report: Callable[[str], None]
    ) -> None:
        """`thread` reads records."""
        self._layer = layer
        self._thread = thread
        self._report = report
        self._walk: Walk | None = None
        self._walks_after_ns = 0
        self._must_repeat = False  # a member started again during the walk
        self._seen: View | None = None
        self._seen_ns = 0  # when that view was first seen here
        self._asked: View | None = None
        self._first: dict[int, MemberState] = {}  # see entering.Found
        self._states: dict[int, MemberState] = {}
        self._waiting = 0
        self._is_proposing = False

    def tick(self) -> None:
        peers = self._layer.peers
        view = peers.view()
        if not entering.walks(view, peers.number):
            return
        is_due = self._walk is None and self._layer.walked[0] != view.epoch
        if is_due and self._has_entered(view) and self._may_walk():
            self._begin_walk()
        is_free = not self._waiting and not self._is_proposing
        compares = self._layer.proposals.compares
        if is_free and entering.may_decide(view, peers.number, compares=compares):
            self._ask(view)

    # -- walking

    def walk_again(self) -> None:
        """A member has started again.  It may lack the last that it confirmed before."""
        if self._walk is not None:
            self._must_repeat = True
        else:
            self._layer.walked[0] = 0

    def _has_entered(self, view: View) -> bool:
        """Whether the index has all mail that was acknowledged before this view, by any process:
        the walk finds only what the index has."""
        log = self._layer.log
        if view is not self._seen:
            self._seen, self._seen_ns = view, log.osio.monotonic_ns()
        return not log.unentered.is_any_older(self._seen_ns)

    def _may_walk(self) -> bool:
        """Not at once again after a walk that found damage, or in which messages were refused."""
        return self._layer.log.osio.monotonic_ns() >= self._walks_after_ns

    def _begin_walk(self) -> None:
        epoch = self._layer.peers.view().epoch
        mail = WalkedMail(self._layer, self._thread, self._report)
        walk = Walk(self._layer.peers, mail, partial(self._walked, epoch))
        self._walk = walk
        walk.start()

    def _walked(self, epoch: int, whole: bool) -> None:
        walk, self._walk = self._walk, None
        if walk is not None and walk.damaged:
            self._walks_after_ns = self._layer.log.osio.monotonic_ns() + DAMAGED_NS
            self._report(
                f"warning: cluster: no active node can read {walk.damaged:,} messages that others "
                "lack: nodes that are away may have the only good copies, and stay counted"
            )
        elif walk is not None and walk.refused and epoch == self._layer.peers.view().epoch:
            self._walks_after_ns = self._layer.log.osio.monotonic_ns() + REFUSED_NS
            self._report(
                f"warning: cluster: {walk.refused:,} messages were not taken by nodes that lack "
                f"them ({walk.refusal})"
            )
        must_repeat, self._must_repeat = self._must_repeat, False
        if whole and not must_repeat:
            self._layer.walked[0] = epoch
            if walk is not None and walk.sent:
                self._report(f"cluster: epoch {epoch}: copies sent to other nodes: {walk.sent:,}")

    # -- the view

    def _ask(self, view: View) -> None:
        """Ask all members what they have."""
        peers = self._layer.peers
        others = [one.number for one in view.members if one.number not in self._out(view)]
        if view is not self._asked:
            self._first = {}
        self._asked, self._states, self._waiting = view, {}, len(others)
        for number in others:
            peers.request(number, Kind.STATE, (), partial(self._on_state, number), PATIENCE_S)
        if not others:
            self._decide()

    def _out(self, view: View) -> set[int]:
        gone = {one.number for one in view.members if one.state == "removed"}
        return gone | {self._layer.peers.number}

    def _on_state(self, number: int, answer: Answer) -> None:
        self._waiting -= 1
        if isinstance(answer, Answered):
            try:
                self._states[number] = entering.unpack_state(answer.body)
            except ClusterError as error:
                self._report(f"warning: node {number}: {error}")
        if not self._waiting:
            self._decide()

    def _decide(self) -> None:
        view, layer = self._asked, self._layer
        if view is None or layer.peers.view() is not view:
            return
        states = {**self._states, layer.peers.number: layer.state()}
        first = entering.still_there(self._first, states)
        if all(number in states for number in view.active):
            first = {**states, **first}
        self._first = first
        if not entering.decides(view, states, layer.peers.number):
            return
        following = entering.following(view, Found(self._first, states))
        if following is not None:
            self._is_proposing = True
            layer.proposals.propose(following, partial(self._proposed, following))

    def _proposed(self, following: View, reason: str) -> None:
        self._is_proposing = False
        if not reason:
            self._report(f"cluster: epoch {following.epoch}: {_described(following)}")
        elif self._layer.peers.view().epoch < following.epoch:
            self._report(f"warning: the view of epoch {following.epoch}: {reason}")


def _described(view: View) -> str:
    members = ", ".join(f"node {one.number} {one.state}" for one in view.members)
    return f"{members}; copies {view.copies}"
