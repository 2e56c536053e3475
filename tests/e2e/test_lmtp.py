"""LMTP (RFC 2033) over TCP and a unix socket: one verdict per accepted recipient, in order."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import SENDER, bodies, fetch, message, stuffed, without_trace
from tests.support.hub import HOSTNAME, address
from tests.support.wide_hub import Smtp, WideHub, connect, smtp

BOXES = [f"lmtp{number}" for number in range(20)]


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    with WideHub(["smtp", "pop3", "lmtp", "lmtp-unix", "smtp6", "pop36"], BOXES) as hub:
        yield hub


@pytest.fixture(scope="module")
def boxes() -> Iterator[str]:
    return iter(BOXES)


def lmtp(hub: WideHub, kind: str = "lmtp") -> Smtp:
    return smtp(hub, kind, hello="LHLO")


def verdicts(client: Smtp, octets: bytes, count: int) -> list[bytes]:
    """Send a message after the 354.  Returns the answers, one per recipient."""
    client.say("DATA", b"354")
    client.send(stuffed(octets))
    return [client.reply(b"") for _ in range(count)]


@pytest.mark.parametrize("kind", ["lmtp", "lmtp-unix"])
def test_mail_comes_in_by_lmtp(hub: WideHub, mailbox: str, kind: str) -> None:
    sent = message()
    with lmtp(hub, kind) as client:
        client.deliver(sent, mailbox)
        client.say("QUIT", b"221")
    assert bodies(hub, mailbox) == [sent]


def test_there_is_one_verdict_for_each_accepted_recipient(hub: WideHub, mailbox: str) -> None:
    """Including duplicates and tags (they are one mailbox), without refused ones, in order."""
    sent = message()
    with lmtp(hub) as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        client.say(f"RCPT TO:<{address(mailbox)}>")
        client.say("RCPT TO:<nobody@example.test>", b"550")
        client.say(f"RCPT TO:<{address(mailbox)}>")
        client.say(f"RCPT TO:<{address(mailbox + '+tag')}>")
        answers = verdicts(client, sent, 3)
        client.say("NOOP")
    assert len(set(answers)) == 1
    assert answers[0].startswith(b"250 2.0.0 Ok: queued as ")
    assert len(fetch(hub, mailbox)) == 1


def test_a_refused_message_is_refused_for_each_recipient(hub: WideHub) -> None:
    with lmtp(hub) as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        for name in (BOXES[-1], BOXES[-2]):
            client.say(f"RCPT TO:<{address(name)}>")
        answers = verdicts(client, b"A: b\r\n\r\nbare\nLF\r\n", 2)
        bare = b"550 5.5.2 bare <LF> received"
        assert [answer.partition(b";")[0] for answer in answers] == [bare] * 2
        client.say("NOOP")
    assert fetch(hub, BOXES[-1]) == []


def test_chunks_are_answered_like_data(hub: WideHub, mailbox: str) -> None:
    sent = message()
    with lmtp(hub) as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        for _ in range(2):
            client.say(f"RCPT TO:<{address(mailbox)}>")
        half = len(sent) // 2
        client.send(b"BDAT %d\r\n" % half + sent[:half])
        client.reply(b"250")
        client.send(b"BDAT %d LAST\r\n" % (len(sent) - half) + sent[half:])
        assert [client.reply()[:3], client.reply()[:3]] == [b"250", b"250"]
        client.say("NOOP")
    assert bodies(hub, mailbox) == [sent]


@pytest.mark.parametrize("hello", ["EHLO c", "HELO c"])
def test_the_hello_of_smtp_is_not_that_of_lmtp(hub: WideHub, hello: str) -> None:
    with Smtp(connect(hub.places["lmtp"])) as client:
        client.reply(b"220")
        client.say(hello, b"500")
        client.say("LHLO c")


def test_the_library_of_python_speaks_lmtp_with_it(hub: WideHub, mailbox: str) -> None:
    sent = message()
    with smtplib.LMTP(str(hub.places["lmtp-unix"])) as client:
        assert client.sendmail(SENDER, [address(mailbox)], sent, ["BODY=8BITMIME"]) == {}
    (found,) = fetch(hub, mailbox)
    assert b" with LMTP id " in found
    # A unix socket has no address to name.
    assert found.split(b"\r\n")[2].startswith(b"Received: from ")
    assert b"(" not in found.split(b"\r\n")[2]


def test_the_unix_socket_is_for_every_user_and_goes_with_the_hub() -> None:
    """An MTA runs as a different user than the hub."""
    with WideHub(["lmtp-unix", "pop3"]) as hub:
        path = Path(str(hub.places["lmtp-unix"]))
        assert path.stat().st_mode & 0o777 == 0o666
        hub.restart()
        with lmtp(hub, "lmtp-unix") as client:
            client.say("QUIT", b"221")
        # A socket left by a killed hub does no harm.
        hub.kill()
        assert path.exists()
        hub.start()
        with lmtp(hub, "lmtp-unix") as client:
            client.deliver(message(), "alice")


def test_both_workers_serve_the_unix_socket(hub: WideHub, mailbox: str) -> None:
    """Many at once: every one is served."""
    clients = [lmtp(hub, "lmtp-unix") for _ in range(40)]
    for client in clients:
        client.deliver(message(), mailbox)
    for client in clients:
        client.drop()
    assert len(fetch(hub, mailbox)) == 40


def test_ipv6_is_served_like_ipv4(hub: WideHub, mailbox: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    sent = message()
    with smtp(hub, "smtp6") as client:
        client.deliver(sent, mailbox)
    with Smtp(connect(hub.places["pop36"])) as reader:
        assert HOSTNAME.encode() in reader.line()
    (found,) = fetch(hub, mailbox)
    assert b"from client.example.test ([IPv6:::1])\r\n" in found
    assert without_trace(found) == sent
