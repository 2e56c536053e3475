"""Users of a node while a directory that was written again is not read to its end there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metad.cluster.directory_keys import Identity
from metad.cluster.etcd_json import Reading
from metad.errors import ClusterError
from metad.users import rows
from metad.users.rows import Change
from tests.support.etcd_fake import FakeEtcd, State
from tests.support.user_nodes import (
    ANN,
    BOB,
    CAT,
    IDENTITY,
    Node,
    cluster,
    level,
    until,
    write_directory,
)  # fmt: skip


class SlowEtcd(FakeEtcd):
    """Rows are read page by page only once `goes_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def prefix(self, prefix: str, revision: int = 0, page: int = 3) -> AsyncIterator[Reading]:
        await self.goes_on.wait()
        async for one in super().prefix(prefix, revision, page):
            yield one


async def wipe_and_restore(etcd: FakeEtcd, one: Node, two: Node) -> None:
    """By the first node.  Both are stopped; node 2 follows from its next start on."""
    one.identity = two.identity = None
    etcd.start(State())
    newer = Identity(IDENTITY.id, 2)
    await write_directory(etcd, one, newer)
    one.identity = two.identity = newer
    one.start()


def test_a_node_that_still_reads_a_restored_directory_takes_no_change(tmp_path: Path) -> None:
    """Its revision is of the directory before, and greater than any of the new one."""

    async def test() -> None:
        async with cluster(tmp_path, etcd := SlowEtcd()) as (one, two):
            for number in range(20):
                await two.call("set_disabled", ANN, bool(number % 2))
            for node in (one, two):
                await node.stop()
            before = two.directory.position
            await wipe_and_restore(etcd, one, two)
            await until(lambda: one.directory.position.identity != before.identity)
            etcd.goes_on.clear()
            two.start()
            bob = await one.call("add", BOB)
            assert one.directory.position.revision < before.revision
            with pytest.raises(ClusterError, match="of the restored directory yet"):
                await two.call("add", CAT)
            etcd.goes_on.set()
            await until(lambda: level(one, two))
            late = Change(before, (), (), (rows.NEXT,), ((rows.NEXT, b"2"),))
            with pytest.raises(ClusterError, match="of the restored directory yet"):
                await two.directory.change(late)
            assert (await two.call("add", CAT)).id > bob.id

    asyncio.run(test())
