"""The users of a cluster in a real etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from metad.cluster import etcd as client
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import Changes, EtcdError, puts
from metad.config.model import ClusterConfig
from metad.errors import ClusterError, DataError
from metad.users import rows, upload, user_directory
from metad.users.imports.import_apply import Transfer
from metad.users.imports.import_entries import ImportEntry
from metad.users.rows import Change
from tests.support.etcd import EtcdCluster
from tests.support.sizes import noted, scaled
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
from tests.support.user_rows import everything

pytestmark = pytest.mark.slow  # they start etcd

RACES = 10


@pytest.fixture
def server() -> Iterator[EtcdCluster]:
    with EtcdCluster() as made:
        yield made


@asynccontextmanager
async def nodes(server: EtcdCluster, place: Path) -> AsyncIterator[tuple[Node, Node]]:
    config = ClusterConfig(etcd=server.urls)
    async with Etcd(config) as etcd, cluster(place, etcd) as two:
        yield two


def test_a_password_changed_on_one_node_holds_on_the_other(
    server: EtcdCluster, tmp_path: Path
) -> None:
    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            longest = 0.0
            for number in range(RACES):
                password = b"changed %d" % number
                began = time.monotonic()
                await one.call("set_password", ANN, password)
                await until(lambda word=password: two.users.verify(ANN, word) is not None)  # type: ignore[misc]
                longest = max(longest, time.monotonic() - began)
            noted("users: until a new password holds on both nodes", f"{longest:.3f} s at most")
            assert not one.lines + two.lines

    asyncio.run(test())


def test_of_two_that_add_an_address_at_once_exactly_one_does(
    server: EtcdCluster, tmp_path: Path
) -> None:
    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            for number in range(scaled(RACES)):
                name = f"u{number}@example.test"
                found = await asyncio.gather(
                    one.call("add", name, b"1"), two.call("add", name, b"2"),
                    return_exceptions=True,
                )  # fmt: skip
                assert sorted(isinstance(one, DataError) for one in found) == [False, True]
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_a_watch_from_a_compacted_revision_ends_in_a_reload(
    server: EtcdCluster, tmp_path: Path
) -> None:
    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            await two.stop()
            await one.call("add", BOB, b"secret")
            await one.call("remove", ANN)
            server.compact()
            two.start()
            await until(lambda: two.users.account(BOB) is not None)
            await one.call("add", CAT)
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)
            assert [number for number, *_ in two.users.removed()] == [2]

    asyncio.run(test())


def test_a_large_import_reaches_a_node_that_was_away(server: EtcdCluster, tmp_path: Path) -> None:
    """It comes in fragments, or page by page."""

    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            for start, is_compacted in ((0, False), (1000, True)):
                await two.stop()
                names = [f"u{start + number}@example.test" for number in range(scaled(400))]
                entries = [(name, None) for name in names]
                added = await asyncio.to_thread(
                    lambda some: list(one.users.add_many(some)), entries
                )
                assert len(added) == len(names)
                if is_compacted:
                    server.compact()
                two.start()
                await until(lambda: level(one, two))
                assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_a_large_change_holds_only_if_no_user_has_changed(
    server: EtcdCluster, tmp_path: Path
) -> None:
    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            names = [f"u{number}@example.test" for number in range(80)]
            await asyncio.to_thread(lambda: list(one.users.add_many((n, None) for n in names)))
            there = tuple(rows.row_key(name.encode()) for name in names)
            old = one.directory.position
            await one.call("set_alias", "all@example.test", names)
            await until(lambda: two.users.alias("all@example.test") is not None)
            for at, holds in ((old, False), (one.directory.position, True)):
                change = Change(at, there, (), (), ((there[0], b"not a user"),))
                assert await one.directory.change(change) is holds

    asyncio.run(test())


def test_large_aliases_go_into_etcd_and_come_back_in_parts(
    server: EtcdCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "TRIES", 1)
    monkeypatch.setattr(client, "ETCD_ANSWER", 2_000_000)  # all have more, and one change less

    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            names = tuple(f"{number:052}@example.test" for number in range(1000))
            await asyncio.to_thread(lambda: list(one.users.add_many((n, None) for n in names)))
            lists = [
                ImportEntry("f:1", f"list{number}@example.test", members=names)
                for number in range(40)  # 2.6 MB
            ]
            done = Transfer(one.users)
            await asyncio.to_thread(done.run, lists)
            assert (done.outcome.added, done.outcome.bad) == (len(lists), [])
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)
            await one.stop()
            await two.stop()
            await write_directory(one.etcd, one, IDENTITY)
            two.users.follow(empty=True)
            two.start()
            one.start()
            await until(lambda: not two.users.lost)
            await until(lambda: level(one, two))
            assert everything(one.users) == everything(two.users)
            assert not one.lines + two.lines

    asyncio.run(test())


class CutEtcd(Etcd):
    """`cuts`: watches that will be lost after their next piece."""

    cuts = 0

    async def watch(self, first: str, end: str, revision: int) -> AsyncGenerator[Changes, None]:
        async with aclosing(super().watch(first, end, revision)) as watching:
            async for changes in watching:
                yield changes
                if self.cuts and changes.changes:
                    self.cuts -= 1
                    raise EtcdError("the watch is lost")


def test_a_watch_that_is_lost_between_two_pieces_loses_no_row(
    server: EtcdCluster, tmp_path: Path
) -> None:
    async def test() -> None:
        async with (
            CutEtcd(ClusterConfig(etcd=server.urls)) as etcd,
            cluster(tmp_path, etcd) as (one, two),
        ):
            await two.stop()
            names = [f"list{number}@example.test" for number in range(60)]
            row = rows.alias_row(tuple(f"{number:052}@example.test" for number in range(1000)))
            for start in range(0, 60, 15):  # 4 MB
                keys = [rows.row_key(name.encode()).decode() for name in names[start : start + 15]]
                token = puts(f"{KEYS.users}last/1", b"%d" % start)
                await etcd.transact([], [token, *(puts(KEYS.users + key, row) for key in keys)])
            await until(lambda: one.users.alias(names[-1]) is not None)
            etcd.cuts = 1
            two.start()
            await until(lambda: two.users.alias(names[-1]) is not None)
            assert etcd.cuts == 0
            assert everything(one.users) == everything(two.users)

    asyncio.run(test())


def test_an_etcd_that_was_away_is_followed_again(server: EtcdCluster, tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(server, tmp_path) as (one, two):
            server.stop()
            with pytest.raises(ClusterError, match="does not answer"):
                await one.call("add", BOB)
            assert one.users.verify(ANN, b"secret")
            await asyncio.to_thread(server.start)
            await one.call("add", BOB)
            await until(lambda: level(one, two))
            assert two.users.account(BOB) is not None

    asyncio.run(test())


@pytest.mark.long
def test_a_server_that_falls_silent_leaves_no_node_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_directory, "LISTEN_S", 0.2)
    monkeypatch.setattr(user_directory, "MIRRORED_S", 1.0)

    async def test(servers: EtcdCluster) -> None:
        silent = next(one for one in servers.servers if one is not servers.leader)
        others = [url for url in servers.urls if url != silent.url]
        near, far = (ClusterConfig(etcd=(*urls, *others)) for urls in ((), (silent.url,)))
        async with Etcd(near) as etcd, Etcd(far) as other, cluster(tmp_path, etcd) as (one, two):
            await two.stop()
            two.etcd = other
            two.start()
            await one.call("set_password", ANN, b"first")
            await until(lambda: two.users.verify(ANN, b"first") is not None)
            silent.pause()  # its connections stay open
            await one.call("set_password", ANN, b"second")
            await until(lambda: two.users.verify(ANN, b"second") is not None)
            assert two.users.verify(ANN, b"first") is None

    with EtcdCluster(3) as servers:
        asyncio.run(test(servers))
