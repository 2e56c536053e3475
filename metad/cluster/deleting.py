"""Rule Delete: the tombstones of one QUIT on their way to all members that answer.

    start -> own record and one DELETE to each member -> own_done, answers ... -> done
    too few, and a link was lost or the view changed -> once again

Rules of this file:

* All are asked at once and all answers are waited for, because those that did not confirm count:
  each may hold the only copy that a later session hears of.
* If too few confirmed because links were lost, those members are asked once more after a moment: by
  then they are dialed again.  If the view changed, all are asked once more under the new one.
* A member that stored the tombstones before its link was lost stores them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from metad.cluster import rules
from metad.cluster.answers import Answer, Answered, EpochChanged, LinkFailed
from metad.cluster.frames import Kind
from metad.cluster.peers import AGAIN_S, VIEW_CHANGES, Peers
from metad.cluster.view import View
from metad.system.osio import Buffer

PATIENCE_S = 5.0
TOO_FEW = "too few members could be told of the deletion"
Done = Callable[[str | None], None]
Later = Callable[[float, Callable[[], None]], object]  # call it after so many seconds, on the loop


class Deleting:
    """The deletions of one session."""

    __slots__ = ("_done", "_got", "_is_last", "_later", "_missed", "_own", "_parts", "_peers",
                 "_view", "_waiting")  # fmt: skip

    def __init__(self, peers: Peers, parts: Sequence[Buffer], later: Later, done: Done) -> None:
        """`parts`: the body of DELETE.  `done` is called once: None, or why it does not hold."""
        self._peers = peers
        self._parts = parts
        self._later = later
        self._done = done
        self._view: View
        self._got: set[int] = set()
        self._own: bool | None = None  # not known yet
        self._waiting: set[int] = set()
        self._missed: set[int] = set()  # members that may answer if they are asked once more
        self._is_last = False

    def start(self) -> None:
        """Tell the others.  The caller submits its own record, and calls `own_done`."""
        view, number = self._peers.view(), self._peers.number
        self._view = view
        self._got = {number} if self._own else set()
        self._ask({*view.active, *view.entering} - {number})

    def own_done(self, *, stored: bool) -> None:
        """This node's record is durable, or will never be."""
        self._own = stored
        if stored:
            self._got.add(self._peers.number)
        self._settle()

    def _ask(self, members: set[int]) -> None:
        self._waiting, self._missed = set(members), set()
        for member in sorted(members):
            answered = partial(self._answered, member)
            self._peers.request(member, Kind.DELETE, self._parts, answered, PATIENCE_S)
        if not members:
            self._settle()

    def _answered(self, member: int, answer: Answer) -> None:
        self._waiting.discard(member)
        if isinstance(answer, Answered):
            self._got.add(member)
        elif isinstance(answer, LinkFailed | EpochChanged):
            self._missed.add(member)
        self._settle()

    def _settle(self) -> None:
        if self._own is None or self._waiting:
            return
        reason = self._reason()
        if reason is None or not self._own or self._is_last:
            self._done(reason)
        elif reason == VIEW_CHANGES:
            self._again()
        elif self._missed:
            self._later(AGAIN_S, self._again)
        else:
            self._done(reason)

    def _reason(self) -> str | None:
        """All have answered: None, or why the deletion does not hold."""
        if not self._own:
            return "the deletion could not be stored here"
        if self._peers.view() is not self._view:
            return VIEW_CHANGES
        has_word = self._peers.has_word()
        if not rules.deletion_confirmed(self._view, self._got, has_word=has_word):
            return TOO_FEW
        return None

    def _again(self) -> None:
        """Once more: all if the view changed, otherwise those that were missed."""
        self._is_last = True
        view = self._peers.view()
        if view is self._view:
            self._ask(self._missed)
        elif rules.serves(view, self._peers.number):
            self.start()
        else:
            self._done(VIEW_CHANGES)
