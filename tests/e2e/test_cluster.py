"""Two and three real hubs as one cluster: mail in and out of any, and one of them gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.clients import (
    Pop3Line,
    SmtpLine,
    bodies,
    in_time,
    message,
    stuffed,
    unique_ids,
)
from tests.support.cluster_hubs import ClusterOfHubs
from tests.support.hub import Hub, address
from tests.support.live import settled_fetch

NAMES = ["ann", "bob", "cat"]


@pytest.fixture
def two() -> Iterator[ClusterOfHubs]:
    with ClusterOfHubs(2, NAMES) as cluster:
        yield cluster


def send(node: Hub, text: bytes, *names: str) -> bytes:
    """The reply to the end of one message, or the first that refuses it."""
    recipients = [f"RCPT TO:<{address(name)}>" for name in names]
    with SmtpLine(node) as smtp:
        for command in ("MAIL FROM:<sender@client.example.test>", *recipients, "DATA"):
            reply = smtp.say(command, b"")
            if reply[:1] not in (b"2", b"3"):
                return reply
        smtp.send(stuffed(text))
        return smtp.line()


def quit_with(node: Hub, name: str, *numbers: int) -> bytes:
    """The reply to QUIT after DELE of these."""
    with Pop3Line(node) as pop:
        pop.log_in(name)
        for number in numbers:
            pop.say(f"DELE {number}")
        pop.send(b"QUIT\r\n")
        return pop.line()


@pytest.mark.long
def test_mail_goes_in_and_comes_out_of_either_node(two: ClusterOfHubs) -> None:
    a, b = two.nodes
    texts = [message(b"number %d\r\n" % number) for number in range(6)]
    for number, text in enumerate(texts):
        assert send(two.nodes[number % 2], text, "ann", "bob").startswith(b"250")
    for name in ("ann", "bob"):
        assert bodies(a, name) == bodies(b, name) == texts
        assert unique_ids(a, name) == unique_ids(b, name)
    assert quit_with(b, "ann", 1, 3).startswith(b"+OK")
    assert bodies(a, "ann") == bodies(b, "ann") == [texts[1], *texts[3:]]
    assert len(bodies(a, "bob")) == 6


@pytest.mark.long
def test_one_of_two_dies(two: ClusterOfHubs) -> None:
    a, b = two.nodes
    first = message(b"first\r\n")
    assert send(a, first, "ann").startswith(b"250")
    b.kill()
    assert send(a, message(b"refused\r\n"), "ann").startswith(b"451 4.3.0")
    assert bodies(a, "ann") == [first]
    assert quit_with(a, "ann", 1).startswith(b"-ERR [SYS/TEMP]")
    b.start()
    second = message(b"second\r\n")
    assert send(b, second, "ann").startswith(b"250")
    # The deletion that was not confirmed is carried out all the same: the node that took it tells
    # the other.  The refused message shows on neither.
    assert settled_fetch(b, "ann") == settled_fetch(a, "ann")
    assert bodies(a, "ann") == [second]


def kill_workers(node: Hub, which: slice) -> list[int]:
    """kill -9 of some of its workers."""
    victims = node.workers()[which]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return victims


def are_replaced(node: Hub, victims: list[int]) -> bool:
    return in_time(lambda: len(set(node.workers()) - set(victims)) == 2)


# Each dies twice: one that dies again and again is replaced later each time.
ONE_THE_OTHER_BOTH = (slice(0, 1), slice(1, 2), slice(0, 2))


@pytest.mark.long
def test_a_worker_of_the_only_other_node_that_dies_costs_no_message(two: ClusterOfHubs) -> None:
    """Regression: the client got 451, and came back after minutes."""
    a, b = two.nodes
    texts = []
    for round_, which in enumerate(ONE_THE_OTHER_BOTH):
        with SmtpLine(a) as smtp:
            smtp.say("MAIL FROM:<sender@client.example.test>")
            smtp.say(f"RCPT TO:<{address('ann')}>")
            smtp.say("DATA", b"354")
            texts.append(message(b"number %d\r\n" % round_))
            victims = kill_workers(b, which)
            smtp.send(stuffed(texts[-1]))
            assert smtp.line().startswith(b"250")
        assert are_replaced(b, victims)
    assert settled_fetch(a, "ann") == settled_fetch(b, "ann")
    assert sorted(bodies(a, "ann")) == sorted(texts)


@pytest.mark.long
def test_a_worker_of_the_only_other_node_that_dies_costs_no_deletion(two: ClusterOfHubs) -> None:
    """Regression: QUIT got -ERR, and its client fetched the messages again."""
    a, b = two.nodes
    for round_, which in enumerate(ONE_THE_OTHER_BOTH):
        assert send(a, message(b"to go %d\r\n" % round_), "ann").startswith(b"250")
        with Pop3Line(a) as pop:
            pop.log_in("ann")
            assert pop.count() == 1
            pop.say("DELE 1")
            victims = kill_workers(b, which)
            pop.say("QUIT")
        assert are_replaced(b, victims)
        assert settled_fetch(b, "ann") == settled_fetch(a, "ann") == []


@pytest.mark.long
def test_a_user_of_three_nodes_notices_nothing_when_one_dies() -> None:
    with ClusterOfHubs(3, NAMES) as cluster:
        sent: list[bytes] = []
        for gone in cluster.nodes:
            gone.kill()
            for node in cluster.nodes:
                if node is not gone:
                    sent.append(message(b"%d without %d\r\n" % (node.number, gone.number)))
                    assert send(node, sent[-1], "cat").startswith(b"250")
                    assert settled_fetch(node, "cat")
                    assert bodies(node, "cat") == sent
            gone.start()
            assert sorted(bodies(gone, "cat")) == sorted(sent)
        assert send(cluster.nodes[0], message(b"last\r\n"), "bob").startswith(b"250")
        assert [len(bodies(node, "bob")) for node in cluster.nodes] == [1, 1, 1]
