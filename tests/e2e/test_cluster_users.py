"""Two nodes made by the commands: users added on one hold on both, and one goes on alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.test_cluster import quit_with, send
from tests.support.clients import Pop3Line, bodies, in_time, message
from tests.support.cluster_hubs import NodeHub, join_two
from tests.support.hub import address


@pytest.fixture
def nodes() -> Iterator[tuple[NodeHub, NodeHub]]:
    with join_two(["ann", "bob"]) as two:
        yield two


def has(node: NodeHub, name: str, password: str = "secret") -> bool:
    """Whether a user can log in there."""
    with Pop3Line(node) as pop:
        pop.say(f"USER {address(name)}")
        pop.send(f"PASS {password}\r\n".encode())
        return pop.line().startswith(b"+OK")


@pytest.mark.long
def test_users_and_passwords_of_one_node_hold_on_both(nodes: tuple[NodeHub, NodeHub]) -> None:
    a, b = nodes
    assert in_time(lambda: has(b, "ann"))
    text = message(b"hello\r\n")
    assert send(b, text, "bob").startswith(b"250")
    assert bodies(a, "bob") == bodies(b, "bob") == [text]
    a.add("cat")
    assert in_time(lambda: has(b, "cat"))
    a.run("user", "passwd", address("ann"), "--password-stdin", given="changed\n")
    assert in_time(lambda: has(b, "ann", "changed"))
    assert not has(b, "ann")
    refused = b.run("user", "add", address("dan"), "--no-password", check=False)
    assert refused.returncode == 69
    assert "users are changed on node 1" in refused.stderr
    a.run("user", "remove", address("cat"))
    assert in_time(lambda: not has(b, "cat"))


@pytest.mark.long
def test_a_node_goes_on_alone_and_the_other_comes_back(nodes: tuple[NodeHub, NodeHub]) -> None:
    a, b = nodes
    assert in_time(lambda: has(b, "ann"))
    texts = [message(b"%d\r\n" % number) for number in range(3)]
    assert send(a, texts[0], "ann").startswith(b"250")
    assert send(a, texts[1], "ann").startswith(b"250")
    a.kill()
    assert send(b, message(b"refused\r\n"), "ann").startswith(b"451")
    b.run("cluster", "alone", "--yes")
    assert in_time(lambda: send(b, texts[2], "ann").startswith(b"250"))
    taken = bodies(b, "ann")
    assert taken[:2] == texts[:2]
    assert set(taken[2:]) == {texts[2]}
    assert quit_with(b, "ann", 1).startswith(b"+OK")
    b.add("dan")
    a.start()
    assert in_time(lambda: _is_whole(b))
    assert bodies(a, "ann") == bodies(b, "ann") == taken[1:]
    assert in_time(lambda: has(a, "dan"))
    assert a.run("user", "add", address("eve"), "--no-password", check=False).returncode == 69


def _is_whole(node: NodeHub) -> bool:
    """Whether both nodes are in again, and mail is on both."""
    facts = json.loads(node.run("cluster", "status", "--json").stdout)
    return [one["state"] for one in facts["members"]] == ["active", "active"]
