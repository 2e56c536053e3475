"""Nodes of different releases as one cluster: of neighbours, and of others, which are refused.

Each node is a hub of its own release (tests.support.releases).  A rolling upgrade under load loses
nothing, lists nothing short, and brings nothing back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.support.clients import Pop3Line, bodies, in_time, message, unique_ids
from tests.support.cluster_hubs import ClusterOfHubs
from tests.support.cluster_ledger import BOX, Client, Ledger, is_right, listed, read, send
from tests.support.etcd import EtcdCluster
from tests.support.etcd_hubs import EtcdNode, Trio, on_loopback, three_nodes
from tests.support.hub import PASSWORD, Hub, address
from tests.support.releases import Installed, Release, Releases, made_releases
from tests.support.sizes import SEED, noted, reached

from .test_cluster import quit_with
from .test_cluster import send as send_text

pytestmark = pytest.mark.slow
NAMES = [BOX, "bob"]
MESSAGES = 10  # acknowledged before the next node is upgraded
PAUSE = 0.1  # seconds of a client between two sessions


@pytest.fixture(scope="module")
def releases() -> Iterator[Releases]:
    with made_releases() as made:
        yield made


def install(hub: Hub, release: Release) -> Installed:
    installed = Installed(hub.home / "installed", release)
    hub.environ = installed.environ
    return installed


def status(node: Hub) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.run("cluster", "status", "--json").stdout)
    return found


def is_whole(node: Hub) -> bool:
    """What an operator looks for before the next node is upgraded."""
    facts = status(node)
    links = {one["link"] for one in facts["members"]}
    return links <= {"up", "this node"} and not facts["short_of_copies"]


def link_text(node: Hub, number: int) -> str:
    (found,) = (one["link"] for one in status(node)["members"] if one["number"] == number)
    return str(found)


def lines(node: Hub, text: str) -> list[str]:
    return [line for line in node.log.read_text().splitlines() if text in line]


# -- side by side


@pytest.mark.long
def test_three_neighbouring_releases_have_one_mailbox(releases: Releases) -> None:
    cluster = ClusterOfHubs(3, NAMES)
    for node, release in zip(cluster.nodes, releases[:3], strict=True):
        install(node, release)
    with cluster:
        nodes = cluster.nodes
        assert [node.status()["version"] for node in nodes] == [one.name for one in releases[:3]]
        assert all(in_time(lambda node=node: is_whole(node)) for node in nodes)  # type: ignore[misc]
        texts = [message(b"number %d\r\n" % number) for number in range(9)]
        texts += [message(b"x" * 900 + b"\r\n" * 150_000) for _ in nodes]  # in pieces
        for number, text in enumerate(texts):
            assert send_text(nodes[number % 3], text, *NAMES).startswith(b"250")
        for name in NAMES:
            assert all(bodies(node, name) == texts for node in nodes)
            assert len({tuple(unique_ids(node, name)) for node in nodes}) == 1
        for node in nodes:  # each deletes what others have
            assert quit_with(node, BOX, 1, 3).startswith(b"+OK")
            texts = [texts[1], *texts[3:]]
            assert all(bodies(one, BOX) == texts for one in nodes)
        for node in nodes:
            node.kill()
            node.start()
            assert all(in_time(lambda one=one: shows_all(one, texts)) for one in nodes)  # type: ignore[misc]
        assert not any(lines(node, "no common protocol") for node in nodes)


def shows_all(node: Hub, texts: Sequence[bytes]) -> bool:
    try:
        return bodies(node, BOX) == texts
    except (AssertionError, OSError):  # the links are not up again
        return False


# -- refused


@pytest.mark.long
def test_a_release_without_a_common_protocol_is_refused_with_a_reason(releases: Releases) -> None:
    with ClusterOfHubs(2, NAMES) as cluster:
        a, b = cluster.nodes
        text = message(b"before\r\n")
        assert in_time(lambda: send_text(a, text, BOX).startswith(b"250"))
        b.stop()
        install(b, releases.second)
        b.start()
        reasons = [
            f"no common protocol: {one.spoken}, release {other.name} "
            f"{other.protocols[0]} to {other.protocols[1]}"
            for one, other in (
                (releases.second, releases.tree),
                (releases.tree, releases.second),
            )
        ]
        for node, other in ((a, 2), (b, 1)):
            assert in_time(lambda node=node: lines(node, "no common protocol"))  # type: ignore[misc, arg-type, return-value]
            assert any(reason in lines(node, "no common protocol")[0] for reason in reasons)
            assert f"node {other}" in lines(node, "no common protocol")[0]
            assert any(reason in link_text(node, other) for reason in reasons)
            # No copy, no 250; one of two is enough to read (docs/cluster.md, What works when).
            assert send_text(node, message(b"refused\r\n"), BOX).startswith(b"451")
            assert bodies(node, BOX) == [text]
            assert quit_with(node, BOX, 1).startswith(b"-ERR [SYS/TEMP]")
        b.stop()
        install(b, releases.after)
        b.start()
        assert in_time(lambda: is_whole(a) and is_whole(b))
        later = message(b"after\r\n")
        assert in_time(lambda: send_text(b, later, BOX).startswith(b"250"))
        assert all(in_time(lambda node=node: later in bodies_or_none(node)) for node in (a, b))  # type: ignore[misc]


def bodies_or_none(node: Hub) -> list[bytes]:
    try:
        return bodies(node, BOX)
    except (AssertionError, OSError):
        return []


@contextmanager
def three_machines(names: Sequence[str]) -> Iterator[list[EtcdNode]]:
    """The first has begun the cluster, the others have nothing yet."""
    with EtcdCluster() as etcd:
        trio = Trio(etcd, [on_loopback(number, etcd) for number in range(3)])
        first = trio.nodes[0]
        try:
            first.add_all(list(names))
            first.begin()
            yield trio.nodes
        except BaseException:
            trio.close(failed=True)
            raise
        trio.close(failed=False)


@pytest.mark.long
def test_a_node_joins_one_of_a_neighbouring_release_and_no_other(releases: Releases) -> None:
    tree, second = releases.tree, releases.second
    reason = (
        f"no common protocol: {second.spoken}, release {tree.name} "
        f"{tree.protocols[0]} to {tree.protocols[1]}"
    )
    with three_machines(NAMES) as (a, b, c):
        for release, node in ((releases.before, b), (releases.after, c)):
            install(node, second)
            token = a.run("cluster", "token").stdout.strip()
            done = node.run("cluster", "join", token, check=False)
            assert done.returncode
            assert reason in done.stderr
            assert in_time(lambda: lines(a, reason))  # type: ignore[arg-type, return-value]
            install(node, release)
            node.join(a)
        for node in (a, b, c):
            node.until_active(1, 2, 3)


# -- upgrades


@contextmanager
def load(nodes: Sequence[Hub], ledger: Ledger) -> Iterator[None]:
    """Light: one client that sends, one that reads and deletes, at any node."""

    def send_one(node: Hub) -> None:
        send(node, ledger)
        sender.stopping.wait(PAUSE)

    def read_all(node: Hub) -> None:
        read(node, node.home.name, ledger, reader.dice)
        reader.stopping.wait(PAUSE)

    sender, reader = Client(send_one, nodes, SEED), Client(read_all, nodes, SEED + 1)
    for client in (sender, reader):
        client.start()
    try:
        yield
    finally:
        for client in (sender, reader):
            client.stopping.set()
        for client in (sender, reader):
            client.join()


def wait_for_more(ledger: Ledger) -> None:
    """Until so many more messages are acknowledged, and there was a listing."""
    acked, listings = len(ledger.acked) + MESSAGES, ledger.listings + 1
    assert in_time(lambda: len(ledger.acked) >= acked and ledger.listings >= listings)


def judge(nodes: Sequence[Hub], ledger: Ledger, what: str) -> None:
    assert not ledger.wrong, ledger.wrong[:5]
    for node in nodes:
        assert in_time(lambda node=node: is_right(node, ledger)), listed(node)  # type: ignore[misc]
        assert not lines(node, "no common protocol")
        assert not lines(node, "runs twice")
    reached(f"cluster: messages acknowledged while {what}", len(ledger.acked))
    reached(f"cluster: listings while {what}, none of them short", ledger.listings)
    noted(f"cluster: messages refused while {what}", str(len(ledger.refused)))


@pytest.mark.long
def test_two_nodes_are_upgraded_one_by_one_and_one_goes_back(releases: Releases) -> None:
    cluster, ledger = ClusterOfHubs(2, NAMES), Ledger()
    for node in cluster.nodes:
        install(node, releases.tree)
    with cluster:
        a, b = cluster.nodes
        with load(cluster.nodes, ledger):
            for node, release in ((a, releases.after), (b, releases.after), (a, releases.tree)):
                wait_for_more(ledger)
                node.stop()
                install(node, release)
                node.start()
                assert node.status()["version"] == release.name
                assert in_time(lambda: is_whole(a) and is_whole(b))
            wait_for_more(ledger)
        judge(cluster.nodes, ledger, "two nodes were upgraded")


@pytest.mark.long
def test_three_nodes_with_etcd_are_taken_over_by_the_next_release(releases: Releases) -> None:
    """`metad reload` on each, after the release was replaced under the hub that runs."""
    installed: dict[str, Installed] = {}

    def place(number: int, etcd: EtcdCluster) -> EtcdNode:
        node = on_loopback(number, etcd)
        installed[node.peer] = install(node, releases.tree)
        return node

    with three_nodes(NAMES, place) as trio:
        nodes, ledger = trio.nodes, Ledger()
        with load(nodes, ledger):
            for number, node in enumerate(nodes):
                wait_for_more(ledger)
                installed[node.peer].upgrade(releases.after)
                node.run("reload")
                assert node.status()["version"] == releases.after.name
                assert all(in_time(lambda one=one: is_whole(one)) for one in nodes)  # type: ignore[misc]
                node.add(f"new{number}")
                assert all(in_time(partial(knows, one, f"new{number}")) for one in nodes)
            wait_for_more(ledger)
        judge(nodes, ledger, "three nodes were upgraded")


def knows(node: Hub, name: str) -> bool:
    with Pop3Line(node) as pop:
        pop.say(f"USER {address(name)}")
        pop.send(f"PASS {PASSWORD}\r\n".encode())
        return pop.line().startswith(b"+OK")
