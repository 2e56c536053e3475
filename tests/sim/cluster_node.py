"""A node of a simulated cluster: a whole hub whose workers have the cluster's layer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metad.cluster.node import Node
from metad.cluster.transport import Links
from metad.cluster.view import View
from metad.layers.base import LayerContext
from metad.layers.cluster import ClusterLayer, WorkerPeers
from metad.store.index.index import LISTING_ENTRY
from tests.sim.directory import WORD_AT, WORD_EPOCH, DirectoryProcess, SimProposals
from tests.sim.etcd import Etcd, Seen
from tests.sim.hub import Hub
from tests.sim.links import SimLinks
from tests.sim.network import Network
from tests.sim.worker import Worker

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


WORD_SECONDS = 10.0


class SimPeers(WorkerPeers):
    """With etcd's word, which the directory's process notes in shared memory."""

    def __init__(self, node: Node, links: Links, worker: Worker) -> None:
        super().__init__(node, links)
        self._worker = worker

    def has_word(self) -> bool:
        cells = self._worker.hub.area.cells
        age = self._worker.osio.boottime_ns() - cells[WORD_AT]
        return cells[WORD_EPOCH] == self.view().epoch and age <= WORD_SECONDS * 1e9


class SimClusterLayer(ClusterLayer):
    """The real layer over simulated links, and a simulated directory."""

    def __init__(self, worker: Worker, hub: ClusterHub) -> None:
        self._worker = worker
        self._hub = hub
        self._network = hub.network

    def start(self, context: LayerContext) -> None:
        super().start(context)
        if self._hub.etcd is not None:
            self.peers = SimPeers(self._node, self.links, self._worker)
            self.proposals = SimProposals(self._hub, self._worker.loop.call_soon)

    def adopt(self, view: View) -> None:
        """With etcd a view is proposed."""
        if self._hub.etcd is None:
            super().adopt(view)
        else:
            self.proposals.propose(view, self._proposed)

    def _proposed(self, reason: str) -> None:
        if reason:
            self._worker.report(f"the view is not changed: {reason}")

    def _make_links(self, context: LayerContext) -> Links:
        worker, log = self._worker, self.log
        self._start_token = worker.pid.to_bytes(8, "big")
        self._node = Node(
            number=log.store.node,
            start=self._start_token,
            release="1",
            current_view=self._current.get,
            adopt=self._current.adopt,
            handler=self.requests.handle,
            report=context.report,
            clock=lambda: log.osio.boottime_ns() / 1e9,
            hub_time_us=log.clock.now_us,
            ended=self.requests.link_ended,
            disks=self.marks.disks,
        )
        return cast(Links, SimLinks(worker, worker.loop, self._network, self._node))


class ClusterHub(Hub):
    """One node."""

    def __init__(
        self, sim: Simulation, data: Path, node: int, network: Network, etcd: Etcd | None = None
    ) -> None:
        super().__init__(sim, data, slots=1, node=node)
        self.network = network
        self.etcd = etcd
        self.seen = Seen()  # of etcd; durable
        self.is_member = False
        self.is_off = False  # and stays so until the operator switches it on
        rng = random.Random(f"clocks {sim.plan.seed} {node}")
        self.clock.ahead = rng.randrange(10**15)
        self.clock.real_ahead = rng.choice((0, 1, -1)) * rng.randrange(600 * 10**9)
        self.absent_after = rng.choice((0.0, 0.0, 5.0))

    def join(self, view: View) -> None:
        super().join(view)
        self.is_member = True

    def make_layer(self, worker: Worker) -> ClusterLayer:
        return SimClusterLayer(worker, self)

    def start_others(self) -> None:
        if self.etcd is not None and self.directory() is None:
            DirectoryProcess(self, self.etcd).start()

    def directory(self) -> DirectoryProcess | None:
        return next((one for one in self.processes if isinstance(one, DirectoryProcess)), None)

    @property
    def name(self) -> str:
        return f"node {self.node}"

    def entries(self, mailbox: int) -> set[bytes]:
        """The messages that this node itself has."""
        packed = self.workers()[0].log.index.listing(mailbox)
        return {message_id for message_id, _ in LISTING_ENTRY.iter_unpack(packed)}

    def durable_view(self) -> View:
        """The view on the disk."""
        return View.decode((self.data / "cluster" / "view").read_bytes())
