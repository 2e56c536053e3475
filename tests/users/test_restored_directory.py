"""Users of a node while a directory that was written again is not read to its end there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metad.cluster.directory_keys import Identity
from metad.cluster.etcd_json import Reading
from metad.errors import ClusterError
from metad.users import rows, user_directory
from metad.users.rows import Change
from tests.support.etcd_fake import FakeEtcd, State
from tests.support.user_nodes import (
    ANN,
    BOB,
    CAT,
    IDENTITY,
    KEYS,
    Node,
    cluster,
    level,
    until,
    write_directory,
)


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


def next_number(etcd: FakeEtcd) -> int:
    return int(etcd.state.rows[f"{KEYS.users}next"].value)


def test_the_next_number_is_raised_before_all_rows_are_read(tmp_path: Path) -> None:
    """Node 2 has given numbers that node 1, which restores the directory, does not know."""

    async def test() -> None:
        async with cluster(tmp_path, etcd := SlowEtcd()) as (one, two):
            await one.stop()
            given = [(await two.call("add", name)).id for name in (BOB, CAT)]
            await two.stop()
            await wipe_and_restore(etcd, one, two)
            await until(lambda: one.directory.position.revision == etcd.state.revision)
            etcd.goes_on.clear()
            two.start()
            await until(lambda: next_number(etcd) > given[-1])
            dan = await one.call("add", "dan@example.test")
            assert dan.id > given[-1]
            etcd.goes_on.set()
            await until(lambda: level(one, two))
            assert two.users.account("dan@example.test") == dan

    asyncio.run(test())


def test_a_raise_that_another_node_overtakes_is_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (_, two):
            await two.stop()
            two.users.raise_numbers(9)

            def overtake(_: str) -> None:
                etcd.fault = lambda _: None
                etcd.write({f"{KEYS.users}next": b"8"})

            etcd.fault = overtake
            two.start()
            await until(lambda: next_number(etcd) == 9)

    asyncio.run(test())


def test_a_next_number_that_falls_is_raised_while_the_node_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_directory, "LISTEN_S", 0.05)

    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            await until(lambda: level(one, two))
            known = next_number(etcd)
            etcd.write({f"{KEYS.users}next": b"1"})
            await until(lambda: next_number(etcd) == known)
            assert not one.lines + two.lines

    asyncio.run(test())


@pytest.mark.parametrize(("there", "kept"), [(b"99", 99), (b"1", 3), (b"none", 3)])
def test_a_directory_that_is_written_again_keeps_the_greater_next_number(
    tmp_path: Path, there: bytes, kept: int
) -> None:
    async def test() -> None:
        async with cluster(tmp_path, etcd := FakeEtcd()) as (one, two):
            for node in (one, two):
                await node.stop()
            etcd.write({f"{KEYS.users}next": there})
            await write_directory(etcd, one, IDENTITY)
            assert next_number(etcd) == one.users.next_number == kept

    asyncio.run(test())
