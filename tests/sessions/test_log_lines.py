"""The log answers a ticket: a line per message, per refusal, per POP3 session however it ended."""

from __future__ import annotations

import pytest

from metad.errors import UnknownUserError
from metad.sessions.message_id import SEARCHED, find_message_id
from metad.users.account import DISABLED, Account
from tests.support.session_kit import World

TO_DATA = b"EHLO c.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
TEXT = b"Subject: x\r\nMessage-ID: <1@example.org>\r\n\r\nMessage-ID: <no>\r\n.\r\n"
ID = "0" * 32


@pytest.mark.parametrize("cuts", [1, 3, 7, 1000])
def test_a_line_for_each_message(cuts: int) -> None:
    world = World()
    client = world.smtp()
    client.send(TO_DATA)
    world.loop.now += 0.25
    for at in range(0, len(TEXT), cuts):
        client.send(TEXT[at : at + cuts])
    (line,) = world.lines
    assert line == (
        f"{ID}: client=192.0.2.1, helo=<c.example>, tls=no, from=<a@example.org>, "
        "to=<b@example.org>, size=61, nrcpt=1, message-id=<1@example.org>, delay=0.250, "
        "status=stored"
    )


def test_a_line_for_each_refusal() -> None:
    world = World(rate=1)
    client = world.smtp()

    def expand(address: str) -> tuple[Account, ...]:
        raise UnknownUserError

    world.context.users.expand = expand  # type: ignore[method-assign]
    client.send(b"EHLO c.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<x@example.org>\r\n")
    client.send(b"RSET\r\nMAIL FROM:<s@example.org>\r\n")
    assert world.lines == [
        "reject: command=RCPT, client=192.0.2.1, helo=<c.example>, tls=no, from=<a@example.org>, "
        "to=<x@example.org>, reply=550 5.1.1 User unknown",
        "reject: command=MAIL, client=192.0.2.1, helo=<c.example>, tls=no, from=<s@example.org>, "
        "to=, reply=450 4.7.1 Error: too much mail from this client, try again later (192.0.2.1)",
    ]


def test_a_message_with_bare_line_feeds_names_client_sender_and_recipient() -> None:
    world = World()
    client = world.smtp()
    client.send(TO_DATA + b"a\nb\r\n.\r\n")
    (line,) = world.lines
    assert line.startswith("reject: command=DATA, client=192.0.2.1, helo=<c.example>")
    assert "from=<a@example.org>, to=<b@example.org>, reply=550 5.5.2 bare <LF> received" in line
    assert line.endswith("(1 so far from 192.0.2.1)")


SESSION = "session: client=192.0.2.1, user=<bob>, tls=no, mech=PLAIN, top=0, retr=0/0, del=0/0"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("quit", "logged out"),
        ("hang up", "client hung up"),
        ("idle", "session timed out"),
        ("errors", "too many errors"),
        ("stop", "service shutting down"),
    ],
)
def test_every_pop3_session_leaves_a_line_however_it_ends(end: str, reason: str) -> None:
    """One that read a message and dropped left none."""
    world = World()
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore
    client = world.pop3()
    client.send(b"USER bob\r\n" + (b"" if end == "stop" else b"PASS right\r\n"))
    if end == "quit":
        client.send(b"QUIT\r\n")
    elif end == "idle":
        world.pass_time(603)
    elif end == "errors":
        client.send(b"NOPE\r\n" * 30)
    elif end == "stop":
        client.session.drain()
    client.lose()
    nameless = SESSION.replace("<bob>", "<>").replace("PLAIN", "none")
    expected = nameless if end == "stop" else SESSION
    (line,) = world.lines
    assert line.startswith(expected + ", seconds=")
    assert line.endswith(f", reason={reason}")


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        (None, "unknown user"),
        (Account(2, "bob", DISABLED), "user disabled"),
        (Account(2, "bob"), "wrong password"),
    ],
)
def test_only_the_log_tells_why_a_login_failed(account: Account | None, reason: str) -> None:
    world = World()
    world.context.users.account = lambda address: account  # type: ignore[method-assign]
    client = world.pop3()
    client.transport.take()
    client.send(b"USER bob\r\nPASS wrong\r\n")
    world.threads.run()
    world.loop.advance(1)
    assert world.lines == [
        f"login failed: client=192.0.2.1, user=<bob>, tls=no, mech=PLAIN, reason={reason}"
    ]
    assert client.transport.take().endswith(b"-ERR [AUTH] authentication failed\r\n")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"Message-ID: <a@b>\r\n\r\n", "a@b"),
        (b"X: y\r\nmessage-id:<a@b>\r\nZ: 1\r\n\r\n", "a@b"),
        (b"X: y\r\nMESSAGE-ID:\r\n <a@b>\r\n\r\n", "a@b"),
        (b"X: Message-ID: <a@b>\r\nMessage-IDs: <c>\r\n\r\nMessage-ID: <d>\r\n", ""),
        (b"Message-ID: <a\x00\x1b[31m@b>\r\n\r\n", "a??[31m@b"),
        (b"X: " + b"y" * SEARCHED + b"\r\nMessage-ID: <a@b>\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_the_message_id_is_found_in_the_header_alone(head: bytes, found: str) -> None:
    assert find_message_id(head) == found
