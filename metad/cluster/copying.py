"""Rule Write: one message on its way to `copies` members.

    start -> own copy and one COPY to each peer chosen -> own_done, answers ... -> done

Rules of this file:

* A peer that refuses, stalls or dies is replaced by the next in line, with the same id.
* Copies of two epochs are never counted together.  If the epoch changes, all are asked once more;
  a member that has the message confirms it.
* Without enough copies `done` gets the reason.  The caller then logs a tombstone before it answers:
  some member may have the message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metad.cluster import rules
from metad.cluster.answers import Answer, Answered, EpochChanged
from metad.cluster.peers import Peers
from metad.cluster.view import View

# One COPY to a member, which names these mailboxes.
SendCopy = Callable[[int, Sequence[int], Callable[[Answer], None]], None]
Done = Callable[[str | None], None]
TRIES = 2  # under one epoch each


class _Group:
    """Mailboxes of one message whose copies go the same way."""

    __slots__ = ("asked", "failed", "got", "mailboxes", "order")

    def __init__(self, order: tuple[int, ...]) -> None:
        self.order = order
        self.mailboxes: list[int] = []
        self.got: set[int] = set()
        self.asked: set[int] = set()
        self.failed: set[int] = set()


class Copying:
    """The copies of one message."""

    __slots__ = (
        "_done", "_groups", "_mailboxes", "_over", "_own", "_peers", "_send", "_tries", "_view",
    )  # fmt: skip

    def __init__(self, peers: Peers, mailboxes: Sequence[int], send: SendCopy, done: Done) -> None:
        """`done` is called once, with None or the reason why there are too few copies."""
        self._peers = peers
        self._mailboxes = mailboxes
        self._send = send
        self._done = done
        self._own: bool | None = None  # not known yet
        self._tries = 0
        self._over = False
        self._view: View
        self._groups: list[_Group] = []

    def start(self) -> None:
        """Ask the first peers.  The caller submits its own copy, and calls `own_done`."""
        view = self._view = self._peers.view()
        self._tries += 1
        groups: dict[tuple[int, ...], _Group] = {}
        for mailbox in self._mailboxes:
            order = self._order(view, mailbox)
            groups.setdefault(order, _Group(order)).mailboxes.append(mailbox)
        self._groups = list(groups.values())
        self._go_on()

    def _order(self, view: View, mailbox: int) -> tuple[int, ...]:
        line = [*rules.also(view), *view.line(mailbox)]
        return tuple(one for one in line if one != self._peers.number)

    def own_done(self, *, stored: bool) -> None:
        """This node's copy is durable, or will never be."""
        self._own = stored
        self._go_on()

    def _go_on(self) -> None:
        """Ask the members still needed; finish when there are enough copies, or cannot be."""
        if self._over:
            return
        wanted: dict[int, list[_Group]] = {}
        for group in self._groups:
            for peer in self._missing(group):
                group.asked.add(peer)
                wanted.setdefault(peer, []).append(group)
        for peer, groups in wanted.items():
            mailboxes = [mailbox for group in groups for mailbox in group.mailboxes]
            self._send(peer, mailboxes, self._on_answer(peer, groups, self._view))
        if self._own is not None:
            self._settle()

    def _missing(self, group: _Group) -> list[int]:
        """The peers to ask now, so that there will be enough if all who were asked confirm."""
        view = self._view
        hoped = group.got | (group.asked - group.failed)
        if self._own is not False:
            hoped.add(self._peers.number)
        also = rules.also(view)
        found = []
        for peer in group.order:
            if peer in group.asked or (rules.enough(view, hoped) and peer not in also):
                continue
            found.append(peer)
            hoped.add(peer)
        return found

    def _on_answer(self, peer: int, groups: list[_Group], view: View) -> Callable[[Answer], None]:
        def answered(answer: Answer) -> None:
            if self._over or view is not self._view:
                return
            if isinstance(answer, EpochChanged):
                self._again("the cluster's view changes")
                return
            stored = isinstance(answer, Answered)
            for group in groups:
                (group.got if stored else group.failed).add(peer)
            self._go_on()

        return answered

    def _settle(self) -> None:
        if self._peers.view() is not self._view:
            self._again("the cluster's view changes")
            return
        view = self._view
        also = set(rules.also(view))
        waits = False
        for group in self._groups:
            got = group.got | ({self._peers.number} if self._own else set())
            if rules.enough(view, got) and group.got >= also - {self._peers.number}:
                continue
            if not group.asked - group.got - group.failed:
                self._finish("too few members can take a copy")
                return
            waits = True
        if not waits:
            self._finish(None)

    def _again(self, reason: str) -> None:
        """Once more, under the new epoch and with the same id."""
        if self._tries < TRIES and self._peers.number in self._peers.view().active:
            self.start()
        else:
            self._finish(reason)

    def _finish(self, reason: str | None) -> None:
        if not self._over:
            self._over = True
            done, self._done, self._send = self._done, _over, _over
            done(reason)


def _over(*_: object) -> None:
    """In place of what a finished message needs no more: a cycle of references would keep the
    message in memory until the collector of garbage runs, which it seldom does."""
