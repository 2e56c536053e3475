"""The directory of a new cluster in etcd: the users of its first node, its identity and view."""

from __future__ import annotations

import asyncio
from pathlib import Path

from metad.cli.progress import Progress
from metad.cluster import restoring
from metad.cluster.etcd import Etcd
from metad.cluster.view import View
from metad.config.model import ClusterConfig
from metad.users.mirrored import MirroredUsers
from metad.users.upload import Upload


def begin_directory(config: ClusterConfig, view: View, users: Path) -> None:
    """Write all, if nothing of this cluster is there: its name is drawn at random, so only another
    attempt with the same name could be.

    Raises ClusterError, UnavailableError, ConfigError, DataError, OsError.
    """
    with MirroredUsers(users, create=True) as database:
        asyncio.run(_begin(config, view, database))


async def _begin(config: ClusterConfig, view: View, users: MirroredUsers) -> None:
    number = view.members[0].number
    progress = Progress("users")
    upload = Upload(users, number, lambda count: progress.show(count, 0, f"{count:,} users"))
    async with Etcd(config) as etcd:
        identity = await restoring.begin(etcd, view, number, upload.write)
    progress.close()
    upload.follow(identity)
