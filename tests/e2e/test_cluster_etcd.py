"""Three real nodes and a real etcd, made by commands alone: mail goes on whatever is lost."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Sequence

import pytest

from metad.cluster.view import Membership
from tests.support.clients import Pop3Line, SmtpLine, bodies, in_time, message, unique_ids
from tests.support.etcd import EtcdCluster
from tests.support.etcd_hubs import EtcdNode, three_nodes
from tests.support.hub import DEADLINE, PASSWORD, address, free_ports
from tests.support.live import settled_fetch
from tests.support.sizes import reached

from .test_cluster import quit_with, send
from .test_cluster_etcd_users import answer

pytestmark = pytest.mark.slow
NAMES = ["ann", "bob"]


def at_once(act: Callable[[], bytes]) -> float:
    """Seconds until a client that tries again is served."""
    began = time.monotonic()
    while not act().startswith((b"250", b"+OK")):
        assert time.monotonic() < began + DEADLINE
    return time.monotonic() - began


class MeasuredNode(EtcdNode):
    """With metrics."""

    def __init__(self, peer: str, urls: Sequence[str]) -> None:
        (self.metrics_port,) = free_ports(1)
        super().__init__(peer, urls, f'[metrics]\naddress = "127.0.0.1:{self.metrics_port}"')


def with_metrics(number: int, etcd: EtcdCluster) -> EtcdNode:
    (port,) = free_ports(1)
    return MeasuredNode(f"127.0.0.{number + 2}:{port}", etcd.urls)


@pytest.mark.long
def test_mail_and_users_on_any_of_three_nodes_with_etcd_and_without() -> None:
    with three_nodes(NAMES) as trio:
        nodes, (a, b, c) = trio.nodes, trio.nodes
        b.add("cat")
        assert in_time(lambda: all(answer(node, "cat").startswith(b"250") for node in nodes))
        texts = [message(b"number %d\r\n" % number) for number in range(6)]
        for number, text in enumerate(texts):
            assert send(nodes[number % 3], text, "ann", "cat").startswith(b"250")
        for name in ("ann", "cat"):
            assert bodies(a, name) == bodies(b, name) == bodies(c, name) == texts
            assert unique_ids(a, name) == unique_ids(b, name) == unique_ids(c, name)
        assert quit_with(c, "ann", 1, 3).startswith(b"+OK")
        left = [texts[1], *texts[3:]]
        assert bodies(a, "ann") == bodies(b, "ann") == left
        trio.etcd.stop()
        sent = message(b"without etcd\r\n")
        assert send(b, sent, "ann").startswith(b"250")
        assert quit_with(a, "ann", 1).startswith(b"+OK")
        assert bodies(c, "ann") == [*left[1:], sent]
        assert in_time(lambda: c.cluster("status")["etcd"]["error"] != "")
        facts = c.cluster("status")
        assert [one["state"] for one in facts["members"]] == ["active"] * 3
        trio.etcd.start()
        assert in_time(lambda: c.cluster("status")["etcd"]["error"] == "")
        a.run("user", "passwd", "ann@example.test", "--password-stdin", given="secret\n")
        assert bodies(c, "ann") == [*left[1:], sent]


@pytest.mark.long
def test_a_node_dies_comes_back_is_emptied_and_is_removed() -> None:
    with three_nodes(NAMES) as trio:
        a, b, c = trio.nodes
        first = message(b"first\r\n")
        assert send(c, first, "ann").startswith(b"250")
        c.kill()
        sent = [first]
        for node in (a, b):
            sent.append(message(b"without one: %d\r\n" % len(sent)))
            took = at_once(lambda node=node: send(node, sent[-1], "ann"))  # type: ignore[misc]
            reached("cluster: milliseconds until a 250 after a kill", int(took * 1000))
            assert settled_fetch(node, "ann")
            assert bodies(node, "ann") == sent
        assert quit_with(a, "ann", 1).startswith(b"+OK")
        del sent[0]
        assert "has a lease" in a.refused("remove", "3")
        a.until_absent(3)
        # The mail of the absent one is on both now: either of them is enough to read.
        b.kill()
        assert bodies(a, "ann") == sent
        assert send(a, message(b"refused\r\n"), "ann").startswith(b"451")
        assert "node 2 does not answer" in a.refused("remove", "3")
        b.start()
        c.start()
        for node in trio.nodes:
            node.until_active(1, 2, 3)
            assert bodies(node, "ann") == sent
        _replace(a, b, c, sent)
        _remove(a, b, sent)


def _replace(a: EtcdNode, b: EtcdNode, c: EtcdNode, sent: list[bytes]) -> None:
    """The disk of one is gone: as a new node it gets another number, and all that belongs there."""
    c.stop()
    assert "is active" in _refused_join(a, c)
    a.until_absent(3)
    c.empty()
    assert c.join(a) == 4
    for node in (a, b, c):
        view = node.until_active(1, 2, 4)
        assert view.those(Membership.REMOVED) == (3,)
        assert bodies(node, "ann") == sent


def _refused_join(a: EtcdNode, c: EtcdNode) -> str:
    """A machine of that address joins before the node that had it is away."""
    twin = EtcdNode(c.peer, ())
    twin.config.write_text(c.config.read_text().replace(str(c.data), str(twin.data)))
    try:
        return twin.refused("join", a.run("cluster", "token").stdout.strip())
    finally:
        shutil.rmtree(twin.home)


def _remove(a: EtcdNode, b: EtcdNode, sent: list[bytes]) -> None:
    """A removed node is refused, and says what to do."""
    assert "this is node 1" in a.refused("remove", "1")
    b.stop()
    assert in_time(lambda: not a.run("cluster", "remove", "2", check=False).returncode)
    assert "removed already" in a.refused("remove", "2")
    b.start()
    assert in_time(lambda: "node 2 was removed from the cluster; empty it" in b.log.read_text())
    with SmtpLine(b) as smtp:
        smtp.say("MAIL FROM:<sender@client.example.test>", b"451")
    assert in_time(lambda: b.status()["state"] == "refusing")
    (problem,) = [one["problem"] for one in b.status()["problems"]]
    assert problem.startswith("this node was removed from its cluster: ")
    done = b.run("user", "add", "dan@example.test", "--password-stdin", given="x\n", check=False)
    assert done.returncode
    assert "this node was removed from the cluster (change users on another node" in done.stderr
    assert "dan@example.test" not in a.run("user", "list").stdout
    assert send(a, message(b"on two\r\n"), "bob").startswith(b"250")
    assert bodies(a, "ann") == sent


@pytest.mark.long
def test_a_node_is_drained_and_joins_again() -> None:
    with three_nodes(NAMES) as trio:
        a, b, c = trio.nodes
        texts = [message(b"number %d\r\n" % number) for number in range(9)]
        for number, text in enumerate(texts):
            assert send(trio.nodes[number % 3], text, "ann").startswith(b"250")
        assert "there is no node 9" in a.refused("drain", "9")
        assert "node 3 does not drain" in a.refused("drain", "3", "--cancel")
        assert c.cluster("drain", "3")["draining"] == 3
        a.until(lambda view: view.those(Membership.REMOVED) == (3,), "drained")
        for node in (a, b):
            node.until_active(1, 2)
            assert bodies(node, "ann") == texts
        assert in_time(lambda: c.status()["state"] == "refusing")
        c.stop()
        assert "1 active node would be left" in a.refused("drain", "2")
        c.empty()
        assert c.join(a) == 4
        for node in (a, b, c):
            node.until_active(1, 2, 4)
            assert bodies(node, "ann") == texts


@pytest.mark.long
def test_the_last_one_goes_on_alone_until_the_others_are_back() -> None:
    with three_nodes(NAMES, with_metrics) as trio:
        a, b, c = trio.nodes
        both = message(b"of before\r\n")
        assert send(a, both, "ann").startswith(b"250")
        b.kill()
        c.kill()
        assert send(a, message(b"refused\r\n"), "ann").startswith(b"451")
        assert login(a).startswith(b"-ERR [SYS/TEMP]")
        assert "still has a lease" in a.refused("alone", "--yes")
        assert isinstance(a, MeasuredNode)
        _tells_that_it_refuses(a)
        assert in_time(lambda: not a.run("cluster", "alone", "--yes", check=False).returncode)
        alone = message(b"alone\r\n")
        at_once(lambda: send(a, alone, "ann"))
        # What was acknowledged without this node may be on the two others alone.
        assert login(a).startswith(b"-ERR [SYS/TEMP]")
        assert "alone already" in a.refused("alone", "--yes")
        a.cluster("remove", "2", "--lossy")
        assert in_time(lambda: login(a).startswith(b"+OK"))
        assert settled_fetch(a, "ann")
        found = bodies(a, "ann")
        assert found[0] == both
        assert set(found[1:]) == {alone}
        c.start()
        for node in (a, c):
            node.until_active(1, 3)
            assert bodies(node, "ann") == found
        a.until(lambda view: view.alone == "refuse", "two copies required")


def _tells_that_it_refuses(node: MeasuredNode) -> None:
    """Two of three were killed."""
    few = "too few nodes of the cluster answer, nodes 2 and 3 do not"
    text = f"{few}: new mail and POP3 logins are refused"
    began = int(time.time()) - 10
    assert in_time(lambda: [one["problem"] for one in node.status()["problems"]] == [text])
    facts = node.status()
    assert facts["state"] == "refusing"
    assert began <= facts["problems"][0]["since"] <= time.time()
    done = node.run("status", "--check", check=False)
    assert (done.returncode, done.stdout.startswith("METAD CRITICAL - refusing")) == (2, True)
    done = node.run("doctor", "--no-dns", "--json", check=False)
    found = [(one["check"], one["level"], one["text"]) for one in json.loads(done.stdout)]
    assert ("hub", "error", text) in found
    silent = [one[2] for one in found if one[0] == "cluster"]
    assert [one.split()[:2] for one in silent] == [["node", "2"], ["node", "3"]]
    assert not [one for one in found if one[0] == "ports" and one[1] != "ok"]
    reason = "reason=[SYS/TEMP] temporary failure: nodes 2 and 3 do not answer"
    assert reason in node.log.read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{node.metrics_port}/metrics") as page:
        lines = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines())
    shown = {name: float(lines[f"metad_cluster_{name}"]) for name in (
        "members", "members_up", "links_up", "takes_mail", "lists_mail", "short_of_copies"
    )}  # fmt: skip
    assert list(shown.values()) == [3, 1, 0, 0, 0, 0]
    assert float(lines["metad_cluster_epoch"]) == node.view().epoch
    assert 0 <= float(lines["metad_cluster_etcd_word_age_seconds"]) < 60
    assert float(lines["metad_ready"]) == 0


def login(node: EtcdNode) -> bytes:
    """The reply to PASS."""
    with Pop3Line(node) as pop:
        pop.say(f"USER {address('ann')}")
        pop.send(f"PASS {PASSWORD}\r\n".encode())
        return pop.line()
