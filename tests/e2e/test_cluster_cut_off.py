"""Three real nodes in networks of their own, and one that is cut off from the others and etcd."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.support.clients import Pop3Line, bodies, in_time, message
from tests.support.cut_network import BRIDGE, CutNetwork
from tests.support.etcd import EtcdCluster
from tests.support.etcd_hubs import EtcdNode, Trio, three_nodes
from tests.support.hub import PASSWORD, address

from .test_cluster import quit_with, send

pytestmark = pytest.mark.slow
PORT = 7525


class Machine(EtcdNode):
    """A node whose commands and processes are on a machine of the network."""

    def __init__(self, network: CutNetwork, number: int, urls: tuple[str, ...]) -> None:
        self.network = network
        self.number = number
        super().__init__(f"{network.host(number)}:{PORT}", urls)

    def inside(self) -> AbstractContextManager[None]:
        return self.network.inside(self.number)

    def run(
        self, *arguments: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        with self.inside():
            return super().run(*arguments, given=given, check=check)

    def start(self) -> Machine:
        with self.inside():
            super().start()
        return self

    def cut(self) -> None:
        self.network.cut(self.number)

    def mend(self) -> None:
        self.network.mend(self.number)

    # -- clients, which are on the same machine

    def send(self, text: bytes, *names: str) -> bytes:
        with self.inside():
            return send(self, text, *names)

    def bodies(self, name: str) -> list[bytes]:
        with self.inside():
            return bodies(self, name)

    def quit_with(self, name: str, *numbers: int) -> bytes:
        with self.inside():
            return quit_with(self, name, *numbers)

    def login(self, name: str) -> bytes:
        """The reply to PASS."""
        with self.inside(), Pop3Line(self) as pop:
            pop.say(f"USER {address(name)}")
            pop.send(f"PASS {PASSWORD}\r\n".encode())
            return pop.line()


def problems(node: Machine) -> list[str]:
    """What `metad status` tells."""
    return [one["problem"] for one in node.status()["problems"]]


@pytest.fixture
def trio() -> Iterator[Trio]:
    with CutNetwork(3) as network:

        def place(number: int, etcd: EtcdCluster) -> EtcdNode:
            return Machine(network, number, etcd.urls)

        with three_nodes(["ann"], place, BRIDGE) as trio:
            yield trio


@pytest.mark.long
def test_one_is_cut_off_and_then_of_two_that_are_left_another(trio: Trio) -> None:
    a, b, c = (node for node in trio.nodes if isinstance(node, Machine))
    sent = [message(b"on any\r\n")]
    assert c.send(sent[0], "ann").startswith(b"250")
    c.cut()
    # Two of three go on at once.  The one that is cut off neither takes mail nor lists.
    for node in (a, b):
        sent.append(message(b"without the third: %d\r\n" % len(sent)))
        assert in_time(lambda node=node: node.send(sent[-1], "ann")[:3] == b"250")  # type: ignore[misc]
        assert in_time(lambda node=node: node.login("ann")[:3] == b"+OK")  # type: ignore[misc]
    assert in_time(lambda: problems(a) == ["node 3 of the cluster does not answer"])
    assert a.status()["state"] == "degraded"
    assert in_time(lambda: c.login("ann").startswith(b"-ERR [SYS/TEMP]"))
    assert c.send(message(b"refused\r\n"), "ann").startswith(b"451")
    assert in_time(lambda: c.status()["state"] == "refusing")
    a.until_absent(3)
    taken = a.bodies("ann")
    assert set(taken) == set(sent)  # an attempt that was not acknowledged may be there, too
    assert a.quit_with("ann", 1).startswith(b"+OK")
    assert c.view().epoch < a.view().epoch
    # Of two, the one that reaches etcd lists alone; the other does so only while its word is fresh.
    b.cut()
    assert in_time(lambda: b.login("ann").startswith(b"-ERR [SYS/TEMP]"))
    assert in_time(lambda: a.login("ann").startswith(b"+OK"))
    assert a.bodies("ann") == taken[1:]
    assert a.send(message(b"refused\r\n"), "ann").startswith(b"451")
    absent = "node 3 is absent: the other nodes have gone on"
    few = "too few nodes of the cluster answer, node 2 does not: new mail and deletions are refused"
    assert in_time(lambda: problems(a) == [few, absent])
    word = "neither etcd nor enough other nodes answer"
    assert in_time(lambda: any(one.startswith(word) for one in problems(b)))
    for node in (b, c):
        node.mend()
    for node in (a, b, c):
        node.until_active(1, 2, 3)
        assert node.bodies("ann") == taken[1:]
        assert in_time(lambda node=node: node.status()["state"] == "serving"), problems(node)  # type: ignore[misc]
