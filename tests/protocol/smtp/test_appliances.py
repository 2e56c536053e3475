"""Input from careless programs and appliances, and how it is handled."""

from __future__ import annotations

import random

import pytest

from metad.errors import Reply
from metad.protocol.lines import DISCARD_LIMIT, Fault, LooseLineBuffer
from metad.protocol.smtp.machine import EndOfMessage
from tests.support.smtp_session import PLAIN, REPAIR, TO_DATA, Session, reply, run, single

LF_SESSION = (
    b"EHLO scanner\nMAIL FROM:<a@example.org>\nRCPT TO:<b@example.org>\nDATA\n"
    b"Subject: scan\n\npage one\n.\nQUIT\n"
)


# --- commands that end in LF (the client then waited 300 seconds, or heard 500 for each) ---


def test_a_client_to_repair_may_end_every_line_in_lf() -> None:
    session = Session(REPAIR)
    session.send(LF_SESSION)
    assert session.messages == [b"Subject: scan\r\n\r\npage one\r\n.\r\n"]
    assert session.codes == [250, 250, 250, 354, 250, 221]


def test_lf_sessions_are_the_same_at_every_cut() -> None:
    whole = run(REPAIR, LF_SESSION)
    assert run(REPAIR, *single(LF_SESSION)) == whole
    for at in range(len(LF_SESSION)):
        assert run(REPAIR, LF_SESSION[:at], LF_SESSION[at:]) == whole


@pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r\n.\r\n"])
def test_after_data_and_lf_a_line_of_a_dot_ends_the_message_however_it_ends(end: bytes) -> None:
    for cut in range(5):
        session = Session(REPAIR)
        session.send(TO_DATA[:-2] + b"\n")
        octets = b"A: b\n\nx" + end
        session.send(octets[: len(octets) - cut], octets[len(octets) - cut :])
        assert session.messages == [b"A: b\r\n\r\nx\r\n.\r\n"]


def test_an_empty_message_in_lf_ends_too() -> None:
    session = Session(REPAIR)
    session.send(TO_DATA[:-2] + b"\n", b".\n")
    assert session.messages == [b".\r\n"]


def test_after_data_and_crlf_only_crlf_dot_crlf_ends_the_message() -> None:
    """A relay that passes on others' text must not be tricked into a second message."""
    session = Session(REPAIR)
    smuggled = b"A: b\n\nx\n.\nMAIL FROM:<evil@example.org>\n"
    assert session.send(TO_DATA, smuggled).endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n")
    session.send(b"\r\n.\r\n")
    (message,) = session.messages
    assert b"\r\n..\r\nMAIL FROM:<evil@example.org>\r\n" in message


def test_lf_before_data_does_not_loosen_a_later_message() -> None:
    session = Session(REPAIR)
    session.send(LF_SESSION[: -len(b"QUIT\n")])
    assert len(session.messages) == 1
    session.send(TO_DATA, b"x\n.\ny\r\n.\r\n")
    assert session.messages[1] == b"x\r\n..\r\ny\r\n.\r\n"


def test_other_clients_are_told_of_lf_at_once() -> None:
    answer = reply(Session(PLAIN).send(b"EHLO scanner\n"))
    assert answer.startswith(b"500 5.5.2 Error: bare <CR>, <LF> or <NUL> in a command")


def test_a_client_that_ended_its_message_in_lf_learns_why_it_waited() -> None:
    """Regression: it only got "timeout exceeded" after five minutes."""
    for octets, words in (
        (b"A: b\r\n\r\nx\n.\n", b"Error: timeout exceeded; bare <LF> received; the client"),
        (b"A: b\r\n\r\nx\r\n", b"Error: timeout exceeded\r\n"),
    ):
        session = Session(PLAIN)
        session.send(TO_DATA, octets)
        session.machine.fail(Reply(421, "4.4.2", "Error: timeout exceeded"))
        assert words in session.machine.take_output()
    session = Session(PLAIN)
    session.send(TO_DATA, b"x\n.\n")
    session.machine.fail(Reply(421, "4.3.2", "Service shutting down"))
    assert session.machine.take_output() == b"421 4.3.2 Service shutting down\r\n"


@pytest.mark.parametrize(
    ("octets", "lines"),
    [
        (b"a\nb\r\nc", [b"a", b"b", None]),
        (b"\n\r\n", [b"", b"", None]),
        (b"a\rb\nc\n", [Fault.BARE, b"c", None]),
        (b"a\0b\nc\n", [Fault.BARE, b"c", None]),
        (b"12345678\r\n123456789\nx\n", [b"12345678", Fault.LONG, b"x", None]),
        (b"12345678\r", [None]),
        (b"1234567890", [Fault.LONG, None]),
    ],
)
def test_lines_that_end_in_lf(octets: bytes, lines: list[bytes | Fault | None]) -> None:
    for pieces in ([octets], single(octets)):
        buffer = LooseLineBuffer(8)
        found: list[bytes | Fault | None] = []
        for piece in pieces:
            buffer.push(piece)
            while (line := buffer.line()) is not None:
                found.append(line)
        assert [*found, None] == lines


def test_a_line_in_lf_that_does_not_end_is_a_flood() -> None:
    buffer = LooseLineBuffer(8)
    buffer.push(b"x" * 100)
    assert buffer.line() is Fault.LONG
    buffer.push(b"x" * (DISCARD_LIMIT + 1))
    assert buffer.line() is Fault.FLOOD


# --- dots that were not stuffed (POP3 clients saw a dot too many, or lost one) ---


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b".x\r\n.\r\n", b"x\r\n.\r\n"),
        (b"a\r\n.profile\r\n..y\r\n...z\r\n.\r\n", b"a\r\nprofile\r\n..y\r\n...z\r\n.\r\n"),
        (b"A: b\r\n\r\n. \r\n.\r\n", b"A: b\r\n\r\n \r\n.\r\n"),
        (b"a.b\r\nc.\r\n.\r\n", b"a.b\r\nc.\r\n.\r\n"),
    ],
)
def test_a_dot_that_was_not_stuffed_is_lost_as_rfc_5321_says(sent: bytes, stored: bytes) -> None:
    for pieces in ([sent], single(sent), *([sent[:i], sent[i:]] for i in range(len(sent)))):
        session = Session(PLAIN)
        session.send(TO_DATA, *pieces)
        end = session.events[-1]
        assert session.messages == [stored]
        assert isinstance(end, EndOfMessage)
        unstuffed = b"".join(
            line[1:] if line.startswith(b".") else line for line in stored[:-3].splitlines(True)
        )
        assert end.octets == len(unstuffed)
        assert end.stuffed_dots == len(stored) - 3 - len(unstuffed)


def test_a_repaired_lone_dot_stays_a_line_of_the_message() -> None:
    session = Session(REPAIR)
    session.send(TO_DATA, b"a\n.\n.b\r.\rc\r\n.\r\n")
    assert session.messages == [b"a\r\n..\r\nb\r\n..\r\nc\r\n.\r\n"]


@pytest.mark.slow
def test_what_is_stored_of_random_dots_is_canonical_at_every_cut() -> None:
    random_ = random.Random(20)
    for _ in range(300):
        text = b"".join(random_.choices((b".", b"\r\n", b"a", b".."), k=12))
        sent = text + b"\r\n.\r\n"
        cut = random_.randrange(len(sent))
        whole, pieces = Session(PLAIN), Session(PLAIN)
        whole.send(TO_DATA, sent)
        pieces.send(TO_DATA, sent[:cut], sent[cut:])
        assert pieces.messages == whole.messages
        for line in whole.messages[0][:-3].split(b"\r\n"):
            assert not line.startswith(b".") or line.startswith(b"..")


# --- an mbox separator in front (the header became body) ---

SEPARATOR = b"From alice@example.org Sat Nov 28 12:00:00 2026\r\n"
HEADER = b"Received: a\r\nSubject: x\r\n\r\nbody\r\n.\r\n"


@pytest.mark.parametrize("quote", [b"", b">"])
def test_a_leading_mbox_separator_leaves_the_header_a_header(quote: bytes) -> None:
    sent = quote + SEPARATOR + HEADER
    for pieces in ([sent], single(sent), *([sent[:i], sent[i:]] for i in range(12))):
        session = Session(PLAIN)
        session.send(TO_DATA, *pieces)
        stored = b"X-Mailbox-Line: " + sent
        assert session.messages == [stored]
        assert session.events[-1] == EndOfMessage(len(stored) - 3, 0, True, 1)


def test_a_leading_mbox_separator_by_bdat() -> None:
    sent = SEPARATOR + b"Subject: x\r\n\r\nbody\r\n"
    for at in (0, 3, 5, 6, 40):
        session = Session(PLAIN)
        session.send(TO_DATA[:-6], b"BDAT %d\r\n" % at + sent[:at])
        session.send(b"BDAT %d LAST\r\n" % (len(sent) - at) + sent[at:])
        assert session.messages == [b"X-Mailbox-Line: " + sent + b".\r\n"]


@pytest.mark.parametrize("sent", [b"From\r\n", b"From: a\r\n", b">From\r\n", b"Fro", b"from x\r\n"])
def test_other_first_lines_stay_as_they_are(sent: bytes) -> None:
    octets = sent.removesuffix(b"\r\n") + b"\r\n.\r\n"
    for pieces in ([octets], single(octets)):
        session = Session(PLAIN)
        session.send(TO_DATA, *pieces)
        assert session.messages == [octets]


def test_a_separator_within_a_message_is_text() -> None:
    session = Session(PLAIN)
    session.send(TO_DATA, b"A: b\r\n\r\nFrom here on\r\n.\r\n")
    assert session.messages == [b"A: b\r\n\r\nFrom here on\r\n.\r\n"]
