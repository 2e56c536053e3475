"""Rule Delete: the tombstones of one QUIT on their way to all members that answer.

    start -> own record and one DELETE to each member -> own_done, answers ... -> done

Rule of this file: all are asked at once and all answers are waited for, because those that did not
confirm count: each may hold the only copy that a later session hears of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metad.cluster import rules
from metad.cluster.answers import Answer, Answered
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.system.osio import Buffer

PATIENCE_S = 5.0
Done = Callable[[str | None], None]


class Deleting:
    """The deletions of one session."""

    __slots__ = ("_done", "_got", "_own", "_parts", "_peers", "_view", "_waiting")

    def __init__(self, peers: Peers, parts: Sequence[Buffer], done: Done) -> None:
        """`parts`: the body of DELETE.  `done` is called once: None, or why it does not hold."""
        self._peers = peers
        self._parts = parts
        self._done = done
        self._view = peers.view()
        self._got: set[int] = set()
        self._own: bool | None = None
        self._waiting: set[int] = set()

    def start(self) -> None:
        """Tell the others.  The caller submits its own record, and calls `own_done`."""
        view, peers = self._view, self._peers
        self._waiting = {*view.active, *view.entering} - {peers.number}
        for member in sorted(self._waiting):
            peers.request(member, Kind.DELETE, self._parts, self._on_answer(member), PATIENCE_S)

    def own_done(self, *, stored: bool) -> None:
        """This node's record is durable, or will never be."""
        self._own = stored
        if stored:
            self._got.add(self._peers.number)
        self._settle()

    def _on_answer(self, member: int) -> Callable[[Answer], None]:
        def answered(answer: Answer) -> None:
            self._waiting.discard(member)
            if isinstance(answer, Answered):
                self._got.add(member)
            self._settle()

        return answered

    def _settle(self) -> None:
        if self._own is None or self._waiting:
            return
        if not self._own:
            self._done("the deletion could not be stored here")
        elif self._peers.view() is not self._view:
            self._done("the cluster's view changes")
        elif not rules.deletion_confirmed(self._view, self._got, has_word=self._peers.has_word()):
            self._done("too few members could be told of the deletion")
        else:
            self._done(None)
