"""Two real hubs become a cluster by the commands of an operator, lose a node, and get it back."""

from __future__ import annotations

import json
import select
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from metad.cluster.identity import VIEW, directory
from metad.cluster.view import View
from metad.users.database import UserDatabase
from tests.support.clients import bodies, deliver, in_time, message, unique_ids
from tests.support.hub import DEADLINE, Hub, HubError, free_ports
from tests.support.live import settled_fetch

from .test_cluster import quit_with, send

pytestmark = pytest.mark.slow
NAMES = ["ann", "bob"]


class Node(Hub):
    """A hub that is alone at first."""

    def __init__(self, own: str, other: str) -> None:
        self.peer = own
        self.table = f'[cluster]\naddress = "{own}"\npeers = ["{other}"]\n'
        self.is_node = False
        super().__init__(NAMES)

    def announced(self) -> list[str]:
        return [*super().announced(), *([f"listening peer {self.peer}"] if self.is_node else [])]

    def become_node(self) -> None:
        self.is_node = True
        self.configure(self.table)

    def cluster(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("cluster", *words, "--json").stdout)
        return found

    def wait(self, is_so: Callable[[View], bool]) -> View:
        """The view of this node when it is so."""
        until = time.monotonic() + 2 * DEADLINE
        path = directory(self.data) / VIEW
        while not is_so(view := View.decode(path.read_bytes())):
            if time.monotonic() > until:
                raise HubError(f"{view}\n{self.log.read_text()}")
            select.select([], [], [], 0.05)
        return view


def is_whole(view: View) -> bool:
    """Both active, and all mail on both."""
    return len(view.active) == 2 == view.copies == view.read_copies and view.alone == "refuse"


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    ports = free_ports(2)
    one, two = (f"127.0.0.{number}:{port}" for number, port in zip((2, 3), ports, strict=True))
    made = Node(one, two), Node(two, one)
    try:
        yield made
        for node in made:
            if node.process is not None:
                node.close(failed=False)
    finally:
        for node in made:
            if node.process is not None:
                with suppress(OSError, HubError):
                    node.kill()
            shutil.rmtree(node.home)


def join(one: Node, two: Node) -> None:
    """`one` has mail of a hub by itself; `two` is empty."""
    one.become_node()
    one.cluster("init")
    one.start()
    two.become_node()
    token = one.run("cluster", "token").stdout.strip()
    two.run("cluster", "join", token)
    two.start()
    assert two.wait(is_whole) == one.wait(is_whole)
    until = time.monotonic() + DEADLINE
    while users_await(two):  # they come by themselves, after the view
        assert time.monotonic() < until
        select.select([], [], [], 0.05)


def users_await(node: Node) -> bool:
    """Whether not all users of the cluster are on this node yet."""
    with UserDatabase(node.data / "users") as users:
        return bool(users.lost)


@pytest.mark.long
def test_a_hub_with_mail_gets_a_second_node(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    old = [message(b"old %d\r\n" % number) for number in range(5)]
    one.start()
    for text in old:
        deliver(one, text, "ann")
    assert bodies(one, "ann") == old
    one.stop()
    join(one, two)
    assert bodies(two, "ann") == bodies(one, "ann") == old
    assert unique_ids(two, "ann") == unique_ids(one, "ann")
    one.kill()
    assert bodies(two, "ann") == old
    assert send(two, message(b"refused\r\n"), "ann").startswith(b"451 ")
    lost = two.cluster("status")["outlook"][0]
    assert (lost["mail_in"], lost["mail_out"], lost["deletions"]) == (False, True, False)
    one.start()
    new = message(b"new\r\n")
    until = time.monotonic() + DEADLINE
    while not send(one, new, "ann").startswith(b"250"):  # a node that is back is not heard at once
        assert time.monotonic() < until
    assert settled_fetch(two, "ann") == settled_fetch(one, "ann")
    assert bodies(two, "ann") == [*old, new]


@pytest.mark.long
def test_a_node_goes_on_alone_until_the_other_is_back(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    join(one, two)
    both = message(b"on both\r\n")
    assert send(one, both, "ann", "bob").startswith(b"250")
    one.kill()
    two.cluster("alone", "--yes")
    alone = [message(b"alone %d\r\n" % number) for number in range(3)]
    until = time.monotonic() + DEADLINE
    while not send(two, alone[0], "ann").startswith(b"250"):  # a hub looks once a second
        assert time.monotonic() < until
    for text in alone[1:]:
        assert send(two, text, "ann").startswith(b"250")
    assert quit_with(two, "bob", 1).startswith(b"+OK")
    one.start()
    view = two.wait(is_whole)
    one.wait(lambda its: its == view)
    assert bodies(one, "ann") == bodies(two, "ann") == [both, *alone]
    assert bodies(one, "bob") == bodies(two, "bob") == []
    two.kill()
    assert bodies(one, "ann") == [both, *alone]
    assert send(one, message(b"refused\r\n"), "ann").startswith(b"451 ")
    two.start()


@pytest.mark.long
def test_both_went_on_alone_and_no_mail_is_lost(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    join(one, two)
    taken: list[bytes] = []
    for up, down in ((one, two), (two, one)):
        down.stop()
        if up.process is None:
            up.start()
        up.cluster("alone", "--yes")
        taken.append(message(b"on node %d alone\r\n" % len(taken)))
        until = time.monotonic() + DEADLINE
        while not send(up, taken[-1], "ann").startswith(b"250"):
            assert time.monotonic() < until
    one.start()
    rows = two.cluster("status")["members"]
    assert "two views" in rows[0]["link"]
    assert len(bodies(one, "ann")) == len(bodies(two, "ann")) == 1
    two.cluster("alone", "--yes")
    view = two.wait(is_whole)
    one.wait(lambda its: its == view)
    assert bodies(one, "ann") == bodies(two, "ann")
    assert sorted(bodies(one, "ann")) == sorted(taken)
    two.kill()
    assert sorted(bodies(one, "ann")) == sorted(taken)
    two.start()


@pytest.mark.long
def test_a_lost_node_is_replaced(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    join(one, two)
    text = message(b"survives\r\n")
    assert send(two, text, "ann").startswith(b"250")
    two.stop()
    for path in list(two.data.iterdir()):
        if path.name != "users":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    one.cluster("alone", "--yes")
    two.cluster("join", one.run("cluster", "token").stdout.strip())
    two.start()
    assert one.wait(is_whole) == two.wait(is_whole)
    rows = one.cluster("status")["members"]
    assert [(one["state"], one["link"]) for one in rows] == [
        ("active", "this node"),
        ("removed", "-"),
        ("active", "up"),
    ]
    one.kill()
    assert bodies(two, "ann") == [text]
    one.start()


@pytest.mark.long
def test_a_node_whose_address_was_changed_says_where_it_is_looked_for(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    join(one, two)
    assert "look for this node" not in two.log.read_text()
    two.stop()
    (port,) = free_ports(1)
    known, two.peer = two.peer, f"127.0.0.3:{port}"
    two.table = two.table.replace(f'"{known}"', f'"{two.peer}"')
    two.configure(two.table)
    two.start()
    warning = f"look for this node at {known}, which is not its cluster.address"
    assert in_time(lambda: warning in two.log.read_text())
