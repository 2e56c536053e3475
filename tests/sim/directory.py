"""The process of a simulated node that alone talks to etcd.

It stands for metad.workers.directory, which has sockets and asyncio.

Rules of this file:

* The word of etcd is as old as the request that brought it: the time is taken before it is sent.
* A view is durable and in force here before whoever proposed it is told.
* An etcd that has been wiped or has gone back gives no word and takes no view: frozen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from metad.cluster.current_view import CurrentView
from metad.cluster.view import State, View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError
from tests.sim.etcd import AwayError, Etcd, Found, Seen
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.cluster_node import ClusterHub

RENEW_SECONDS = 2.0
WORD_AT, WORD_EPOCH = 6, 7  # cells at the head of shared memory
Told = Callable[[str], None]


class DirectoryProcess(Process):
    """`proposals`: views that the node's workers want, with whom to tell."""

    role = "directory"

    def __init__(self, hub: ClusterHub, etcd: Etcd) -> None:
        super().__init__(hub, hub.free_row())
        self._node = hub
        self._etcd = etcd
        self.stopping = False
        self.proposals: deque[tuple[View, Told]] = deque()
        self.proposed: View | None = None  # on its way
        self._frozen = True  # until etcd has answered once
        self._ended: dict[int, int] = {}  # member, since when it is known to have no lease

    def work(self) -> int:
        path = str(self.hub.data / "cluster" / "view")
        self._current = CurrentView(ViewFile(self.osio, path), self.hub.area.epoch_cell)
        while not self.stopping:
            self._renew()
            self.scheduler.wait(self._has_work, RENEW_SECONDS)
            while self.proposals:
                proposal, told = self.proposals.popleft()
                told(self._propose(proposal))
        return 0

    def _has_work(self) -> bool:
        """Proposals, or an event of the watch."""
        etcd = self._etcd
        is_newer = etcd.view.epoch > self.hub.area.epoch_cell[0] and etcd.reaches(self.hub.node)
        return bool(self.proposals) or self.stopping or (is_newer and not self._frozen)

    def _renew(self) -> None:
        number, sent = self.hub.node, self.osio.boottime_ns()
        try:
            found = self._etcd.ask(number, lambda: self._etcd.renew(number))
        except AwayError:
            return
        if not self._trust(found.seen):
            return
        if found.view.epoch > self._current.get().epoch:
            self._adopt(found.view)
        cells = self.hub.area.cells
        cells[WORD_AT] = 0  # both cells change for who reads them one by one
        cells[WORD_EPOCH] = found.view.epoch
        cells[WORD_AT] = sent
        self._mark_absent(found)

    def _trust(self, seen: Seen) -> bool:
        trusted = seen.follows(self._node.seen)
        if trusted:
            self._node.seen = seen
        elif not self._frozen:
            self.report("etcd has gone back: frozen")
        self._frozen = not trusted
        return trusted

    def _adopt(self, view: View) -> str:
        try:
            self._current.adopt(view)
        except (ClusterError, OSError) as error:
            return str(error) or repr(error)
        return ""

    def _propose(self, view: View, ended: int = 0) -> str:
        etcd, seen = self._etcd, self._node.seen
        if self._frozen:
            return "etcd has gone back"
        self.proposed = view
        try:
            reason = etcd.ask(self.hub.node, lambda: etcd.swap(seen, view, ended))
        except AwayError:
            return "etcd does not answer"
        finally:
            self.proposed = None
        return reason or self._adopt(view)

    # -- rule Absent

    def _mark_absent(self, found: Found) -> None:
        view, now = found.view, self.osio.boottime_ns()
        there = {*view.active, *view.entering} - {self.hub.node}
        without = there - found.leases
        self._ended = {one: self._ended.get(one, now) for one in without}
        patience = int(self._node.absent_after * 1e9)
        if self.hub.node not in view.active:
            return
        for number in sorted(without):
            following = absent(view, number)
            if now - self._ended[number] >= patience and following is not None:
                reason = self._propose(following, number)
                self.report(f"node {number} is marked absent: {reason or 'yes'}")
                return


def absent(view: View, number: int) -> View | None:
    """The view in which a member is absent; None: `copies` active ones must stay."""
    serves = number in view.active
    spare = len(view.active) > view.copies or view.alone == "accept" or view.entering
    if serves and not spare:
        return None
    change = {"healed": False} if serves else {}
    return view.changed(members=view.with_member(number, state=State.ABSENT, **change))


class SimProposals:
    """What a worker has of its node's directory."""

    def __init__(self, hub: ClusterHub, on_loop: Callable[[Callable[[], object]], None]) -> None:
        self._hub = hub
        self._on_loop = on_loop

    def propose(self, view: View, done: Told) -> None:
        directory = self._hub.directory()
        if directory is None:
            self._on_loop(partial(done, "the directory is away"))
            return
        directory.proposals.append((view, lambda reason: self._on_loop(partial(done, reason))))
