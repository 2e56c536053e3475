"""Three real nodes and etcd in network namespaces, hurt every few seconds under load.

Processes and nodes are killed, machines stand still, links are cut, cut one way, and stalled; etcd
stops.  Nothing acknowledged is lost, nothing deleted with +OK comes back, no listing is short.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support.clients import in_time
from tests.support.cluster_ledger import BOX, Client, Ledger, is_right, listed, read, send
from tests.support.net_hubs import NetCluster, NetNode, state_of
from tests.support.sizes import reached, sized

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("METAD_TEST_SEED", "1999"))
# Seconds: shorter than any patience, about as long, and longer than a link may be silent.
WHILES = (0.1, 1.0, 4.0)
PATIENCE = 90.0  # for all to be well again


class Harm:
    """What is done to a cluster, each for a while, then undone."""

    def __init__(self, cluster: NetCluster, dice: random.Random) -> None:
        self._cluster = cluster
        self._dice = dice
        self._ended = threading.Event()
        self.done: dict[str, int] = {}

    def hurt(self) -> None:
        """One of them."""
        kinds: list[Callable[[NetNode], None]] = [
            self.kill_a_process, self.kill_a_node, self.cut, self.cut_one_way, self.stall,
            self.pause, self.stop_etcd,
        ]  # fmt: skip
        kind = self._dice.choice(kinds)
        kind(self._dice.choice(self._cluster.nodes))
        self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1

    def kill_a_process(self, node: NetNode) -> None:
        """Any but the first, without which the others end, too."""
        assert node.process is not None
        pids = [pid for pid in node.pids() if pid != node.process.pid]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self._dice.choice(pids), signal.SIGKILL)
        self._for_a_while()

    def kill_a_node(self, node: NetNode) -> None:
        node.kill()
        self._for_a_while()
        node.start()

    def away(self) -> None:
        """A node is off until the others go on without it."""
        node, other, *_ = self._dice.sample(self._cluster.nodes, len(self._cluster.nodes))
        node.kill()
        assert in_time(lambda: state_of(node, other) == "absent", PATIENCE), other.cluster()
        node.start()
        assert in_time(lambda: state_of(node, other) == "active", PATIENCE), other.cluster()

    def cut(self, node: NetNode) -> None:
        self._cluster.net.cut(node.place)
        self._for_a_while()
        self._cluster.net.mend()

    def cut_one_way(self, node: NetNode) -> None:
        other = self._dice.choice([one for one in self._cluster.nodes if one is not node])
        self._cluster.net.cut_way(node.place, other.place)
        self._for_a_while()
        self._cluster.net.mend()

    def stall(self, node: NetNode) -> None:
        self._cluster.net.stall(node.place)
        self._for_a_while()
        self._cluster.net.mend()

    def pause(self, node: NetNode) -> None:
        """What it wakes up with must not be carried out."""
        pids = node.pids()
        _signal(pids, signal.SIGSTOP)
        self._for_a_while()
        _signal(pids, signal.SIGCONT)

    def stop_etcd(self, node: NetNode) -> None:
        etcd = self._cluster.etcd
        etcd.servers[0].pause()
        self._for_a_while()
        etcd.servers[0].go_on()

    def _for_a_while(self) -> None:
        self._ended.wait(self._dice.choice(WHILES))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _there(act: Callable[[NetNode], None]) -> Callable[[NetNode], None]:
    """In the namespace of the node."""

    def acted(node: NetNode) -> None:
        with node.place.inside():
            act(node)

    return acted


def _is_right(node: NetNode, ledger: Ledger) -> bool:
    with node.place.inside():
        return is_right(node, ledger)


def _listed(node: NetNode) -> list[int]:
    with node.place.inside():
        return listed(node)


@pytest.mark.long
def test_whatever_happens_to_three_nodes_nothing_is_lost_and_nothing_returns() -> None:
    dice = random.Random(SEED)
    ledger = Ledger()
    with NetCluster([BOX, "bob"]) as cluster:
        nodes = cluster.nodes
        clients = [
            Client(_there(lambda node: send(node, ledger)), nodes, SEED + n) for n in range(3)
        ]
        reader = Client(
            _there(lambda node: read(node, f"node {node.number}", ledger, reader.dice)),
            nodes, SEED + 9,
        )  # fmt: skip
        harm = Harm(cluster, dice)
        _under_load([*clients, reader], harm, rounds=sized(8, 200))
        assert not ledger.wrong, ledger.wrong[:5]
        assert ledger.listings
        assert ledger.known()[0]
        for node in nodes:
            assert in_time(lambda node=node: _is_right(node, ledger), PATIENCE), _listed(node)  # type: ignore[misc]
    for kind, times in sorted(harm.done.items()):
        reached(f"cluster in a network: {kind}", times)
    reached("cluster in a network: messages acknowledged meanwhile", len(ledger.acked))
    reached("cluster in a network: listings meanwhile, none of them short", ledger.listings)


def _under_load(clients: list[Client], harm: Harm, rounds: int) -> None:
    for client in clients:
        client.start()
    try:
        for _ in range(rounds):
            harm.hurt()
        harm.away()
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join()
