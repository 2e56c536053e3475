"""A session of the SMTP machine for tests, with answers like a worker's."""

from __future__ import annotations

from metad.errors import Reply
from metad.protocol.smtp.machine import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    Event,
    MailFrom,
    RcptTo,
    Smtp,
    SmtpSettings,
    StartTls,
)

HOST = "mx.example.org"
PLAIN = SmtpSettings(HOST, message_size=1000, recipients=3, errors=10_000, idle_commands=10_000)
REPAIR = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=10_000, bare_line_ends="repair")
LMTP = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=10_000, lmtp=True)
TLS = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=10_000, starttls=True)

STORED = Reply(250, "2.0.0", "Ok: stored")
NOBODY = Reply(550, "5.1.1", "User unknown")
EHLO = b"EHLO client.example.org\r\n"
TO_RCPT = EHLO + b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n"
TO_DATA = TO_RCPT + b"DATA\r\n"


class Session:
    """Feeds octets, answers every event, and keeps the output.

    Recipients that begin with "no" and senders that begin with "bad" are refused.  `events`:
    body chunks are joined, and those of an aborted message forgotten.
    """

    def __init__(self, settings: SmtpSettings = PLAIN, *, tls: bool = False) -> None:
        self.machine = Smtp(settings, tls=tls)
        self.events: list[Event] = []
        self.chunks: list[bytes] = []
        self.octets = b""
        self.machine.start()
        self.pump()
        self.greeting, self.octets = self.octets, b""

    def send(self, *pieces: bytes) -> bytes:
        """Feed the pieces.  Returns the replies."""
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
            while (event := self.machine.next_event()) is not None:
                self.keep(event)
            full = self.machine.full
            self.octets += self.machine.take_output()
            if not full:
                return

    def keep(self, event: Event) -> None:
        if isinstance(event, BodyChunk):
            assert event.data
            self.chunks.append(event.data)
            return
        if isinstance(event, EndOfMessage):
            assert event.rest
            self.events.append(BodyChunk(b"".join([*self.chunks, event.rest])))
            event = event._replace(rest=b"")
        if isinstance(event, EndOfMessage | Aborted):
            self.chunks = []
        self.events.append(event)
        self.answer(event)

    def answer(self, event: Event) -> None:
        if isinstance(event, MailFrom):
            self.machine.answer(NOBODY if event.sender.startswith("bad") else None)
        elif isinstance(event, RcptTo):
            self.machine.answer(NOBODY if event.address.startswith("no") else None)
        elif isinstance(event, EndOfMessage):
            self.machine.answer(STORED)
        elif isinstance(event, StartTls):
            self.machine.tls_started()

    @property
    def messages(self) -> list[bytes]:
        """Bodies of the complete messages, as they would be stored."""
        return [event.data for event in self.events if isinstance(event, BodyChunk)]

    @property
    def codes(self) -> list[int]:
        """The codes of the replies so far, one per reply."""
        lines = self.octets.split(b"\r\n")[:-1]
        return [int(line[:3]) for line in lines if line[3:4] == b" "]


def run(settings: SmtpSettings, *pieces: bytes) -> tuple[list[Event], bytes, bool]:
    """A whole session and its end: events, replies, whether the machine closed it."""
    session = Session(settings)
    session.send(*pieces)
    session.eof()
    return session.events, session.octets, session.machine.closed


def single(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


def reply(octets: bytes) -> bytes:
    """The one reply line in the octets."""
    assert octets.count(b"\r\n") == 1
    assert octets.endswith(b"\r\n")
    return octets[:-2]
