"""A node of a simulated cluster: a whole hub whose workers have the cluster's layer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metad.cluster.node import Node
from metad.cluster.transport import Links
from metad.cluster.view import View
from metad.layers.base import LayerContext
from metad.layers.cluster import ClusterLayer
from metad.store.index.index import LISTING_ENTRY
from tests.sim.hub import Hub
from tests.sim.links import SimLinks
from tests.sim.network import Network
from tests.sim.worker import Worker

PIECE = 400

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class SimClusterLayer(ClusterLayer):
    """The real layer over simulated links.  What streams is small here."""

    piece = PIECE

    def __init__(self, worker: Worker, network: Network) -> None:
        self._worker = worker
        self._network = network

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

    def __init__(self, sim: Simulation, data: Path, node: int, view: View) -> None:
        super().__init__(sim, data, slots=1, node=node)
        self.network: Network
        self.is_off = False  # and stays so until the operator switches it on
        rng = random.Random(f"clocks {sim.plan.seed} {node}")
        self.clock.ahead = rng.randrange(10**15)
        self.clock.real_ahead = rng.choice((0, 1, -1)) * rng.randrange(600 * 10**9)
        self.join(view)

    def make_layer(self, worker: Worker) -> ClusterLayer:
        return SimClusterLayer(worker, self.network)

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
