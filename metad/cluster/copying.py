"""Rule Write: one message on its way to `copies` members.

    start -> own copy and one COPY to each peer chosen -> own_done, answers ... -> the end

Rules of this file:

* A peer that refuses, stalls or dies is replaced by the next in line, with the same id.
* Copies of two epochs are never counted together.  If the epoch changes, all are asked once more;
  a member that has the message confirms it.
* If there are too few because a link was lost, all are asked once more after a moment, too: by then
  it is dialed again, and a client that gets 451 comes back after minutes.
* Without enough copies the end has the reason.  The caller then logs a tombstone before it answers:
  some member may have the message.
* Nearly always the same peers are chosen for all mailboxes and all confirm.  Until something else
  happens they are only counted; then each mailbox's line is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from metad.cluster import rules
from metad.cluster.answers import Answer, Answered, EpochChanged, LinkFailed
from metad.cluster.peers import AGAIN_S, VIEW_CHANGES, Peers
from metad.cluster.view import View

TOO_FEW = "too few members can take a copy"
TRIES = 2  # under one epoch each; one more after a lost link


class _Group:
    """Mailboxes of one message whose copies go the same way."""

    __slots__ = ("asked", "failed", "got", "mailboxes", "order")

    def __init__(self, order: tuple[int, ...], asked: Sequence[int], got: Sequence[int]) -> None:
        self.order = order
        self.mailboxes: list[int] = []
        self.got = set(got)
        self.asked = set(asked)
        self.failed: set[int] = set()


class Copying:
    """The copies of one message.  A subclass sends them and learns the end (`_send`, `_finish`)."""

    __slots__ = ("_first", "_got", "_groups", "_lost", "_mailboxes", "_over", "_own", "_peers",
                 "_tries", "_view", "_waits")  # fmt: skip

    def __init__(self, peers: Peers, mailboxes: Sequence[int]) -> None:
        self._peers = peers
        self._mailboxes = mailboxes
        self._own: bool | None = None  # not known yet
        self._tries = 0
        self._over = False
        self._lost = False  # a link on which a copy was asked for
        self._waits: int | None = None  # the try after which all are asked once more
        self._view: View
        # The peers chosen for all mailboxes, and those that have confirmed.  None: see the groups.
        self._first: tuple[int, ...] | None
        self._got: tuple[int, ...]
        self._groups: list[_Group]

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        """Send one COPY, which names these mailboxes."""
        raise NotImplementedError

    def _finish(self, reason: str | None) -> None:
        """Called once, with None or the reason why there are too few copies."""
        raise NotImplementedError

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it after so many seconds, on the loop."""
        raise NotImplementedError

    def start(self) -> None:
        """Ask the first peers.  The caller submits its own copy, and calls `own_done`."""
        peers = self._peers
        view = self._view = peers.view()
        self._tries = tries = self._tries + 1
        self._got = ()
        first = None
        if self._own is not False:
            first = rules.first_peers(view, peers.number, self._mailboxes)
        self._first = first
        if first is None:
            self._look_at_lines()
            self._go_on()
            return
        for peer in first:
            self._send(peer, self._mailboxes, partial(self._answered, peer, tries, None))
            if self._tries != tries or self._over:
                return
        if self._own and not first:
            self._confirmed()

    def own_done(self, error: Exception | None) -> None:
        """This node's copy is durable, or for `error` will never be."""
        self._own = error is None
        if self._over:
            return
        if self._first is None:
            self._go_on()
        elif error is not None:
            self._look_at_lines()
            self._go_on()
        elif len(self._got) == len(self._first):
            self._confirmed()

    def _answered(self, peer: int, tries: int, groups: list[_Group] | None, answer: Answer) -> None:
        """`tries`: when it was asked.  `groups`: of the mailboxes that were named; None: all."""
        if self._over or tries != self._tries:
            return
        stored, first = isinstance(answer, Answered), self._first
        if stored and first is not None:
            self._got = got = (*self._got, peer)
            if self._own and len(got) == len(first):
                self._confirmed()
            return
        if isinstance(answer, EpochChanged):
            self._again(VIEW_CHANGES)
            return
        self._lost |= isinstance(answer, LinkFailed)
        if first is not None:
            self._look_at_lines()
        for group in self._groups if groups is None else groups:
            (group.got if stored else group.failed).add(peer)
        self._go_on()

    def _confirmed(self) -> None:
        """All that were chosen first have it."""
        if self._peers.view() is self._view:
            self._over = True
            self._finish(None)
        else:
            self._again(VIEW_CHANGES)

    # -- if not all goes well, or mailboxes go different ways

    def _look_at_lines(self) -> None:
        view, number = self._view, self._peers.number
        asked, self._first = self._first or (), None
        groups: dict[tuple[int, ...], _Group] = {}
        for mailbox in self._mailboxes:
            order = rules.peers_in_order(view, number, mailbox)
            group = groups.setdefault(order, _Group(order, asked, self._got))
            group.mailboxes.append(mailbox)
        self._groups = list(groups.values())

    def _go_on(self) -> None:
        """Ask the members still needed; end when there are enough copies, or cannot be."""
        if self._over:
            return
        tries = self._tries
        wanted: dict[int, list[_Group]] = {}
        for group in self._groups:
            for peer in self._missing(group):
                group.asked.add(peer)
                wanted.setdefault(peer, []).append(group)
        for peer, groups in wanted.items():
            mailboxes = [mailbox for group in groups for mailbox in group.mailboxes]
            self._send(peer, mailboxes, partial(self._answered, peer, tries, groups))
            if self._tries != tries or self._over:
                return
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

    def _settle(self) -> None:
        if self._waits == self._tries:
            return
        if self._peers.view() is not self._view:
            self._again(VIEW_CHANGES)
            return
        view = self._view
        also = set(rules.also(view))
        waits = False
        for group in self._groups:
            got = group.got | ({self._peers.number} if self._own else set())
            if rules.enough(view, got) and group.got >= also - {self._peers.number}:
                continue
            if not group.asked - group.got - group.failed:
                self._too_few()
                return
            waits = True
        if not waits:
            self._end(None)

    def _too_few(self) -> None:
        """All have answered.  A lost link is dialed again within AGAIN_S."""
        if not self._lost or self._waits is not None:
            self._end(TOO_FEW)
            return
        self._waits = tries = self._tries
        self._later(AGAIN_S, lambda: self._waited(tries))

    def _waited(self, tries: int) -> None:
        """Once more, unless a change of the epoch has already had all asked again."""
        if not self._over and tries == self._tries:
            self._again(TOO_FEW)

    def _again(self, reason: str) -> None:
        """Once more, under the epoch in force and with the same id."""
        if (
            self._tries < TRIES + (self._waits is not None)
            and self._peers.number in self._peers.view().active
        ):
            self.start()
        else:
            self._end(reason)

    def _end(self, reason: str | None) -> None:
        if not self._over:
            self._over = True
            self._finish(reason)
