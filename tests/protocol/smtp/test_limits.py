"""SMTP's limits on clients that do not send mail, and the worker's queries to the machine."""

from __future__ import annotations

import pytest

from metad import limits
from metad.protocol.smtp.machine import Smtp, SmtpSettings
from tests.support.smtp_session import (
    EHLO,
    HOST,
    LMTP,
    PLAIN,
    STORED,
    TO_DATA,
    TO_RCPT,
    Session,
    single,
)

IDLE = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=5)
IDLE_LMTP = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=5, lmtp=True)
TOO_MANY = b"421 4.7.0 Error: too many commands without mail\r\n"


@pytest.mark.parametrize(
    "command", [b"NOOP", b"RSET", b"VRFY x", b"HELP", b"EHLO c", b"HELO c"], ids=str
)
def test_commands_that_lead_to_no_message_are_counted(command: bytes) -> None:
    session = Session(IDLE)
    for _ in range(5):
        session.send(command + b"\r\n")
        assert not session.machine.closed
    assert session.send(command + b"\r\n") == TOO_MANY
    assert session.machine.closed
    assert session.machine.abrupt


def test_refused_recipients_are_counted_but_not_for_lmtp() -> None:
    """LMTP's client is an MTA that got these recipients from another server."""
    session = Session(IDLE)
    session.send(EHLO + b"MAIL FROM:<a@example.org>\r\n")
    answers = session.send(b"RCPT TO:<nobody@example.org>\r\n" * 5)
    assert answers.count(b"550") == 5
    assert answers.endswith(TOO_MANY)
    assert session.machine.closed
    other = Session(IDLE_LMTP)
    other.send(b"LHLO c\r\nMAIL FROM:<a@example.org>\r\n")
    assert other.send(b"RCPT TO:<nobody@example.org>\r\n" * 50).count(b"550") == 50


@pytest.mark.parametrize("message", [b"DATA\r\nA: b\r\n\r\n.\r\n", b"BDAT 6 LAST\r\nA: b\r\n"])
def test_a_message_resets_the_count(message: bytes) -> None:
    session = Session(IDLE)
    for _ in range(20):
        session.send(b"EHLO c\r\nNOOP\r\nMAIL FROM:<a@example.org>\r\n")
        assert session.send(b"RCPT TO:<b@example.org>\r\n" + message).endswith(STORED.wire)
    assert len(session.messages) == 20


def test_a_refused_message_counts_itself() -> None:
    session = Session(IDLE)
    bad = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nx\ny\r\n.\r\nRSET\r\n"
    session.send(EHLO + bad * 2)
    assert not session.machine.closed
    assert session.send(b"RSET\r\n") == TOO_MANY


def test_a_count_that_is_full_within_a_message_aborts_it() -> None:
    session = Session(IDLE)
    session.send(TO_RCPT + b"BDAT 3\r\nA: " + b"NOOP\r\n" * 5)
    assert session.machine.closed
    assert [type(event).__name__ for event in session.events][-1] == "Aborted"


def test_the_command_line_is_as_long_as_the_setting_says() -> None:
    session = Session(SmtpSettings(HOST, 1000, 3, command_line=1024))
    assert session.send(b"NOOP " + b"x" * 1017 + b"\r\n").startswith(b"250")
    assert session.send(b"NOOP " + b"x" * 1018 + b"\r\n").startswith(b"500")


def test_half_a_command_is_no_progress_and_a_byte_of_a_message_is() -> None:
    session = Session(PLAIN)
    session.send(EHLO)
    before = session.machine.progress
    session.send(*single(b"NOO"))
    assert session.machine.progress == before
    session.send(b"P\r\n")
    assert session.machine.progress != before
    session.send(TO_DATA)
    for piece in single(b"Subject: x\r\n"):
        before = session.machine.progress
        session.send(piece)
        assert session.machine.progress != before


@pytest.mark.parametrize("chunk", [b"BDAT 20\r\n", b"BDAT 5000\r\n"])
def test_a_byte_of_a_chunk_is_progress_taken_or_skipped(chunk: bytes) -> None:
    session = Session(PLAIN)
    session.send(TO_RCPT + chunk)
    for piece in single(b"Subject: x\r\n"):
        before = session.machine.progress
        session.send(piece)
        assert session.machine.progress != before


def test_transactions_are_numbered() -> None:
    session = Session(PLAIN)
    session.send(EHLO)
    for number in range(1, 4):
        session.send(b"MAIL FROM:<a@example.org>\r\n")
        assert session.machine.transactions == number
        assert session.machine.message_octets == 0
        session.send(b"RSET\r\n")
    session.send(b"MAIL FROM:<bad@example.org>\r\n")
    assert session.machine.transactions == 3


@pytest.mark.parametrize(
    ("octets", "abrupt"),
    [(b"QUIT\r\n", False), (b"GET / HTTP/1.1\r\n", True), (b"BDAT x\r\n", True)],
)
def test_only_an_end_of_ours_is_abrupt(octets: bytes, abrupt: bool) -> None:
    session = Session(PLAIN)
    session.send(TO_RCPT, octets)
    assert session.machine.closed
    assert session.machine.abrupt is abrupt
    gone = Session(LMTP)
    gone.eof()
    assert gone.machine.closed
    assert not gone.machine.abrupt


def test_who_spoke_early_is_shown_out() -> None:
    machine = Smtp(PLAIN)
    machine.start(early=True)
    assert machine.take_output() == b"554 5.5.0 Error: you sent data before the greeting\r\n"
    assert machine.closed
    assert machine.abrupt


@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_a_refused_message_is_not_read_without_end(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: as long as the client sent fast enough, the session never ended."""
    monkeypatch.setattr(limits, "REFUSED_OCTETS", 5_000)
    session = Session(PLAIN)  # 1,000 octets at most
    session.send(TO_DATA)
    text = (b"x" * 78 + b"\r\n") * 70
    sent = [text[at : at + cut] for at in range(0, len(text), cut)]
    assert session.send(*sent).startswith(b"552 5.3.4")
    assert session.machine.closed
    assert session.machine.abrupt
    assert not session.messages


@pytest.mark.parametrize("before", [EHLO, TO_RCPT])
def test_a_chunk_that_cannot_be_meant_ends_the_session(before: bytes) -> None:
    """Regression: ten to the eighteenth octets were read and discarded, in or out of order."""
    session = Session(PLAIN)
    session.send(before)
    assert session.send(b"BDAT 999999999999999999\r\n").startswith(b"552 5.3.4")
    assert session.machine.closed
