"""A change of users reaches the other nodes by the watch alone, and at once.

No clock is read: what is counted is what etcd is asked, and the turns of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metad.cluster.etcd_json import Changes, Json, Outcome
from metad.errors import ClusterError
from metad.system.backoff import Backoff
from metad.users import user_directory
from tests.support.etcd_fake import FakeEtcd
from tests.support.sizes import reached, scaled
from tests.support.user_nodes import ANN, Node, cluster, level, until

NEVER = 1e6  # seconds between questions whether the watch has told everything


class Turns:
    """Counts the turns of the loop that runs."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._loop.call_soon(self._next)


class WatchedEtcd(FakeEtcd):
    """`came`: the turns in which the last part of a revision came to a node."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.reads = self.watches = 0
        self.came: list[int] = []

    async def read(self, *requests: Json) -> Outcome:
        self.reads += 1
        return await super().read(*requests)

    async def watch(self, first: str, end: str, revision: int) -> AsyncGenerator[Changes, None]:
        self.watches += 1
        async with aclosing(super().watch(first, end, revision)) as watching:
            async for changes in watching:
                if changes.changes and not changes.more:
                    self.came.append(self.turns.count)
                yield changes


def note_entered(node: Node, etcd: WatchedEtcd, entered: list[int]) -> None:
    """The turns in which the node's mirror enters rows."""
    apply: Any = node.users.apply

    def applied(revisions: Sequence[Any], position: Any) -> list[str]:
        if revisions:
            entered.append(etcd.turns.count)
        found: list[str] = apply(revisions, position)
        return found

    node.users.apply = applied  # type: ignore[method-assign, assignment]


async def change_passwords(nodes: Sequence[Node], count: int) -> None:
    """On each in turn: the new one holds on all, and the old one on none."""
    old = b"secret"
    for number in range(count):
        new = b"changed %d" % number
        await nodes[number % len(nodes)].call("set_password", ANN, new)
        for node in nodes:
            await until(lambda node=node, new=new: node.users.verify(ANN, new) is not None)  # type: ignore[misc]
            assert node.users.verify(ANN, old) is None
        old = new


def test_a_change_is_entered_in_the_turn_in_which_the_watch_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_directory, "LISTEN_S", NEVER)

    async def test() -> None:
        etcd, entered = WatchedEtcd(), list[int]()
        async with cluster(tmp_path, etcd) as nodes:
            await until(lambda: etcd.watches == len(nodes))
            asked = etcd.reads
            for node in nodes:
                note_entered(node, etcd, entered)
            etcd.came.clear()
            count = scaled(10)
            await change_passwords(nodes, count)
            assert etcd.came == entered
            assert len(entered) == count * len(nodes)
            # Nothing has asked for what is new, and no watch has begun again.
            assert (etcd.reads, etcd.watches) == (asked, len(nodes))
            assert not [line for node in nodes for line in node.lines]
        reached("users: changes entered in the turn in which the watch told of them", len(entered))

    asyncio.run(test())


@pytest.mark.slow
def test_a_watch_that_tells_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above counts is there when a change comes in the other way, by a question."""
    monkeypatch.setattr(user_directory, "LISTEN_S", 0.05)
    monkeypatch.setattr(user_directory, "MIRRORED_S", 0.05)

    async def test() -> None:
        etcd = WatchedEtcd()
        async with cluster(tmp_path, etcd) as nodes:
            await until(lambda: etcd.watches == len(nodes))
            asked, etcd._moved = etcd.reads, asyncio.Event()  # what the watches wait for never is
            with suppress(ClusterError):  # its own node has not seen it
                await nodes[0].call("set_password", ANN, b"changed")
            for node in nodes:
                await until(lambda node=node: node.users.verify(ANN, b"changed") is not None)  # type: ignore[misc]
            assert etcd.watches > len(nodes)
            assert etcd.reads > asked

    asyncio.run(test())


class NotedBackoff(Backoff):
    """`failures`: what was asked for."""

    failures: ClassVar[list[int]] = []

    def delay(self, failures: int) -> float:
        self.failures.append(failures)
        return super().delay(failures)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(NotedBackoff, "failures", found)
    monkeypatch.setattr(user_directory, "AGAIN", NotedBackoff(0.01, 0.01))
    return found


def test_a_watch_that_is_lost_now_and_then_begins_again_soon_each_time(
    tmp_path: Path, failures: list[int]
) -> None:
    async def test() -> None:
        etcd = WatchedEtcd()
        async with cluster(tmp_path, etcd) as nodes:
            for number in range(5):
                await until(lambda number=number: etcd.watches == len(nodes) * (number + 1))  # type: ignore[misc]
                etcd.cuts = len(nodes)
                await nodes[0].call("set_disabled", ANN, not number % 2)
                await until(lambda: level(*nodes))
            assert failures == [1] * 5 * len(nodes)

    asyncio.run(test())


def test_a_watch_that_stands_ends_the_count_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: list[int]
) -> None:
    monkeypatch.setattr(user_directory, "LISTEN_S", 0.05)

    async def test() -> None:
        etcd = WatchedEtcd()
        async with cluster(tmp_path, etcd) as (_, two):
            etcd.stop()
            await until(lambda: max(failures, default=0) > 2)
            etcd.start()
            await until(lambda: two.directory._failures == 0)

    asyncio.run(test())
