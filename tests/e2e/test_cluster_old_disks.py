"""Real hubs: a node that gets an old copy of its disk, and a copy that runs beside the node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.test_cluster import quit_with, send
from tests.support.clients import Pop3Line, SmtpLine, bodies, in_time, message
from tests.support.cluster_hubs import ClusterOfHubs, NodeHub
from tests.support.etcd import need_etcd
from tests.support.etcd_hubs import three_nodes
from tests.support.hub import PASSWORD, Hub, address, free_ports

OLD = "node 2 has an old copy of its disk, or runs twice; empty it and join again"
OWN = "this node no longer takes part: node 1 knows a later state of its disk, or it runs twice"


@pytest.fixture
def two() -> Iterator[ClusterOfHubs]:
    with ClusterOfHubs(2, ["ann", "bob"]) as cluster:
        yield cluster


def copy(source: Path, to: Path) -> None:
    """The data directory of a hub that is stopped, as `cp -a` copies it."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("run"))
    for path in [source, *source.rglob("*")]:
        owner, its = path.stat(), to / path.relative_to(source)
        if its.exists():
            os.chown(its, owner.st_uid, owner.st_gid)


def refuses_mail(node: Hub) -> None:
    with SmtpLine(node) as smtp:
        smtp.say("MAIL FROM:<sender@client.example.test>", b"45")


def login(node: Hub, name: str) -> bytes:
    """The reply to the password."""
    with Pop3Line(node) as pop:
        pop.say(f"USER {address(name)}")
        pop.send(f"PASS {PASSWORD}\r\n".encode())
        return pop.line()


def deletes(node: Hub, name: str, left: int) -> bool:
    """Delete the oldest message, unless only so many are left.  Where a link is not up yet, QUIT is
    refused, and the deletion may be carried out all the same."""
    with suppress(AssertionError):
        if len(bodies(node, name)) == left:
            return True
        return quit_with(node, name, 1).startswith(b"+OK")
    return False


@pytest.mark.long
def test_a_node_that_gets_an_old_copy_of_its_disk_is_refused(
    two: ClusterOfHubs, tmp_path: Path
) -> None:
    a, b = two.nodes
    old = [message(b"old %d\r\n" % number) for number in range(3)]
    for text in old:
        assert send(a, text, "ann").startswith(b"250")
    b.stop()
    copy(b.data, tmp_path / "copy")
    b.start()
    new = message(b"new\r\n")
    assert in_time(lambda: send(b, new, "ann").startswith(b"250"))
    assert in_time(lambda: deletes(b, "ann", left=3))
    assert in_time(lambda: deletes(a, "ann", left=2))
    wanted = [old[2], new]
    assert bodies(b, "ann") == wanted
    b.stop()
    copy(tmp_path / "copy", b.data)
    b.start()
    assert in_time(lambda: OLD in a.log.read_text())
    assert in_time(lambda: OWN in b.log.read_text())
    assert "refused: node 1 knows a later state" in b.run("cluster", "status", "--json").stdout
    assert "node 2 takes no part" in a.run("cluster", "status", "--json").stdout
    # Nothing that was deleted is back, nothing that was acknowledged is missing.
    assert login(b, "ann").startswith(b"-ERR [SYS/TEMP]")
    assert bodies(a, "ann") == wanted
    assert send(a, message(b"no\r\n"), "ann").startswith(b"451")
    refuses_mail(b)
    b.restart()  # it remembers, whether it reaches the other or not
    a.stop()
    assert login(b, "ann").startswith(b"-ERR [SYS/TEMP]")
    a.start()
    assert bodies(a, "ann") == wanted


def test_a_copy_that_runs_beside_the_node_is_refused_and_the_node_goes_on(
    two: ClusterOfHubs, tmp_path: Path
) -> None:
    a, b = two.nodes
    text = message(b"text\r\n")
    assert send(a, text, "bob").startswith(b"250")
    b.stop()
    copy(b.data, tmp_path / "copy")
    b.start()
    assert in_time(lambda: send(a, text, "bob").startswith(b"250"))
    twin = NodeHub(2, [], [a.peer, b.peer], free_ports(1)[0])
    try:
        copy(tmp_path / "copy", twin.data)
        twin.start()
        assert in_time(lambda: OLD in a.log.read_text())
        assert in_time(lambda: OWN in twin.log.read_text())
        assert login(twin, "bob").startswith(b"-ERR [SYS/TEMP]")
        assert send(a, text, "bob").startswith(b"250")
        assert send(b, text, "bob").startswith(b"250")
        assert bodies(a, "bob") == bodies(b, "bob") == [text] * 4
        assert OWN not in b.log.read_text()
        twin.close()
    finally:
        if twin.process is not None:
            print(twin.log.read_text())
            twin.kill()
        shutil.rmtree(twin.home)


@pytest.mark.long
@pytest.mark.slow
def test_with_etcd_an_old_copy_loses_its_lease_and_a_new_node_takes_its_place(
    tmp_path: Path,
) -> None:
    need_etcd()
    with three_nodes(["ann"]) as trio:
        a, b, c = trio.nodes
        texts = [message(b"%d\r\n" % number) for number in range(4)]
        assert in_time(lambda: send(a, texts[0], "ann").startswith(b"250"))
        b.stop()
        copy(b.data, tmp_path / "copy")
        b.start()
        assert in_time(lambda: send(b, texts[1], "ann").startswith(b"250"))
        assert in_time(lambda: quit_with(b, "ann", 1).startswith(b"+OK"))
        b.stop()
        copy(tmp_path / "copy", b.data)
        b.start()
        for node in (a, c):
            assert in_time(lambda node=node: OLD in node.log.read_text())  # type: ignore[misc]
        assert in_time(lambda: "this node no longer takes part" in b.log.read_text())
        assert login(b, "ann").startswith(b"-ERR [SYS/TEMP]")
        assert in_time(lambda: send(a, texts[2], "ann").startswith(b"250"))
        a.until_absent(2)  # though it runs
        assert bodies(a, "ann") == bodies(c, "ann") == texts[1:3]
        b.stop()
        assert in_time(lambda: a.run("cluster", "remove", "2", check=False).returncode == 0)
        b.empty()
        assert b.join(a) == 4
        a.until_active(1, 3, 4)
        assert in_time(lambda: send(b, texts[3], "ann").startswith(b"250"))
        assert bodies(a, "ann") == bodies(b, "ann") == bodies(c, "ann") == texts[1:]


def test_kills_restarts_and_a_rebuilt_index_are_no_old_disk(two: ClusterOfHubs) -> None:
    a, b = two.nodes
    sent = []
    for number in range(4):
        sent.append(message(b"%d\r\n" % number))
        assert in_time(lambda: send(b, sent[-1], "ann").startswith(b"250"))
        b.kill()
        if number % 2:
            for name in os.listdir(b.data / "index"):
                (b.data / "index" / name).unlink()
        b.start()
    assert in_time(lambda: send(a, message(b"last\r\n"), "ann").startswith(b"250"))
    assert bodies(a, "ann")[:-1] == bodies(b, "ann")[:-1] == sent
    for node in two.nodes:
        assert "runs twice" not in node.log.read_text()
        assert not (node.data / "cluster" / "refused").exists()
        facts = json.loads(node.run("cluster", "status", "--json").stdout)
        assert "refused" not in json.dumps(facts)
