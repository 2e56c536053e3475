"""What a node can do at the moment, by the rules that decide about mail, noted for the operator.

    links, view, etcd's word -> `find`, once a second -> shared memory -> metad.monitor

Rules of this file:

* It decides nothing: mail and logins are refused by what is asked for them.
* A member counts as reached until two looks in a row have found no link with it.  The first of
  them has the link dialed again, so that the restart of one process of a peer is no alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from metad.cluster import rules
from metad.cluster.peers import Peers
from metad.cluster.view import Membership, View
from metad.system import node_standing
from metad.system.node_standing import Obstacle, Short, Standing

_BY_STATE = {
    Membership.ABSENT: Obstacle.ABSENT,
    Membership.ENTERING: Obstacle.ENTERING,
}


class Sight(NamedTuple):
    """What a node knows.  `number`: its own; `reached`: the members that answer, itself included;
    `is_refused`: the others refuse it."""

    view: View
    number: int
    reached: Collection[int]
    has_word: bool = True
    is_refused: bool = False


def find(sight: Sight) -> Standing:
    """How the node stands; the times are left out."""
    view, reached = sight.view, set(sight.reached)
    links = reached.intersection((*view.active, *view.entering)) - {sight.number}
    others = reached.intersection(view.counting) - {sight.number}
    return Standing(
        mail=_own(sight) or _mail(sight),
        logins=_own(sight) or _logins(sight),
        short=short_of_copies(view),
        active=len(view.active),
        reached=len(reached.intersection(view.active)),
        linked=len(links),
        suffice=len(others) >= view.copies,
        silent=tuple(one for one in (*view.active, *view.entering) if one not in reached),
        absent=view.those(Membership.ABSENT),
        unhealed=view.unhealed,
    )


def _own(sight: Sight) -> Obstacle:
    """Whether the node itself is no active member."""
    if sight.is_refused:
        return Obstacle.OLD_DISK
    if sight.number in sight.view.active:
        return Obstacle.NONE
    member = sight.view.member(sight.number)
    return _BY_STATE.get(member.state, Obstacle.REMOVED) if member else Obstacle.REMOVED


def _mail(sight: Sight) -> Obstacle:
    is_taken = rules.is_durable(sight.view, sight.reached)
    return Obstacle.NONE if is_taken else Obstacle.FEW


def _logins(sight: Sight) -> Obstacle:
    view, reached = sight.view, sight.reached
    entering = set(reached).intersection(view.entering)
    if rules.may_list(view, reached, entering, has_word=sight.has_word):
        return Obstacle.NONE
    if rules.may_list(view, reached, entering, has_word=True):
        return Obstacle.NO_WORD
    if rules.may_list(view, view.active, view.entering, has_word=True):
        return Obstacle.FEW
    return Obstacle.AWAY


def short_of_copies(view: View) -> Short:
    """Which mail may have fewer than `copies` copies, as far as the view tells."""
    if view.short:
        return Short.NEW
    if view.unhealed:
        return Short.AWAY if len(view.unhealed) >= view.read_copies else Short.OLD
    return Short.OLD if view.read_copies < view.copies else Short.NONE


class Standings:
    """One node's, noted by its first worker."""

    def __init__(
        self,
        cells: memoryview,
        peers: Peers,
        is_up: Callable[[int], bool],
        clocks_ns: tuple[Callable[[], int], Callable[[], int]],
    ) -> None:
        """`is_up`: whether there is a link with a member; `clocks_ns`: CLOCK_BOOTTIME, Unix."""
        self._cells = cells
        self._peers = peers
        self._is_up = is_up
        self._boottime_ns, self._time_ns = clocks_ns
        self._before: set[int] | None = None
        # As the worker before this one noted it.
        self._last = node_standing.read(cells, self._boottime_ns()) or Standing()

    def tick(self, *, is_refused: bool) -> None:
        """To be called once a second."""
        peers = self._peers
        view = peers.view()
        up = {one for one in (*view.active, *view.entering) if self._is_up(one)}
        before, self._before = self._before, up
        if before is None:  # links are being made
            return
        reached = up | before | {peers.number}
        found = find(Sight(view, peers.number, reached, peers.has_word(), is_refused))
        mail_since = self._since(found.mail, self._last.mail, self._last.mail_since)
        logins_since = self._since(found.logins, self._last.logins, self._last.logins_since)
        self._last = found._replace(mail_since=mail_since, logins_since=logins_since)
        node_standing.write(self._cells, self._last, self._boottime_ns())

    def _since(self, obstacle: Obstacle, before: Obstacle, since: int) -> int:
        """Another reason for the same refusal does not begin it."""
        if obstacle is Obstacle.NONE:
            return 0
        return since if before is not Obstacle.NONE else self._time_ns() // 1_000_000_000
