"""Real hubs as the nodes of a cluster with etcd, made by the commands of an operator alone."""

from __future__ import annotations

import json
import select
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from metad.cluster.identity import VIEW, directory
from metad.cluster.view import Membership, View
from tests.support.etcd import HOST, EtcdCluster
from tests.support.hub import DEADLINE, Hub, HubError, free_ports

ABSENT_AFTER = 15  # seconds, the least that there is; a lease takes 12 more
PATIENCE = ABSENT_AFTER + 2 * DEADLINE


class EtcdNode(Hub):
    """One machine: it becomes a node by `begin` or `join`."""

    def __init__(self, peer: str, urls: Sequence[str], settings: str = "") -> None:
        self.peer = peer
        self.table = "\n".join(
            (
                "[cluster]",
                f'address = "{self.peer}"',
                f"etcd = {json.dumps(list(urls))}",
                f'absent_after = "{ABSENT_AFTER}s"',
                settings,
            )
        )
        super().__init__([], self.table)

    def announced(self) -> list[str]:
        return [*super().announced(), f"listening peer {self.peer}"]

    def cluster(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("cluster", *words, "--json").stdout)
        return found

    def refused(self, *words: str) -> str:
        """Why a command is refused."""
        done = self.run("cluster", *words, check=False)
        assert done.returncode, done.stdout
        return done.stderr

    def begin(self) -> None:
        self.run("cluster", "init")
        self.start()

    def join(self, member: EtcdNode) -> int:
        """By a token of a member that runs; the number of this node."""
        token = member.run("cluster", "token").stdout.strip()
        number: int = self.cluster("join", token)["node"]
        self.start()
        return number

    def empty(self) -> None:
        """All that the node had is gone."""
        shutil.rmtree(self.data)

    def view(self) -> View:
        return View.decode((directory(self.data) / VIEW).read_bytes())

    def until(self, is_so: Callable[[View], bool], what: str) -> View:
        """Its view, when it is so."""
        deadline = time.monotonic() + PATIENCE
        while not is_so(view := self.view()):
            if time.monotonic() > deadline:
                raise HubError(f"not {what}: {view}\n{self.log.read_text()}")
            select.select([], [], [], 0.05)
        return view

    def until_active(self, *numbers: int) -> View:
        """These and no others are active, and all mail has two copies."""

        def is_so(view: View) -> bool:
            copies = (view.copies, view.read_copies) == (2, 2)
            return view.active == numbers and copies and not view.unhealed

        return self.until(is_so, f"active: {numbers}")

    def until_absent(self, number: int, *, healed: bool = True) -> View:
        def is_so(view: View) -> bool:
            is_healed = number not in view.unhealed or not healed
            return number in view.those(Membership.ABSENT) and is_healed

        return self.until(is_so, f"absent: {number}")


def on_loopback(number: int, etcd: EtcdCluster) -> EtcdNode:
    (port,) = free_ports(1)
    return EtcdNode(f"127.0.0.{number + 2}:{port}", etcd.urls)


class Trio:
    """Three nodes, of which the first began the cluster, and their etcd."""

    def __init__(self, etcd: EtcdCluster, nodes: Sequence[EtcdNode]) -> None:
        self.etcd = etcd
        self.nodes = list(nodes)

    def make(self, names: Sequence[str]) -> None:
        """As an operator does it; the first machine has the mailboxes."""
        first, *others = self.nodes
        first.add_all(list(names))
        first.begin()
        for node in others:
            node.join(first)
        for node in self.nodes:
            node.until_active(1, 2, 3)

    def close(self, *, failed: bool) -> None:
        try:
            for node in self.nodes:
                if not failed:  # one that was killed, too: its shared memory is still there
                    node.close()
        finally:
            for node in self.nodes:
                if node.process is not None:
                    print(f"the log of {node.peer}:\n{node.log.read_text()}")
                    with suppress(OSError, HubError):
                        node.kill()
                shutil.rmtree(node.home, ignore_errors=True)


@contextmanager
def three_nodes(
    names: Sequence[str],
    place: Callable[[int, EtcdCluster], EtcdNode] | None = None,
    etcd_host: str = HOST,
) -> Iterator[Trio]:
    """`place` makes each machine; otherwise they are addresses of the loopback."""
    with EtcdCluster(host=etcd_host) as etcd:
        make = place or on_loopback
        trio = Trio(etcd, [make(number, etcd) for number in range(3)])
        try:
            trio.make(names)
            yield trio
        except BaseException:
            trio.close(failed=True)
            raise
        trio.close(failed=False)
