"""Nodes of a cluster, as far as users are concerned: a mirror, and what the directory process does.

etcd is a real one, or tests.support.etcd_fake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from metad.cluster.directory_keys import Identity, Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import puts
from metad.users.database import UserDatabase
from metad.users.directory_users import OvertakenError
from metad.users.rows import Change
from metad.users.upload import Upload
from metad.users.user_directory import UserDirectory, UserDirectoryNode
from tests.support.etcd_fake import FakeEtcd
from tests.support.user_rows import Users

AnyEtcd = Etcd | FakeEtcd
KEYS = Keys("c" * 32)
IDENTITY = Identity("i" * 16, 1)
ANN, BOB, CAT = "ann@example.test", "bob@example.test", "cat@example.test"
PATIENCE_S = 20.0


class Node:
    """A node whose commands run in threads, as they are processes of their own elsewhere."""

    def __init__(self, place: Path, number: int, etcd: AnyEtcd) -> None:
        place.mkdir(exist_ok=True)
        with UserDatabase(place / "users", create=True, iterations=4096) as users:
            if number == 1:
                users.add(ANN, b"secret")
        self.etcd = etcd
        self.number = number
        self.identity: Identity | None = IDENTITY
        self.distrusts = False
        self.distrusted: list[tuple[Identity, str]] = []
        self.lines: list[str] = []
        self.users = Users(place / "users", self._propose, iterations=4096)
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        if not self.users.in_directory:
            self.users.follow(empty=True)
        node = UserDirectoryNode(
            self.number, KEYS, lambda: self.identity, self.lines.append,
            lambda: self.distrusts, self._distrust,
        )  # fmt: skip
        self.directory = UserDirectory(cast(Any, self.etcd), node, self.users)
        self.task = self._loop.create_task(self.directory.run())

    async def _distrust(self, identity: Identity, reason: str) -> None:
        self.distrusted.append((identity, reason))

    def _propose(self, change: Change) -> None:
        done = asyncio.run_coroutine_threadsafe(self.directory.change(change), self._loop)
        if not done.result(PATIENCE_S):
            raise OvertakenError("overtaken")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        return await asyncio.to_thread(getattr(self.users, name), *arguments, **named)


@asynccontextmanager
async def cluster(tmp_path: Path, etcd: AnyEtcd) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes; the first had `ANN`."""
    one, two = nodes = [Node(tmp_path / str(number), number, etcd) for number in (1, 2)]
    await write_directory(etcd, one, IDENTITY)
    try:
        for node in nodes:
            node.start()
        await until(lambda: two.users.account(ANN) is not None)
        yield one, two
    finally:
        for node in nodes:
            await node.stop()
            node.users.close()


async def write_directory(etcd: AnyEtcd, node: Node, identity: Identity) -> None:
    """As `metad cluster init` and `restore-directory` do; the node has no directory process."""
    upload = Upload(node.users, node.number)
    await upload.write(cast(Any, etcd), KEYS)
    await etcd.transact([], [puts(KEYS.identity, identity.encode())])
    upload.follow(identity)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def level(one: Node, two: Node) -> bool:
    return one.directory.position == two.directory.position
