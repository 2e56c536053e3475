"""Unfinished messages are bounded: per worker, per network, by the free space."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from metad.sessions.unfinished import Unfinished
from tests.support.session_kit import Connected, World

MIB = 1 << 20
HELLO = b"EHLO c\r\n"
TO_DATA = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


def sending(world: World, octets: int, peer: str = "192.0.2.1") -> Connected:
    """A client that has sent so much of a message and stops."""
    client = world.smtp(peer)
    client.send(HELLO + TO_DATA)
    for _ in range(octets // (64 * 1024)):
        client.send((b"x" * 1022 + b"\r\n") * 64)
    return client


@pytest.mark.slow
def test_a_network_cannot_fill_the_disk_with_messages_that_it_does_not_end() -> None:
    """Regression: twelve connections held 348 MB in unlinked files, and had 18 hours each."""
    world = World(of_network=100)
    unfinished = world.context.unfinished = Unfinished(8 * MIB)
    clients = [sending(world, MIB) for _ in range(12)]
    assert 3 * MIB < unfinished.used <= 4 * MIB
    other = sending(world, MIB, "192.0.2.2")
    assert other.send(b".\r\n").startswith(b"250")
    answers = [one.send(b".\r\n") for one in clients]
    stored = sum(answer.startswith(b"250") for answer in answers)
    assert stored in (3, 4)
    assert sum(answer.startswith(b"452 4.3.1") for answer in answers) == 12 - stored
    assert unfinished.used == 0
    assert not unfinished._of_network
    assert sending(world, MIB).send(b".\r\n").startswith(b"250")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["lose", "rset", "mail", "too large", "helo"])
def test_what_an_unfinished_message_held_is_given_back_however_it_ends(end: str) -> None:
    world = World()
    client = world.smtp()
    size = 2 * MIB
    client.send(HELLO + b"MAIL FROM:<a@example.org> SIZE=%d\r\n" % size)
    assert world.context.unfinished.used == size
    client.send(b"RCPT TO:<b@example.org>\r\n")
    if end == "rset":
        client.send(b"RSET\r\nMAIL FROM:<a@example.org>\r\n")
    elif end == "helo":
        client.send(HELLO + b"MAIL FROM:<a@example.org>\r\n")
    elif end == "too large":
        client.send(b"DATA\r\n")
        for _ in range(11):
            client.send((b"x" * 1022 + b"\r\n") * 1024)
        client.send(b".\r\n")
    else:
        client.send(b"DATA\r\n" + b"x" * 1000)
    client.lose()
    assert world.context.unfinished.used == 0


def test_an_announced_size_counts_at_mail() -> None:
    world = World()
    world.context.unfinished = Unfinished(8 * MIB)
    client, other = world.smtp(), world.smtp()
    for one in (client, other):
        one.transport.take()
        one.send(HELLO)
    assert client.send(b"MAIL FROM:<a@b.example> SIZE=3000000\r\n").startswith(b"250")
    assert other.send(b"MAIL FROM:<a@b.example> SIZE=3000000\r\n").startswith(b"452 4.3.1")
    assert other.send(b"MAIL FROM:<a@b.example> SIZE=3000\r\n").startswith(b"250")


def test_unfinished_messages_take_at_most_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def statvfs(path: Any) -> Any:
        return SimpleNamespace(f_bavail=10, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)
    unfinished = Unfinished()
    unfinished.refresh("/")
    assert unfinished.limit == 5 * 4096
    assert unfinished.take("local", 20_000)
    assert not unfinished.take("local", 1000)
    unfinished.refresh("/")
    assert unfinished.limit == 20_000 + 5 * 4096
    of_a_cluster = Unfinished(floor=1_000_000)  # other nodes store what waits in memory
    of_a_cluster.refresh("/")
    assert of_a_cluster.limit == 1_000_000


def test_a_few_networks_cannot_take_all_by_announcing_sizes() -> None:
    """Regression: two of them could, with half each: then no other client's large message was
    accepted."""
    unfinished = Unfinished(4096 * MIB)
    for number in range(5):
        network = f"192.0.2.{number}"
        while unfinished.take(network, 30 * MIB):
            pass
    assert unfinished.take("198.51.100.1", 30 * MIB)
    assert unfinished.used <= unfinished.limit


def test_a_local_client_may_have_all_that_is_left() -> None:
    unfinished = Unfinished(100)
    assert unfinished.take("192.0.2.1", 50)
    assert not unfinished.take("192.0.2.1", 1)
    assert unfinished.take("local", 50)
    assert not unfinished.take("local", 1)
    unfinished.give_back("local", 50)
    assert unfinished.take("192.0.2.2", 25)
    assert not unfinished.take("192.0.2.2", 1)
