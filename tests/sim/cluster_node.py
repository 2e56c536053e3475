"""A node of a simulated cluster: a whole hub whose workers have the cluster's layer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metad.cluster.proposals import Proposals
from metad.cluster.seen import NAME, Seen, SeenFile
from metad.cluster.transport import Links
from metad.cluster.view import View
from metad.layers.base import LayerContext
from metad.layers.cluster import ClusterLayer
from metad.layers.cluster_with_etcd import EtcdClusterLayer
from metad.store.index.index import LISTING_ENTRY
from metad.system.osio import Osio
from tests.sim.directory import DirectoryProcess, SimProposals
from tests.sim.etcd import Etcd
from tests.sim.hub import Hub
from tests.sim.links import SimLinks
from tests.sim.network import Network
from tests.sim.plan import BOXES
from tests.sim.worker import Worker

PIECE = 400
FORGET_SECONDS = 15.0

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Simulated:
    """A real layer over simulated links, and a simulated directory.  What streams is small here."""

    piece = PIECE

    def __init__(self, worker: Worker, hub: ClusterHub) -> None:
        self._worker = worker
        self._hub = hub

    def start(self, context: LayerContext) -> None:
        layer = cast(Any, self)
        super().start(context)  # type: ignore[misc]
        layer.forgetting.wait_s, layer.forgetting.sample_s = FORGET_SECONDS, 1.0

    def _make_links(self, context: LayerContext) -> Links:
        layer, worker = cast(Any, self), self._worker
        layer._node = layer._make_node(context, worker.pid.to_bytes(8, "big"), "1")
        links = SimLinks(worker, worker.loop, self._hub.network, layer._node)
        links.on_heard = self._hub.is_heard
        return cast(Links, links)

    def _check_address(self, sock: object) -> None:
        """There is no socket."""


class SimClusterLayer(Simulated, ClusterLayer):
    """Without etcd."""


class SimEtcdLayer(Simulated, EtcdClusterLayer):
    """With etcd."""

    def _make_proposals(self, context: LayerContext) -> Proposals:
        return SimProposals(self._hub, self._worker.loop)


class ClusterHub(Hub):
    """One node."""

    def __init__(
        self, sim: Simulation, data: Path, node: int, network: Network, etcd: Etcd | None = None
    ) -> None:
        super().__init__(sim, data, slots=1, node=node)
        self.network = network
        self.etcd = etcd
        self.is_member = False
        self.is_lost = False  # with its disk
        self.heard_seconds = 0.0  # for which some other node has heard what it told
        self.is_off = False  # and stays so until the operator switches it on
        self._view_path = str(data / "cluster" / "view")
        self._known: tuple[bytes, View] = b"", cast(View, None)
        rng = random.Random(f"clocks {sim.plan.seed} {node}")
        self.clock.ahead = rng.randrange(10**15)
        self.clock.real_ahead = rng.choice((0, 1, -1)) * rng.randrange(600 * 10**9)
        self.absent_after = rng.choice((0.0, 0.0, 5.0))

    def join(self, view: View) -> None:
        super().join(view)
        self.is_member = True

    def make_layer(self, worker: Worker) -> ClusterLayer:
        return (SimEtcdLayer if self.etcd else SimClusterLayer)(worker, self)

    def start_others(self) -> None:
        if self.etcd is not None and self.directory() is None:
            DirectoryProcess(self, self.etcd).start()

    def directory(self) -> DirectoryProcess | None:
        return next((one for one in self.processes if isinstance(one, DirectoryProcess)), None)

    def is_heard(self, seconds: float) -> None:
        """By another node, for so long once more."""
        self.heard_seconds += seconds

    @property
    def name(self) -> str:
        return f"node {self.node}"

    def entries(self, mailbox: int) -> set[bytes]:
        """The messages that this node itself has."""
        packed = self.workers()[0].log.index.listing(mailbox)
        return {message_id for message_id, _ in LISTING_ENTRY.iter_unpack(packed)}

    def unforgotten(self) -> set[bytes]:
        """Tombstones of messages that lie in no log here."""
        worker = self.workers()[0]
        return {
            message_id
            for mailbox in range(1, BOXES + 1)
            for message_id in worker.layer.tombstones.of_mailbox(mailbox)
            if not worker.log.index.places(message_id)
        }

    def seen(self) -> Seen | None:
        """What this node has seen of etcd."""
        return SeenFile(Osio(), str(self.data / "cluster" / NAME)).load()

    def durable_view(self) -> View:
        """The view on the disk.  Asked often while all wait for one."""
        with open(self._view_path, "rb") as file:
            data = file.read()
        if data != self._known[0]:
            self._known = data, View.decode(data)
        return self._known[1]
