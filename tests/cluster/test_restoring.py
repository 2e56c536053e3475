"""A directory that is written again is trusted by the nodes that have seen the one before."""

from __future__ import annotations

import asyncio
from typing import cast

from metad.cluster import etcd as real_etcd
from metad.cluster import restoring, seen
from metad.cluster.directory_keys import Keys, read_directory
from tests.cluster.views import make_member, make_view
from tests.support.etcd_fake import FakeEtcd, State

VIEW = make_view(make_member(1), make_member(2), epoch=3)


def test_a_node_that_never_read_etcd_restores_it_for_those_that_have() -> None:
    async def main() -> None:
        fake = FakeEtcd()
        etcd, keys = cast(real_etcd.Etcd, fake), Keys(VIEW.cluster)
        await restoring.begin(etcd, VIEW, 1)
        before = seen.look(None, await read_directory(etcd, keys, 2), VIEW.epoch)
        assert not before.frozen
        fake.start(State())
        wiped = seen.look(before, await read_directory(etcd, keys, 2), VIEW.epoch)
        assert wiped.frozen
        await restoring.restore(etcd, VIEW, None, 1)
        assert not seen.look(wiped, await read_directory(etcd, keys, 2), VIEW.epoch).frozen

    asyncio.run(main())
