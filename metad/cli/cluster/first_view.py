"""The directory of a new cluster in etcd: its identity and its first view."""

from __future__ import annotations

import asyncio

from metad.cluster import restoring
from metad.cluster.etcd import Etcd
from metad.cluster.view import View
from metad.config.model import ClusterConfig


def begin_directory(config: ClusterConfig, view: View) -> None:
    """Write both, if nothing of this cluster is there: its name is drawn at random, so only another
    attempt with the same name could be.  Raises ClusterError, UnavailableError, ConfigError."""
    asyncio.run(_begin(config, view))


async def _begin(config: ClusterConfig, view: View) -> None:
    async with Etcd(config) as etcd:
        await restoring.begin(etcd, view, view.members[0].number)
