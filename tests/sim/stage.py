"""What a directed life does with the nodes of a simulated cluster, one step after the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from metad.cluster.view import Member, Membership, View
from metad.cluster.word import Word
from metad.errors import RefusedError
from tests.sim.etcd import Etcd
from tests.sim.plan import BOXES, Op
from tests.sim.worker import LostError, Worker

if TYPE_CHECKING:
    from tests.sim.cluster_clients import ClusterClients
    from tests.sim.cluster_node import ClusterHub
    from tests.sim.etcd_clients import EtcdClients

PATIENCE_SECONDS = 60.0


class Stage:
    """Nodes are named by their numbers."""

    def __init__(self, clients: ClusterClients) -> None:
        self._clients = clients
        self._scheduler = clients.sim.scheduler
        self._random = random.Random(clients.sim.plan.seed)
        self.network = clients.network

    @property
    def etcd(self) -> Etcd:
        etcd = self._clients.hubs[0].etcd
        assert etcd is not None
        return etcd

    def hub(self, number: int) -> ClusterHub:
        return self._clients.hubs[number - 1]

    def worker(self, number: int) -> Worker:
        hub = self.hub(number)
        self._scheduler.wait(lambda: hub.worker(0) is not None, PATIENCE_SECONDS)
        worker = hub.worker(0)
        assert worker is not None, f"node {number} does not serve"
        return worker

    def view(self, number: int) -> View:
        return self.hub(number).durable_view()

    def is_in(self, number: int, state: Membership, at: int, *, healed: bool | None = None) -> bool:
        """Whether a member is in a state, in the view of node `at`."""
        member = self.view(at).member(number)
        found = member is not None and member.state is state
        return found and (healed is None or member is None or member.healed == healed)

    def has_word(self, number: int) -> bool:
        """Whether etcd's word is fresh at a node, for its view."""
        hub = self.hub(number)
        word = Word(*hub.area.word_cells)
        return word.is_good(self.view(number).epoch, hub.clock.monotonic_ns())

    # -- time

    def wait(self, seconds: float) -> None:
        self._scheduler.pause(seconds)

    def until(self, what: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        self._scheduler.wait(what, seconds)
        self._clients.sim.note("as awaited" if what() else "not as awaited")

    def meanwhile(self, work: Callable[[], object]) -> Callable[[], None]:
        """Do something beside; call the answer to wait for its end."""
        task = self._scheduler.spawn("meanwhile", self._clients, work)
        return lambda: self.until(lambda: task.ended)

    # -- mail

    def box_for(self, one: int, other: int) -> tuple[int, int]:
        """Where to send which mailbox mail so that these two get it: node and mailbox."""
        for box in range(1, BOXES + 1):
            for node, peer in ((one, other), (other, one)):
                line = [each for each in self.view(one).line(box) if each != node]
                if line[0] == peer:
                    return node, box
        raise AssertionError("no mailbox has its copies there")

    def box_of(self, node: int, peer: int) -> int:
        """A mailbox whose mail goes to `peer` too if it is sent to `node`."""
        for box in range(1, BOXES + 1):
            if next(one for one in self.view(node).line(box) if one != node) == peer:
                return box
        raise AssertionError("no mailbox has its copies there")

    def put(self, node: int, box: int, *, wait: bool = True) -> bool:
        """One message; whether it was acknowledged."""
        judge, body = self._clients.judge, self._random.randbytes(100)
        before = len(judge.ledger.acked)
        try:
            self._clients._send(self.worker(node), (box,), body, wait=wait)
        except (RefusedError, LostError):
            return False
        return len(judge.ledger.acked) > before

    def look(self, node: int, box: int) -> list[bytes] | None:
        """What a session lists; None: -ERR."""
        found = self._clients.session(
            self.worker(node), self.hub(node), box, self._random, quits=False
        )
        return None if found is None else [one for one, _ in found]

    def look_thrice(self, node: int, box: int) -> None:
        """A client that is refused, for a view that has just changed for instance, tries again."""
        for _ in range(3):
            self.look(node, box)
            self.wait(0.5)

    def delete(self, node: int, box: int) -> None:
        """A session that deletes everything."""
        self._clients.delete_all(self.worker(node), self.hub(node), box)

    def collect(self, number: int) -> None:
        """The logs of a node that may be freed are, the one in use as well."""
        self._clients._stop(Op("stop", number - 1))
        self.worker(number)
        self._clients._collect(Op("collect", number - 1, 0, 2))

    # -- failures

    def kill(self, number: int) -> None:
        """It stays off until it is started."""
        self._clients.sim.note(f"node {number} is off")
        self.hub(number).crash()

    def start(self, number: int) -> None:
        self._clients.sim.note(f"node {number} is on")
        self._clients.start(self.hub(number))

    def copy_disk(self, number: int) -> Path:
        """Of a node that is off."""
        hub = self.hub(number)
        copy = hub.data.with_name(f"copy-of-{number}")
        hub.copy_disk(copy)
        return copy

    def restore_disk(self, number: int, copy: Path) -> None:
        self._clients.sim.note(f"node {number} gets an old disk")
        self.hub(number).restore_disk(copy)

    def discard(self, number: int) -> None:
        """It is switched off for good; the others go on without it."""
        self.kill(number)
        hub = self.hub(number)
        hub.is_member, hub.is_lost = False, True

    def isolate(self, number: int, *others: int) -> None:
        """From these; from all and etcd if there are none."""
        self._clients.sim.note(f"node {number} is cut off from {others or 'all'}")
        for hub in self._clients.hubs:
            if hub.node != number and (hub.node in others or not others):
                self.network.cut(number, hub.node)
        if not others:
            self.etcd.cuts.add(number)

    def mend(self) -> None:
        self._clients.sim.note("nothing is cut")
        self.network.heal()
        if self._clients.hubs[0].etcd is not None:
            self.etcd.cuts.clear()

    def remove(self, by: int, number: int) -> bool:
        """`metad cluster remove --lossy`."""
        clients = cast("EtcdClients", self._clients)
        return clients.remove(self.hub(by), number, is_lossy=True)

    def join_up(self, node: int, other: int) -> None:
        """They hear each other again, and both reach etcd."""
        self._clients.sim.note(f"nodes {node} and {other} hear each other")
        self.network.cuts -= {(node, other), (other, node)}
        self.etcd.cuts -= {node, other}

    # -- views

    def propose(self, by: int, change: Callable[[View], tuple[Member, ...]]) -> None:
        """A member proposes its view with other members."""
        worker, note = self.worker(by), self._clients.sim.note

        def work() -> None:
            view = worker.layer.peers.view()
            worker.layer.proposals.propose(view.changed(members=change(view)), note)

        worker.call(work)

    def is_proposed(self, by: int, number: int, state: Membership) -> bool:
        """Whether a proposal with a member in this state is on its way to etcd."""
        directory = self.hub(by).directory()
        view = directory.proposed if directory is not None else None
        member = view.member(number) if view is not None else None
        return member is not None and member.state is state

    def transacts(self, number: int) -> bool:
        """Whether a transaction of a node is on its way to etcd."""
        directory = self.hub(number).directory()
        return directory is not None and directory.way.transacts

    def walks(self, number: int) -> bool:
        """Whether a node's walk of its present epoch is under way."""
        walk = self.worker(number).layer._steward._walk
        return walk is not None and walk._view.epoch == self.view(number).epoch

    def alone(self, number: int) -> None:
        """`metad cluster alone` on a node without etcd whose peer is off."""
        worker, hub = self.worker(number), self.hub(number)
        worker.call(lambda: self._clients.go_on_alone(worker, hub))

    def join(self, by: int) -> None:
        """A new machine, taken in by a member."""
        self._clients.begin(Op("join", by - 1))
