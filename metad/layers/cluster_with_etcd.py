"""The store of a worker on a node of a cluster with etcd.

The directory process of the node talks to etcd.  A worker asks it to change the view, and reads in
shared memory whether etcd's word is fresh.  No mail waits for either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from metad.cluster.local import socket_path
from metad.cluster.node import Node
from metad.cluster.peers import Peers
from metad.cluster.proposals import DirectoryProposals, Proposals
from metad.cluster.transport import Links
from metad.cluster.word import Word
from metad.layers.base import LayerContext
from metad.layers.cluster import RELEASE, ClusterLayer, WorkerPeers


class EtcdClusterLayer(ClusterLayer):
    """Views are made in etcd, and a lone reader needs its word."""

    def _make_proposals(self, context: LayerContext) -> Proposals:
        loop = cast(asyncio.AbstractEventLoop, context.loop)
        return DirectoryProposals(loop, socket_path(context.data))

    def _make_node(self, context: LayerContext, start_token: bytes, release: str = RELEASE) -> Node:
        node = super()._make_node(context, start_token, release)
        cell = context.area.etcd_cell
        node.etcd = lambda: cell[0] if self.peers.has_word() else 0
        return node

    def _make_peers(self, context: LayerContext) -> Peers:
        word = Word(*context.area.word_cells)
        return WordedPeers(self._node, self.links, word, self.log.osio.boottime_ns)


class WordedPeers(WorkerPeers):
    """The other members, where some may go on without this one."""

    def __init__(self, node: Node, links: Links, word: Word, clock_ns: Callable[[], int]) -> None:
        """`clock_ns`: CLOCK_BOOTTIME."""
        super().__init__(node, links)
        self._word = word
        self._clock_ns = clock_ns

    def has_word(self) -> bool:
        return self._word.is_good(self.view().epoch, self._clock_ns())
