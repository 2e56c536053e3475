"""The directory of a new cluster in etcd: its identity and its first view."""

from __future__ import annotations

import asyncio
import secrets

from metad.cluster import directory_keys
from metad.cluster.directory_keys import Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import missing, puts
from metad.cluster.view import View
from metad.config.model import ClusterConfig
from metad.errors import ClusterError


def begin_directory(config: ClusterConfig, view: View) -> None:
    """Write both, if nothing of this cluster is there: its name is drawn at random, so only another
    attempt with the same name could be.  Raises ClusterError, UnavailableError, ConfigError."""
    asyncio.run(_begin(config, view))


async def _begin(config: ClusterConfig, view: View) -> None:
    keys = Keys(view.cluster)
    first = directory_keys.Identity(secrets.token_hex(16), 1)
    async with Etcd(config) as etcd:
        outcome = await etcd.transact(
            [missing(keys.identity), missing(keys.view)],
            [puts(keys.identity, first.encode()), puts(keys.view, view.encode())],
        )
    if not outcome.succeeded:
        raise ClusterError("etcd has a cluster of this name already")
