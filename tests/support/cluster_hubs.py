"""Real hubs as the nodes of a cluster: `metad start` on addresses of the loopback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from metad.cluster.certificates import Pair, make_ca, make_member
from metad.cluster.identity import CA, CA_KEY, MEMBER, MEMBER_KEY, VIEW, directory, own_fingerprint
from metad.cluster.view import Member, Membership, View
from metad.cluster.view_file import ViewFile
from metad.store import identity
from metad.system.osio import Osio
from tests.support.clients import in_time
from tests.support.hub import Hub, HubError, free_ports

CLUSTER = "d" * 32


class NodeHub(Hub):
    """One node.  Its mailboxes have the same numbers on every node: they are made in one order."""

    def __init__(self, number: int, mailboxes: Iterable[str], peers: list[str], port: int) -> None:
        self.number = number
        self.peer = f"127.0.0.{number + 1}:{port}"
        others = json.dumps([one for one in peers if one != self.peer][:1])
        table = f'[cluster]\naddress = "{self.peer}"\npeers = {others}\n'
        super().__init__(mailboxes, table, log_size="8MiB")

    def announced(self) -> list[str]:
        return [*super().announced(), f"listening peer {self.peer}"]

    def make_member(self, ca: Pair) -> Member:
        """Its files, as `metad cluster` makes them."""
        owner = os.stat(self.data)
        place = directory(self.data)
        place.mkdir()
        own = make_member(ca, self.number)
        for name, text in (
            (CA, ca.certificate), (CA_KEY, ca.key), (MEMBER, own.certificate), (MEMBER_KEY, own.key)
        ):  # fmt: skip
            (place / name).write_text(text)
        (self.data / "logs").mkdir(exist_ok=True)
        secret = bytes([self.number]) * 32
        identity.write_identity(
            Osio(),
            identity.make_store(self.data, bytes(16), secret, self.number, clustered=True),
        )
        self._give(owner)
        return Member(
            self.number, self.peer, own_fingerprint(place), Membership.ACTIVE, healed=False
        )

    def keep(self, view: View) -> None:
        ViewFile(Osio(), str(directory(self.data) / VIEW)).keep(view)
        self._give(os.stat(self.data))

    def _give(self, owner: os.stat_result) -> None:
        for path in [self.data, *self.data.rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)


class ClusterOfHubs:
    """So many nodes with the same mailboxes, all running within the context."""

    def __init__(self, count: int, mailboxes: Iterable[str], copies: int = 2) -> None:
        names = list(mailboxes)
        ports = free_ports(count)
        peers = [f"127.0.0.{number + 1}:{port}" for number, port in enumerate(ports, 1)]
        self.nodes: list[NodeHub] = []
        for number, port in enumerate(ports, 1):
            self.nodes.append(NodeHub(number, names, peers, port))
        ca = make_ca(CLUSTER)
        members = tuple(node.make_member(ca) for node in self.nodes)
        self.view = View(CLUSTER, 1, members, copies, copies, "refuse")
        for node in self.nodes:
            node.keep(self.view)

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            for node in self.nodes:
                node.close(failed=kind is not None)
        finally:
            self._remove()

    def _remove(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                with suppress(OSError):
                    node.kill()
            shutil.rmtree(node.home)


@contextmanager
def join_two(mailboxes: Iterable[str]) -> Iterator[tuple[NodeHub, NodeHub]]:
    """Two nodes made by the commands; the first has the mailboxes, the other joins with nothing."""
    ports = free_ports(2)
    peers = [f"127.0.0.{number + 1}:{port}" for number, port in enumerate(ports, 1)]
    a, b = NodeHub(1, mailboxes, peers, ports[0]), NodeHub(2, [], peers, ports[1])
    try:
        a.run("cluster", "init")
        a.start()
        token = a.run("cluster", "token").stdout.strip()
        b.run("cluster", "join", token)
        b.start()
        if not in_time(lambda: _copies(a) == (2, 2)):
            raise HubError(f"there are no two copies:\n{a.log.read_text()}{b.log.read_text()}")
        yield a, b
        a.close()
        b.close()
    finally:
        for node in (a, b):
            if node.process is not None:
                print(f"the log of node {node.number}:\n{node.log.read_text()}")
                with suppress(OSError):
                    node.kill()
            shutil.rmtree(node.home)


def _copies(node: NodeHub) -> tuple[int, int]:
    facts = json.loads(node.run("cluster", "status", "--json").stdout)
    return facts["copies"], facts["copies_of_old_mail"]
