"""Three real nodes, clients at all of them, and kill -9 of a process every moment.

Nothing acknowledged is lost, nothing deleted with +OK comes back, and no listing is short.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.support.clients import Pop3Line, SmtpLine, in_time, message, stuffed
from tests.support.cluster_hubs import ClusterOfHubs, NodeHub
from tests.support.hub import address
from tests.support.sizes import reached, scaled

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("METAD_TEST_SEED", "1999"))
BOX = "ann"
MOST = 150  # messages that wait to be read: every session reads them all


class Ledger:
    """What clients were told.  A message is known by the number in its subject."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0
        self.acked: set[int] = set()
        self.refused: set[int] = set()
        self.attempted: set[int] = set()  # QUIT was sent
        self.deleted: set[int] = set()  # and answered by +OK
        self.wrong: list[str] = []
        self.listings = 0
        self.read_again = threading.Event()

    def next(self) -> int:
        with self.lock:
            self.number += 1
            return self.number

    def known(self) -> tuple[set[int], set[int]]:
        """What a session that begins now must show, and what it must not."""
        with self.lock:
            return self.acked - self.attempted, set(self.deleted)


def subject(number: int) -> bytes:
    return b"Subject: <%d>\r\n" % number


def number_of(text: bytes) -> int:
    return int(text.partition(b"Subject: <")[2].partition(b">")[0])


def send(node: NodeHub, ledger: Ledger) -> None:
    if len(ledger.known()[0]) > MOST:
        ledger.read_again.clear()
        ledger.read_again.wait(1.0)
        return
    number = ledger.next()
    with SmtpLine(node) as smtp:
        smtp.say("MAIL FROM:<sender@client.example.test>")
        smtp.say(f"RCPT TO:<{address(BOX)}>")
        smtp.say("DATA", b"354")
        smtp.send(stuffed(subject(number) + message(b"text\r\n")))
        reply = smtp.line()
    with ledger.lock:
        if reply.startswith(b"250"):
            ledger.acked.add(number)
        elif reply.startswith(b"4"):
            ledger.refused.add(number)


def read(node: NodeHub, ledger: Ledger, dice: random.Random) -> None:
    """A session that lists and fetches everything, and deletes some of it."""
    must, must_not = ledger.known()
    with Pop3Line(node) as pop:
        pop.log_in(BOX)
        found = [number_of(pop.retrieve(one)) for one in range(1, pop.count() + 1)]
        ledger.listings += 1
        if missing := must - set(found):
            ledger.wrong.append(f"node {node.number} does not list {sorted(missing)}")
        if back := must_not.intersection(found):
            ledger.wrong.append(f"node {node.number} lists what was deleted: {sorted(back)}")
        if len(found) != len(set(found)):
            ledger.wrong.append(f"node {node.number} lists a message twice")
        chosen = dice.sample(range(1, len(found) + 1), dice.choice((0, len(found) // 2)))
        for one in chosen:
            pop.say(f"DELE {one}")
        numbers = {found[one - 1] for one in chosen}
        with ledger.lock:
            ledger.attempted |= numbers
        pop.say("QUIT")
    with ledger.lock:
        ledger.deleted |= numbers
    ledger.read_again.set()


class Client(threading.Thread):
    """Does one thing at random nodes until it is told to stop.  What a killed node does to it is
    no failure."""

    def __init__(self, act: Callable[[NodeHub], None], nodes: list[NodeHub], seed: int) -> None:
        super().__init__()
        self._act = act
        self._nodes = nodes
        self.dice = random.Random(seed)
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            with suppress(OSError, AssertionError, ValueError):
                self._act(self.dice.choice(self._nodes))


def test_kills_of_workers_and_nodes_under_load() -> None:
    dice = random.Random(SEED)
    ledger = Ledger()
    with ClusterOfHubs(3, [BOX, "bob"]) as cluster:
        nodes = cluster.nodes
        clients = [Client(lambda node: send(node, ledger), nodes, SEED + n) for n in range(3)]
        reader = Client(lambda node: read(node, ledger, reader.dice), nodes, SEED + 9)
        for client in (*clients, reader):
            client.start()
        try:
            until = time.monotonic() + scaled(6)
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
            assert in_time(lambda node=node: _is_right(node, ledger)), _listed(node)  # type: ignore[misc]
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


def _listed(node: NodeHub) -> list[int]:
    with Pop3Line(node) as pop:
        pop.log_in(BOX)
        found = [number_of(pop.retrieve(one)) for one in range(1, pop.count() + 1)]
        pop.say("QUIT")
        return found


def _is_right(node: NodeHub, ledger: Ledger) -> bool:
    """In quiet: all that was acknowledged and not deleted, nothing refused, nothing deleted."""
    with suppress(OSError, AssertionError):
        found = set(_listed(node))
        must, must_not = ledger.known()
        return must <= found and not found & (must_not | ledger.refused)
    return False
