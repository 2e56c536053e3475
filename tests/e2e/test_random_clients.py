"""Clients that send anything, in any order, to a real hub: nothing makes the hub fail.

A protocol machine alone shows that no input raises; only the hub tests the rest: users, layer, log.
A login as "admin" used to be an error there, and was never answered.
"""

from __future__ import annotations

import base64
import contextlib
import random
import re
import socket
import time

import pytest

from tests.support.hub import DEADLINE
from tests.support.sizes import SEED, reached, sized
from tests.support.wide_hub import WideHub, connect, log_lines, pop3, smtp

SETTINGS = """
[pop3]
master_users = ["bob@example.test"]
scram = "always"
[smtp]
repair_networks = ["127.0.80.0/24"]
"""
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, zero seconds
AT_ONCE = 100  # connections that are open at a time
NAMES = (
    b"ann@example.test", b"bob@example.test", b"admin", b"", b"a@b@c", b"postmaster", b"@", b"*",
    b"ann@example.test*bob@example.test", b"ann+x@example.test", b"x" * 240, b'"a b"@example.test',
    "rää@example.test".encode(), "\u202e@x".encode(), b"ANN@EXAMPLE.test", b"=2C", b"n=,r=",
)  # fmt: skip
PASSWORDS = (b"secret", b"x", b"", b"\xff" * 20, "\ufdfa".encode() * 60)


def encoded(octets: bytes) -> bytes:
    return base64.b64encode(octets)


def to_pop3(dice: random.Random) -> bytes:
    name, password = dice.choice(NAMES), dice.choice(PASSWORDS)
    plain = encoded(b"\0".join((dice.choice((b"", name)), name, password)))
    commands = (
        b"USER " + name, b"PASS " + password, b"AUTH PLAIN " + plain[:230], b"AUTH PLAIN", plain,
        b"AUTH SCRAM-SHA-256", b"AUTH SCRAM-SHA-256 " + encoded(b"n,,n=" + name + b",r=a")[:220],
        encoded(b"n,a=" + name + b",n=ann@example.test,r=q"), encoded(b"c=biws,r=a,p=AAAA"), b"*",
        b"CAPA", b"STAT", b"UIDL", b"LIST", b"RETR 1", b"TOP 1 1", b"DELE 1", b"RSET", b"QUIT",
        b"LANG sv", b"UTF8", b"STLS", b"NOOP", b"\0", b"XXXX",
    )  # fmt: skip
    ends = (b"\r\n", b"\r\n", b"\n")
    return b"".join(dice.choice(commands) + dice.choice(ends) for _ in range(dice.randint(1, 14)))


def to_smtp(dice: random.Random) -> bytes:
    name = dice.choice(NAMES)
    commands = (
        b"EHLO x", b"LHLO x", b"HELO \xff", "EHLO \x9b[2J".encode(), b"MAIL FROM:<" + name + b">",
        b"MAIL FROM:<> SIZE=5 SMTPUTF8 BODY=8BITMIME", b"MAIL FROM:" + name,
        b"RCPT TO:<" + name + b">", b"RCPT TO:<ann@example.test>", b"RCPT TO:<postmaster>",
        b"DATA", b"x\r\n.", b"Subject: x\r\n\r\n..y\r\n.", b"BDAT 5\r\nabc\r\n", b"BDAT 0 LAST",
        b"BDAT 3 LAST\r\nabc", b"BDAT 9999999999999", b"RSET", b"NOOP", b"VRFY x", b"HELP",
        b"AUTH PLAIN x", b"QUIT", b"STARTTLS", b"GET / HTTP/1.0", b"\0\r",
    )  # fmt: skip
    ends = (*[b"\r\n"] * 5, b"\n", b"")
    return b"".join(dice.choice(commands) + dice.choice(ends) for _ in range(dice.randint(1, 16)))


def talk(hub: WideHub, dice: random.Random) -> socket.socket:
    """A client that sends something in two pieces, and stays."""
    kind = dice.choice(("smtp", "pop3", "starttls", "stls", "lmtp"))
    source = f"127.0.{80 + dice.randrange(3)}.{dice.randrange(250) + 1}"
    client = connect(hub.places[kind], source)
    if dice.random() < 0.8:
        client.recv(200)  # the others send too early
    client.setblocking(False)
    octets = to_pop3(dice) if kind in ("pop3", "stls") else to_smtp(dice)
    cut = dice.randint(0, len(octets))
    with contextlib.suppress(OSError):
        client.send(octets[:cut])
        client.send(octets[cut:])
        if dice.random() < 0.3:
            client.shutdown(socket.SHUT_WR)
    return client


def part(clients: list[socket.socket], dice: random.Random) -> None:
    for one in clients:
        if dice.random() < 0.5:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()
    clients.clear()


@pytest.mark.long
def test_whatever_clients_send_is_answered_or_refused() -> None:
    dice = random.Random(f"{SEED} clients")
    count = sized(1000, 5000)
    kinds = ["smtp", "pop3", "starttls", "stls", "lmtp"]
    with WideHub(kinds, ["ann", "bob"], SETTINGS, workers=2) as hub:
        workers = hub.workers()
        clients: list[socket.socket] = []
        for _ in range(count):
            clients.append(talk(hub, dice))
            if len(clients) >= AT_ONCE:
                part(clients, dice)
        part(clients, dice)
        deadline = time.monotonic() + DEADLINE
        while any(one["smtp_open"] + one["pop3_open"] for one in hub.status()["workers"]):
            assert time.monotonic() < deadline, f"sessions stay open (METAD_TEST_SEED={SEED})"
        with pop3(hub, "pop3", "127.0.99.1") as reader:
            reader.log_in("bob")
        with smtp(hub, "smtp", "127.0.99.1") as sender:
            sender.say("NOOP")
        assert hub.workers() == workers
        for word in ("panic", "warning", "Error("):
            assert log_lines(hub, word) == [], f"METAD_TEST_SEED={SEED}"
        steering = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
        assert not [line for line in log_lines(hub, "") if steering.search(line)]
    reached("random clients of a real hub", count)
