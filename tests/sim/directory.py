"""The process of a simulated node that alone talks to etcd: the real Directory.

It stands for metad.workers.directory, which has sockets and asyncio.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, cast

from metad.cluster import etcd as real_etcd
from metad.cluster import seen
from metad.cluster.current_view import CurrentView
from metad.cluster.directory import Directory, DirectoryNode
from metad.cluster.proposals import Done, Proposals
from metad.cluster.seen import SeenFile
from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.cluster.word import Word
from metad.errors import ClusterError
from metad.limits import CLUSTER_PROPOSAL, CLUSTER_ROUND
from tests.sim.etcd import Etcd, NodeEtcd, drive
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.cluster_node import ClusterHub
    from tests.sim.process import Loop


class DirectoryProcess(Process):
    """`proposals`: views that the node's workers want, with whom to tell; `proposed`: the one that
    is on its way."""

    role = "directory"

    def __init__(self, hub: ClusterHub, etcd: Etcd) -> None:
        super().__init__(hub, hub.free_row())
        self._node = hub
        self._etcd = etcd
        self.way = NodeEtcd(etcd, hub.node)
        self.proposals: deque[tuple[View, Done]] = deque()
        self.news: deque[None] = deque()
        etcd.store.watchers.append(self.news)
        self.proposed: View | None = None
        self.directory: Directory | None = None

    def work(self) -> int:
        try:
            self.directory = self._make()
        except (ClusterError, OSError) as error:
            self.report(f"cannot start: {error}")
            return 1
        while not self.stopping:
            self.directory._absences._after_s = self._node.absent_after
            self.directory.wake.clear()
            drive(self.directory.round())
            self._await_work()
            while self.proposals:
                self._propose(*self.proposals.popleft())
        return 0

    def _make(self) -> Directory:
        hub, place = self.hub, self.hub.data / "cluster"
        node = DirectoryNode(
            number=hub.node,
            start=self.pid.to_bytes(8, "big"),
            current=CurrentView(ViewFile(self.osio, str(place / "view")), hub.area.epoch_cell),
            seen=SeenFile(self.osio, str(place / seen.NAME)),
            word=Word(*hub.area.word_cells),
            frozen=hub.area.frozen_cell,
            trusted=hub.area.etcd_cell,
            refused=hub.area.etcd_refuses_cell,
            absent_after=self._node.absent_after,
            clock_ns=self.osio.boottime_ns,
            report=self.report,
        )
        return Directory(cast(real_etcd.Etcd, self.way), node)

    def _await_work(self) -> None:
        """Until the next round, or there is work before it."""
        clock = self.scheduler.clock
        end = clock.monotonic + int(CLUSTER_ROUND * 1e9)
        self.news.clear()
        if not self._has_work() and not self._is_outdated:
            self.scheduler.wait_for(self.news, CLUSTER_ROUND)
        self.scheduler.wait(self._has_work, max(end - clock.monotonic, 0) / 1e9)

    def _has_work(self) -> bool:
        """Proposals, or the watch sees another view."""
        directory = self.directory
        if self.stopping or self.proposals or directory is None or directory.wake.is_set():
            return True
        return self._is_outdated and self._etcd.reaches(self.hub.node)

    @property
    def _is_outdated(self) -> bool:
        assert self.directory is not None
        found = self.directory.found
        return self._etcd.store.view_row is not (found.view_row if found is not None else None)

    def _propose(self, view: View, told: Done) -> None:
        assert self.directory is not None
        self.proposed = view
        try:
            drive(self.directory.propose(view))
        except (ClusterError, OSError) as error:
            told(str(error) or repr(error))
        else:
            told("")
        self.proposed = None


class SimProposals(Proposals):
    """What a worker has of its node's directory."""

    compares = True

    def __init__(self, hub: ClusterHub, loop: Loop) -> None:
        self._hub = hub
        self._loop = loop

    def propose(self, view: View, done: Done) -> None:
        told: list[str] = []

        def tell(reason: str) -> None:
            if not told:
                told.append(reason)
                done(reason)

        directory = self._hub.directory()
        if directory is None:
            self._loop.call_soon(partial(tell, "the directory is away"))
            return
        self._loop.call_later(CLUSTER_PROPOSAL, partial(tell, "the directory does not answer"))
        directory.proposals.append((view, partial(self._on_loop, tell)))
        directory.news.append(None)

    def _on_loop(self, tell: Done, reason: str) -> None:
        self._loop.call_soon(partial(tell, reason))
