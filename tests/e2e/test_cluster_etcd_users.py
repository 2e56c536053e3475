"""The users of three real nodes with a real etcd: changed on any, whatever becomes of etcd.

The tests share the nodes, and use mailboxes of their own.
"""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.clients import Pop3Line, SmtpLine, fetch, in_time, message
from tests.support.etcd import EtcdCluster
from tests.support.etcd_hubs import EtcdNode, Trio, three_nodes
from tests.support.hub import address
from tests.support.sizes import noted, reached, sized

from .test_cluster import send

pytestmark = pytest.mark.slow
SOURCES = (f"127.1.{number >> 8}.{number & 255}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    with three_nodes(["ann", "bob", "sam"]) as made:
        yield made


def may_log_in(node: EtcdNode, name: str, password: str = "secret") -> bool:
    with Pop3Line(node) as pop:
        pop.say(f"USER {address(name)}")
        pop.send(f"PASS {password}\r\n".encode())
        return pop.line().startswith(b"+OK")


def everywhere(trio: Trio, name: str, password: str = "secret") -> bool:
    return all(may_log_in(node, name, password) for node in trio.nodes)


def answer(node: EtcdNode, name: str) -> bytes:
    """To RCPT."""
    with SmtpLine(node) as smtp:
        smtp.say("MAIL FROM:<sender@client.example.test>")
        return smtp.say(f"RCPT TO:<{address(name)}>", b"")


def is_frozen(node: EtcdNode) -> bool:
    return any("wiped or rolled back" in one["problem"] for one in node.status()["problems"])


def user(node: EtcdNode, *words: str, given: str = "") -> str:
    """What a command says that is refused; "" if it was carried out."""
    done = node.run("user", *words, given=given, check=False)
    return done.stderr if done.returncode else ""


@pytest.mark.long
def test_users_are_changed_on_any_node_and_hold_on_all(trio: Trio) -> None:
    a, b, c = trio.nodes
    assert in_time(lambda: everywhere(trio, "ann"))
    b.add("cat")
    began = time.monotonic()
    assert in_time(lambda: everywhere(trio, "cat"))
    assert not user(c, "passwd", address("ann"), "--password-stdin", given="changed\n")
    noted("users: until a change holds on three nodes", f"{time.monotonic() - began:.1f} s")
    assert in_time(lambda: everywhere(trio, "ann", "changed"))
    assert not any(may_log_in(node, "ann") for node in trio.nodes)
    assert not user(a, "alias", address("all"), address("ann"), address("cat"))
    assert in_time(lambda: answer(c, "all").startswith(b"250"))
    assert send(c, message(b"to all\r\n"), "all").startswith(b"250")
    assert in_time(lambda: len(fetch(b, "cat")) == 1)
    assert not user(b, "rename", address("bob"), address("rob"))
    assert in_time(lambda: answer(c, "bob").startswith(b"550"))
    assert in_time(lambda: everywhere(trio, "rob"))
    assert not user(c, "remove", address("rob"))
    assert in_time(lambda: answer(a, "rob").startswith(b"550"))
    listed = [node.run("user", "list", "--json").stdout for node in trio.nodes]
    assert len(set(listed)) == 1
    b.stop()
    assert "the hub, which must run" in user(b, "add", address("dan"), "--no-password")
    b.start()


def answer_to_pass(node: EtcdNode, name: str, password: str) -> bytes:
    """From an address of its own: failed logins of one address are delayed more and more."""
    with Pop3Line(node, next(SOURCES)) as pop:
        pop.say(f"USER {address(name)}")
        pop.send(f"PASS {password}\r\n".encode())
        answer = pop.line()
        if answer.startswith(b"+OK"):
            pop.say("QUIT")  # the next session finds the mailbox free
        return answer


def lets_in(node: EtcdNode, password: str) -> bool:
    return answer_to_pass(node, "pat", password).startswith(b"+OK")


@pytest.mark.long
def test_a_new_password_holds_on_all_nodes_and_the_old_one_on_none(trio: Trio) -> None:
    """Changed on each node in turn.  No node had to ask for what the watch did not tell."""
    nodes, old, seconds = trio.nodes, "secret", list[float]()
    nodes[0].add("pat", old)
    assert in_time(lambda: everywhere(trio, "pat"))
    logs = [len(node.log.read_text()) for node in nodes]
    count = sized(3, 12)
    for number in range(count):
        at, new = nodes[number % 3], f"new-{number}"
        assert not user(at, "passwd", address("pat"), "--password-stdin", given=f"{new}\n")
        returned = time.monotonic()
        assert not answer_to_pass(at, "pat", new).startswith(b"-ERR [AUTH]")
        for node in nodes:
            assert in_time(partial(lets_in, node, new))
            seconds += [time.monotonic() - returned] * (node is not at)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(partial(answer_to_pass, name="pat", password=old), nodes))
        assert all(one.startswith(b"-ERR [AUTH]") for one in answers), answers
        old = new
    reached("users: passwords that held on three nodes, and the old ones on none", count)
    figures = f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"
    noted("users: from the end of `passwd` to a login on another node", figures)
    for node, before in zip(nodes, logs, strict=True):
        assert "warning: users:" not in node.log.read_text()[before:]


def test_two_nodes_add_the_same_address_at_once(trio: Trio) -> None:
    answers: dict[int, str] = {}

    def add(number: int) -> None:
        words = ("add", address("dan"), "--password-stdin")
        answers[number] = user(trio.nodes[number], *words, given=f"secret{number}\n")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [number for number, text in answers.items() if not text]
    refused = [text for text in answers.values() if text]
    assert len(done) == 1, answers
    assert all("a user has this address already" in text for text in refused)
    assert in_time(lambda: everywhere(trio, "dan", f"secret{done[0]}"))


@pytest.mark.long
def test_etcd_is_stopped_wiped_and_restored_and_removes_no_user(trio: Trio) -> None:
    a, b, c = trio.nodes
    b.add("tom")
    assert in_time(lambda: everywhere(trio, "tom"))
    trio.etcd.stop()
    assert "etcd does not answer" in user(c, "add", address("eve"), "--no-password")
    trio.etcd.wipe()
    assert in_time(lambda: "not trusted" in user(c, "add", address("eve"), "--no-password"))
    for node in (a, b, c):
        node.stop()
        node.start()
        assert send(node, message(b"etcd is empty\r\n"), "tom").startswith(b"250")
    assert in_time(lambda: everywhere(trio, "tom"))
    a.cluster("restore-directory", "--yes")
    assert in_time(lambda: not user(c, "add", address("eve"), "--password-stdin", given="secret\n"))
    assert in_time(lambda: everywhere(trio, "eve") and everywhere(trio, "tom"))


def test_a_node_that_was_away_over_a_compaction_gets_what_changed(trio: Trio) -> None:
    a, b, c = trio.nodes
    assert in_time(lambda: everywhere(trio, "sam"))
    c.stop()
    a.add("kai")
    assert not user(b, "remove", address("sam"))
    trio.etcd.compact()
    a.add("ivo")
    c.start()
    assert in_time(lambda: everywhere(trio, "kai") and everywhere(trio, "ivo"))
    assert in_time(lambda: answer(c, "sam").startswith(b"550"))


@pytest.mark.long
def test_a_node_that_is_given_a_copy_of_etcd_gives_no_number_there(trio: Trio) -> None:
    """It does not trust the copy while the others trust the old one, whatever its operator does."""
    a, _, c = trio.nodes
    text = c.config.read_text()
    with EtcdCluster() as copy:
        copy.restore(trio.etcd.snapshot())
        c.config.write_text(text.replace(json.dumps(trio.etcd.urls), json.dumps(copy.urls)))
        assert "cluster.etcd" in c.run("reload").stdout
        assert in_time(lambda: is_frozen(c))
        assert "another etcd than before" in user(c, "add", address("eda"), "--no-password")
        refused = c.run("cluster", "restore-directory", "--yes", check=False)
        assert "trusts another etcd" in refused.stderr
        a.add("dov")
        assert send(c, message(b"goes on\r\n"), "ann").startswith(b"250")
        c.config.write_text(text)
        c.run("reload")
        assert in_time(lambda: not is_frozen(c))
    assert in_time(lambda: everywhere(trio, "dov"))
    assert not user(c, "add", address("eda"), "--no-password")


@pytest.mark.long
def test_a_node_that_was_off_does_not_trust_an_etcd_that_was_set_back(trio: Trio) -> None:
    """The others have written that into etcd: what it has seen itself is older."""
    a, b, c = trio.nodes
    snapshot = trio.etcd.snapshot()
    c.stop()
    for number in range(5):
        a.add(f"later{number}")
    assert in_time(lambda: all(may_log_in(node, "later4") for node in (a, b)))
    trio.etcd.restore(snapshot)
    assert in_time(lambda: all(is_frozen(node) for node in (a, b)))
    for number in range(9):  # so that it is beyond what that node saw
        trio.etcd.control("put", f"/other/{number}", "")
    c.start()
    assert in_time(lambda: is_frozen(c))
    assert "another node has found that etcd was set back" in c.log.read_text()
    assert "not trusted" in user(c, "add", address("lee"), "--no-password")
    assert may_log_in(b, "later0")
    a.cluster("restore-directory", "--yes")
    assert in_time(lambda: not any(is_frozen(node) for node in trio.nodes))
    assert in_time(lambda: everywhere(trio, "later4"))
