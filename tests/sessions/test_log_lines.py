"""The log is enough for a support request: a line per message, refusal and POP3 session, however it
ended."""

from __future__ import annotations

import json

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


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.0006, 0.25, 0.9994, 0.9996, 1.5, 3600.25])
def test_the_delay_is_shown_in_milliseconds(seconds: float) -> None:
    world = World()
    world.loop.now = 0.0
    client = world.smtp()
    client.send(TO_DATA)
    world.loop.now += seconds
    client.send(TEXT)
    (line,) = world.lines
    assert f", delay={seconds:.3f}, " in line


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


REJECT = "client=192.0.2.1, helo=<c.example>, tls=no, from=<>, to=, reply="
HELLO = b"EHLO c.example\r\n"


@pytest.mark.parametrize(
    ("sent", "command", "reply"),
    [
        (b"WHAT is this", "unknown", "500 5.5.2 Error: command not recognized"),
        (b"c2VjcmV0", "unknown", "500 5.5.2 Error: command not recognized"),
        (b"auth plain AGFubgBzZWNyZXQ=", "AUTH", "502 5.5.1 Error: command not implemented"),
        (b"MAIL FROM:a@b@c", "MAIL, argument=<FROM:a@b@c>", "501 5.1.7 Bad sender address syntax"),
        (b"MAIL FROM:<> SIZE=999999999", "MAIL, argument=<FROM:<> SIZE=999999999>",
         "552 5.3.4 Message size exceeds fixed limit"),
        (b"MAIL", "MAIL, argument=<>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"RCPT TO:<b@example.org>", "RCPT, argument=<TO:<b@example.org>>",
         "503 5.5.1 Error: need MAIL command"),
        (b"DATA", "DATA", "503 5.5.1 Error: need RCPT command"),
        (b"BDAT 0", "BDAT", "503 5.5.1 Error: need RCPT command"),
        (b"x\x00y", "unknown", "500 5.5.2 Error: bare <CR>, <LF> or <NUL> in a command"),
        (b"x" * 3000, "unknown", "500 5.5.2 Error: line too long"),
        (b"VRFY", "VRFY", "501 5.5.4 Syntax: VRFY address"),
    ],
)  # fmt: skip
def test_a_line_for_each_refused_command(sent: bytes, command: str, reply: str) -> None:
    """Regression: they were counted, but not logged.  No argument that may be a password is
    shown."""
    world = World()
    client = world.smtp()
    client.send(HELLO + sent + b"\r\n")
    assert world.lines == [f"reject: command={command}, {REJECT}{reply}"]


@pytest.mark.parametrize(
    "more", [b"", b"RSET\r\n", b"QUIT\r\n", b"RSET\r\nMAIL FROM:<c@example.org>\r\n"]
)
def test_a_refused_command_within_a_transaction_has_its_addresses(more: bytes) -> None:
    """Also if what ends the transaction comes in the same packet."""
    world = World()
    client = world.smtp()
    client.send(
        HELLO + b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<b\r\n" + more
    )
    line = world.lines[0]
    assert "command=RCPT, argument=<TO:<b>, " in line
    assert "from=<a@example.org>, to=<b@example.org>, reply=501" in line


def test_recipients_beyond_the_limit_are_one_line_and_a_count() -> None:
    world = World()
    client = world.smtp()
    most = client.session._machine._settings.recipients
    client.send(HELLO + b"MAIL FROM:<a@example.org>\r\n")
    for _ in range(most + 5):
        client.send(b"RCPT TO:<b@example.org>\r\n")
    (line,) = world.lines
    assert "reply=452 4.5.3 Error: too many recipients" in line


@pytest.mark.parametrize(
    ("sent", "end", "line"),
    [
        (b"", "hang up", "helo=<>, tls=no, seconds=0, reason=client hung up"),
        (HELLO, "half-close", "helo=<c.example>, tls=no, seconds=0, reason=client hung up"),
        (HELLO + b"QUIT\r\n", "hang up", "helo=<c.example>, tls=no, seconds=0, reason=quit"),
        (HELLO, "idle", "helo=<c.example>, tls=no, seconds=303, reason=Error: timeout exceeded"),
        (b"GET / HTTP/1.0\r\n", "hang up",
         "helo=<>, tls=no, seconds=0, reason=Error: this is not a web server"),
        (TO_DATA + b"half", "hang up", "helo=<c.example>, tls=no, from=<a@example.org>, "
         "to=<b@example.org>, seconds=0, reason=client hung up"),
        (TO_DATA + b"half", "idle", "helo=<c.example>, tls=no, from=<a@example.org>, "
         "to=<b@example.org>, seconds=303, reason=Error: timeout exceeded"),
        (HELLO, "stop", "helo=<c.example>, tls=no, seconds=0, reason=Service shutting down"),
    ],
)  # fmt: skip
def test_an_smtp_session_without_a_message_leaves_a_line(sent: bytes, end: str, line: str) -> None:
    world = World()
    client = world.smtp()
    client.send(sent)
    if end == "idle":
        world.pass_time(303)
    elif end == "half-close":
        client.session.eof_received()
    elif end == "stop":
        client.session.drain()
    client.lose()
    assert world.lines == [f"session: client=192.0.2.1, {line}"]


@pytest.mark.parametrize("protocol", ["smtp", "pop3"])
def test_the_seconds_of_a_session_are_a_number_in_json(protocol: str, monkeypatch) -> None:
    world, found = World(), []
    monkeypatch.setattr(
        world.context.log, "limited", lambda *given: found.append(json.dumps(given[-1]))
    )
    client = getattr(world, protocol)()
    world.pass_time(2)
    client.lose()
    (line,) = found
    assert '"seconds": 2, ' in line


def test_a_session_whose_messages_have_lines_needs_none_unless_it_was_cut_off() -> None:
    for end, lines in ((b"QUIT\r\n", 1), (b"", 1), (b"MAIL FROM:<a@example.org>\r\n", 2)):
        world = World()
        client = world.smtp()
        client.send(TO_DATA + TEXT + end)
        client.lose()
        assert len(world.lines) == lines


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
    """Regression: a session that read a message and dropped was not logged."""
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
