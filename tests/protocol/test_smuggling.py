"""SMTP smuggling: no unusual line end around a dot ends a message, however it is cut.

The matrix: every pair of line ends around the dot, followed by commands of a second message, at
every split point, refused and repaired, by DATA, by BDAT, and in command lines.
"""

from __future__ import annotations

from itertools import product

import pytest

from metad.protocol.smtp.machine import Aborted, EndOfMessage, MailFrom, RcptTo, SmtpSettings
from tests.support.smtp_session import EHLO, PLAIN, REPAIR, TO_DATA, TO_RCPT, Session, single

ENDS = (
    *(b"\r", b"\n", b"\r\n", b"\n\r", b"\r\r\n", b"\r\n\r", b"\r\r", b"\n\n", b"\0", b""),
    *(b"\r\0\n", b"\r\n\0", b"\0\r\n", b"\n\r\n", b"\r\n\n", b"\x85", b"\x0b", b"\xe2\x80\xa8"),
)
# Each of these before the dot is tried with every end after it; the others only in longer runs.
BEFORE = [*ENDS[:3], *(pytest.param(end, marks=pytest.mark.slow) for end in ENDS[3:])]
EVIL = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<c@example.org>\r\nDATA\r\nevil\r\n.\r\n"
END = b"\r\n.\r\n"


def cuts(octets: bytes) -> list[list[bytes]]:
    return [
        [octets],
        single(octets),
        *([octets[:at], octets[at:]] for at in range(1, len(octets))),
    ]


def check_one_transaction(session: Session, *, stored: bool) -> None:
    """The session saw one message, and nothing after or inside it as a command."""
    kinds = [type(event) for event in session.events]
    assert kinds.count(MailFrom) == 1
    assert kinds.count(RcptTo) == 1
    assert kinds.count(EndOfMessage) + kinds.count(Aborted) == 1
    assert not any("evil" in str(event) for event in session.events if isinstance(event, MailFrom))
    assert len(session.messages) == int(stored)
    for message in session.messages:
        check_stored(message)


def check_stored(message: bytes) -> None:
    """A message sent by POP3 ends once, even for a lenient reader."""
    assert (b"\r\n" + message).find(END) == len(message) - 3
    lines = message.count(b"\r\n")
    assert message.count(b"\r") == message.count(b"\n") == lines


def is_clean(octets: bytes) -> bool:
    rest = octets.replace(b"\r\n", b"")
    return not set(rest) & set(b"\r\n\0")


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE, ids=repr)
def test_data_is_not_ended_by_an_odd_dot_line(before: bytes) -> None:
    dot_lines = (before + b"." + after for after in ENDS)
    for dot_line, settings in product(dot_lines, (PLAIN, REPAIR)):
        if END in dot_line:
            continue
        # The real end is that of the second message's text, which also ends the first.
        octets = b"Subject: x\r\n\r\nhello" + dot_line + EVIL
        stored = is_clean(octets) or (settings is REPAIR and b"\0" not in octets)
        for pieces in cuts(octets):
            session = Session(settings)
            session.send(TO_DATA)
            session.send(*pieces)
            check_one_transaction(session, stored=stored)


@pytest.mark.parametrize("before", ENDS, ids=repr)
def test_a_message_that_begins_with_an_odd_dot_line_is_not_empty(before: bytes) -> None:
    openings = (b"." + after + before + b"." + after for after in ENDS)
    for opening, settings in product(openings, (PLAIN, REPAIR)):
        if END in b"\r\n" + opening:
            continue  # a dot line right after DATA ends an empty message, as it should
        octets = opening + EVIL
        stored = is_clean(octets) or (settings is REPAIR and b"\0" not in octets)
        for pieces in ([octets], single(octets)):
            session = Session(settings)
            session.send(TO_DATA)
            session.send(*pieces)
            check_one_transaction(session, stored=stored)


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE, ids=repr)
def test_a_chunk_is_not_ended_by_any_dot_line(before: bytes) -> None:
    for after, settings in product(ENDS, (PLAIN, REPAIR)):
        raw = b"A: b\r\n\r\nhello" + before + b"." + after + EVIL
        stored = is_clean(raw) or (settings is REPAIR and b"\0" not in raw)
        for at in range(len(raw) + 1):
            head, tail = raw[:at], raw[at:]
            session = Session(settings)
            session.send(TO_RCPT)
            session.send(b"BDAT %d\r\n" % len(head) + head)
            session.send(b"BDAT %d LAST\r\n" % len(tail) + tail)
            check_one_transaction(session, stored=stored)


@pytest.mark.parametrize("end", [end for end in ENDS if b"\r\n" not in end])
def test_no_odd_line_end_ends_a_command(end: bytes) -> None:
    octets = b"NOOP" + end + b"MAIL FROM:<evil@example.org>" + end + b"DATA" + end + b"\r\n"
    for pieces in cuts(octets):
        session = Session()
        session.send(EHLO)
        replies = session.send(*pieces)
        assert session.events == []
        assert replies.count(b"\r\n") == 1


@pytest.mark.parametrize("verb", [b"MAIL FROM:<a%b@example.org>", b"RCPT TO:<a%b@example.org>"])
@pytest.mark.parametrize("end", [end for end in ENDS if b"\r\n" not in end and end])
def test_no_address_holds_a_line_end(verb: bytes, end: bytes) -> None:
    session = Session(SmtpSettings("mx.example.org", 1000, 100))
    session.send(EHLO)
    if verb.startswith(b"RCPT"):
        session.send(b"MAIL FROM:<a@b> SMTPUTF8\r\n")
    before = len(session.events)
    for quote in (b"", b'"'):
        octets = verb % (quote + end + quote) + b" SMTPUTF8\r\n"
        session.send(octets)
    assert session.events[before:] == []


def test_the_matrix_has_true_ends_too_and_they_end_the_message() -> None:
    session = Session()
    session.send(TO_DATA, b"hello\r\n.\r\n" + EVIL)
    assert [type(event) for event in session.events].count(MailFrom) == 2
    assert len(session.messages) == 2
