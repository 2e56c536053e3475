"""Clients and messages for the end-to-end tests.

Rules of this file:

* Raw sockets and raw octets: tests compare what went over the wire, not a library's interpretation.
  Libraries and programs are tested too, each in its own test.
* The oracle is the digest of the whole message.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable

from tests.support.hub import DEADLINE, HOSTNAME, PASSWORD, Hub, address

# Mailboxes of one message with a hundred recipients.
MANY = [f"many{number:02}" for number in range(100)]

SENDER = "sender@client.example.test"
HEADER = (
    b"From: Sender <sender@client.example.test>\r\n"
    b"To: Someone <someone@example.test>\r\n"
    b"Subject: for a test\r\n"
    b"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <%d@client.example.test>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"\r\n"
)
AWKWARD = (
    b".\r\n..\r\n.dot in front\r\n...three\r\nno dot\r\n\r\n \r\n"
    b"From the start of a line\r\n>From quoted already\r\n"
    + "8-bit: räksmörgås, 信\r\n".encode()
    + b"long: "
    + b"x" * 900
    + b"\r\ntabs\tand trailing blanks  \r\n.\r\n"
)
# The three fields that metad prepends: RFC 5321 4.4; Received is folded.
TRACE = re.compile(
    rb"Return-Path: <([^>]*)>\r\n"
    rb"Delivered-To: ([^\r]*)\r\n"
    rb"Received: from [^\r]*(?:\r\n[ \t][^\r]*)*\r\n"
)
_numbers = iter(range(1, 1 << 30))


def message(body: bytes = AWKWARD) -> bytes:
    """A message that no other test sends."""
    return HEADER % next(_numbers) + body


def random_body(dice: random.Random, most: int) -> bytes:
    """Lines of any octets but CR, LF and NUL, some beginning with dots."""
    lines = []
    left = dice.randrange(most)
    while left > 0:
        size = min(left, dice.randrange(1, 900))
        line = dice.randbytes(size).translate(_NO_LINE_ENDS)
        lines.append(dice.choice((b"", b"", b".", b"..")) + line + b"\r\n")
        left -= size
    return b"".join(lines)


_NO_LINE_ENDS = bytes(ord("x") if octet in b"\r\n\0" else octet for octet in range(256))


def digest(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def without_trace(octets: bytes, sender: str = SENDER, recipient: str | None = None) -> bytes:
    """The message as it was sent, of one as it was fetched; what is in front is looked at."""
    found = TRACE.match(octets)
    assert found, octets[:400]
    assert found[1] == sender.encode()
    assert f"by {HOSTNAME} with".encode() in found[0]
    assert recipient is None or found[2] == address(recipient).encode()
    return octets[found.end() :]


def stuffed(octets: bytes) -> bytes:
    """As it goes over the wire, with the end (RFC 5321 4.5.2)."""
    return re.sub(rb"(?m)^\.", b"..", octets) + b".\r\n"


def unstuffed(wire: bytes) -> bytes:
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    return re.sub(rb"(?m)^\.", b"", wire[:-3])


def stranger() -> str:
    """A loopback address that no client has used yet: what is held against a client network,
    as failed logins are, is held against no other test."""
    number = next(_numbers)
    return f"127.{number >> 16 & 127 | 128}.{number >> 8 & 255}.{number & 255}"


class Line:
    """A connection on which lines come."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0))
        self.input = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def fileno(self) -> int:
        return self.socket.fileno()

    def drop(self) -> None:
        """Close without QUIT."""
        self.input.close()
        self.socket.close()

    @contextlib.contextmanager
    def dropped_if_it_fails(self):
        """For replies that arrive before a test owns this connection to close it."""
        try:
            yield
        except BaseException:
            self.drop()
            raise

    def line(self) -> bytes:
        line = self.input.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the hub has closed the connection")
        return line[:-2]

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)


class SmtpLine(Line):
    """An SMTP client; `say` gives the reply's last line."""

    def __init__(self, hub: Hub, *, greet: bool = True, source: str = "127.0.0.1") -> None:
        super().__init__(hub.smtp_port, source)
        if greet:
            with self.dropped_if_it_fails():
                self.reply(b"220")
                self.say("EHLO client.example.test")

    def reply(self, code: bytes = b"2") -> bytes:
        while (line := self.line())[3:4] == b"-":
            assert line.startswith(code), line
        assert line.startswith(code), line
        return line

    def say(self, command: str, code: bytes = b"2") -> bytes:
        self.send(command.encode() + b"\r\n")
        return self.reply(code)

    def deliver(self, octets: bytes, *names: str, code: bytes = b"250") -> bytes:
        """One message to mailboxes; the reply to its end."""
        self.say(f"MAIL FROM:<{SENDER}> BODY=8BITMIME")
        return self.deliver_in(octets, *names, code=code)

    def deliver_in(self, octets: bytes, *names: str, code: bytes = b"250") -> bytes:
        """The same in a transaction that has begun."""
        for name in names:
            self.say(f"RCPT TO:<{address(name)}>")
        self.say("DATA", b"354")
        self.send(stuffed(octets))
        return self.reply(code)


def deliver(hub: Hub, octets: bytes, *names: str) -> bytes:
    with SmtpLine(hub) as smtp:
        reply = smtp.deliver(octets, *names)
        smtp.say("QUIT", b"221")
        return reply


class Pop3Line(Line):
    """A POP3 client; `say` gives the answer's line, `listing` what follows it."""

    def __init__(self, hub: Hub, source: str = "127.0.0.1") -> None:
        super().__init__(hub.pop3_port, source)
        with self.dropped_if_it_fails():
            assert self.line().startswith(b"+OK")

    def say(self, command: str, answer: bytes = b"+OK") -> bytes:
        self.send(command.encode() + b"\r\n")
        line = self.line()
        assert line.startswith(answer), (command, line)
        return line

    def listing(self, command: str) -> bytes:
        """The octets of a multi-line response, dots still stuffed, with its end."""
        self.say(command)
        lines = []  # type: ignore[var-annotated]
        while not lines or lines[-1] != b".\r\n":
            lines.append(self.line() + b"\r\n")
        return b"".join(lines)

    def log_in(self, name: str, password: str = PASSWORD, answer: bytes = b"+OK") -> bytes:
        self.say(f"USER {address(name)}")
        return self.say(f"PASS {password}", answer)

    def count(self) -> int:
        return int(self.say("STAT").split()[1])

    def retrieve(self, number: int) -> bytes:
        return unstuffed(self.listing(f"RETR {number}"))


def fetch(hub: Hub, name: str, *, delete: bool = False) -> list[bytes]:
    """Every message of a mailbox; each is as long as LIST says."""
    with Pop3Line(hub) as pop:
        pop.log_in(name)
        found = [pop.retrieve(number + 1) for number in range(pop.count())]
        sizes = [int(line.split()[1]) for line in pop.listing("LIST").splitlines()[:-1]]
        assert sizes == [len(one) for one in found]
        for number in range(len(found) if delete else 0):
            pop.say(f"DELE {number + 1}")
        pop.say("QUIT")
        return found


def bodies(hub: Hub, name: str) -> list[bytes]:
    """Every message of a mailbox as it was sent."""
    return [without_trace(one, recipient=name) for one in fetch(hub, name)]


def unique_ids(hub: Hub, name: str) -> list[bytes]:
    with Pop3Line(hub) as pop:
        pop.log_in(name)
        found = [line.split()[1] for line in pop.listing("UIDL").splitlines()[:-1]]
        pop.say("QUIT")  # who only hangs up has the mailbox until the hub sees it
        return found


def shows(hub: Hub, name: str, texts: list[bytes]) -> bool:
    """Whether a mailbox has these messages.  A node that cannot tell yet refuses the login."""
    with contextlib.suppress(AssertionError):
        return bodies(hub, name) == texts
    return False


def in_time(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Whether a condition without notification becomes true: polled up to a deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


def wait_for_login(hub: Hub, name: str) -> None:
    """A session whose client or worker vanished ends when the hub sees it: at once, yet later."""

    def admitted() -> bool:
        with contextlib.suppress(ConnectionError), Pop3Line(hub) as pop:
            pop.say(f"USER {address(name)}")
            pop.send(f"PASS {PASSWORD}\r\n".encode())
            if (answer := pop.line()).startswith(b"+OK"):
                pop.say("QUIT")
                return True
            assert answer.startswith(b"-ERR [IN-USE]"), answer
        return False

    assert in_time(admitted)


def together(threads: Iterable[threading.Thread]) -> None:
    """Wait for threads; one that does not end is an error."""
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
