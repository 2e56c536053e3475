"""A maildrop and a session of the POP3 machine for tests, with answers like a worker's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metad.protocol.pop3.machine import (
    Event,
    Login,
    Pop3,
    Pop3Settings,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.users.passwords import derive

OPEN = Pop3Settings("mx.example.org", plaintext=True)
GUARDED = Pop3Settings("mx.example.org", plaintext=False)
TLS = Pop3Settings("mx.example.org", plaintext=True, stls=True)
SCRAM = Pop3Settings("mx.example.org", plaintext=False, scram=True)
KEYS = derive(b"pencil", b"a salt of 16 oct", 4096)
NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"

MESSAGES = (
    b"Subject: one\r\n\r\nfirst\r\nsecond\r\n.\r\n",
    b"Subject: two\r\n\r\n..dotted\r\n.\r\n",
    b"Subject: three\r\nX: y\r\n.\r\n",
)


class Drop:
    """The listing of MESSAGES, or of those given."""

    is_listed = True

    def __init__(self, messages: Sequence[bytes] = MESSAGES) -> None:
        self.messages = messages

    @property
    def octets(self) -> int:
        return sum(self.size(n) for n in range(1, len(self) + 1))

    def __len__(self) -> int:
        return len(self.messages)

    def size(self, number: int) -> int:
        return len(self.messages[number - 1].replace(b"\r\n..", b"\r\n.")) - 3

    def uid(self, number: int) -> str:
        return f"uid{number}"


class Session:
    """Feeds octets, answers every event, and keeps the output."""

    def __init__(self, settings: Pop3Settings = OPEN, drop: Drop | None = None) -> None:
        self.machine = Pop3(settings)
        self.drop = Drop() if drop is None else drop
        self.events: list[Event] = []
        self.octets = b""
        self.machine.start()
        self.pump()

    def send(self, *pieces: bytes) -> bytes:
        """Feed the pieces.  Returns the output."""
        before = len(self.octets)
        for piece in pieces:
            self.machine.receive(piece)
            self.pump()
        return self.octets[before:]

    def eof(self) -> None:
        self.machine.eof()
        self.pump()

    def pump(self) -> None:
        while True:
            event = self.machine.next_event()
            full = self.machine.full
            if event is not None:
                self.events.append(event)
                self.answer(event)
            self.octets += b"".join(self.machine.take_output())
            if event is None and not full:
                return

    def answer(self, event: Event) -> None:
        machine = self.machine
        match event:
            case Login(_, b"wrong"):
                machine.login_failed()
            case Login() | ScramLogin(_, True):
                machine.login_ok(self.drop)
            case ScramLogin():
                machine.login_failed()
            case ScramUser():
                machine.scram_keys(KEYS, NONCE)
            case StartTls():
                machine.tls_started(OPEN)
            case Retrieve(number):
                machine.message([self.drop.messages[number - 1]])
            case Top(number, _):
                machine.top([self.drop.messages[number - 1]])
            case Quit():
                machine.quit_done()


def logged_in(settings: Pop3Settings = OPEN, drop: Drop | None = None) -> Session:
    session = Session(settings, drop)
    session.send(b"USER bob@example.org\r\nPASS secret\r\n")
    return session


def single(octets: bytes) -> Iterable[bytes]:
    """The octets, one by one."""
    return (octets[i : i + 1] for i in range(len(octets)))
