"""Three real nodes, clients at all of them, and kill -9 of a process every moment.

Nothing acknowledged is lost, nothing deleted with +OK comes back, and no listing is short.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.support.clients import in_time
from tests.support.cluster_hubs import ClusterOfHubs, NodeHub
from tests.support.cluster_ledger import BOX, Client, Ledger, is_right, listed, read, send
from tests.support.sizes import reached, sized

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("METAD_TEST_SEED", "1999"))


@pytest.mark.long
def test_kills_of_workers_and_nodes_under_load() -> None:
    dice = random.Random(SEED)
    ledger = Ledger()
    with ClusterOfHubs(3, [BOX, "bob"]) as cluster:
        nodes = cluster.nodes
        clients = [Client(lambda node: send(node, ledger), nodes, SEED + n) for n in range(3)]
        reader = Client(
            lambda node: read(node, f"node {node.number}", ledger, reader.dice), nodes, SEED + 9
        )
        for client in (*clients, reader):
            client.start()
        try:
            until = time.monotonic() + sized(3, 60)
            kills = 0
            while time.monotonic() < until:
                kills += _kill_something(dice, nodes)
        finally:
            for client in (*clients, reader):
                client.stopping.set()
            for client in (*clients, reader):
                client.join()
        assert not ledger.wrong, ledger.wrong[:5]
        assert ledger.listings
        assert ledger.known()[0]
        for node in nodes:
            assert in_time(lambda node=node: is_right(node, ledger)), listed(node)  # type: ignore[misc]
            assert "runs twice" not in node.log.read_text()  # no disk is taken for an old one
    reached("cluster: kills of workers and nodes under load", kills)
    reached("cluster: messages acknowledged meanwhile", len(ledger.acked))
    reached("cluster: listings meanwhile, none of them short", ledger.listings)


def _kill_something(dice: random.Random, nodes: list[NodeHub]) -> int:
    """kill -9 of a worker, which the node replaces, or of a node, which is started again."""
    node = dice.choice(nodes)
    if dice.random() < 0.3:
        node.kill()
        node.start()
        return 1
    workers = node.workers()
    for pid in workers[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    in_time(lambda: len(set(node.workers()) - set(workers[:1])) == 2)
    return len(workers[:1])
