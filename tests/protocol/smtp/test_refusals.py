"""Refusals: each counts, guessing is slowed down, and a refused command leaves no trace."""

from __future__ import annotations

import pytest

from metad import limits
from metad.errors import Reply
from metad.protocol.smtp import table as states
from metad.protocol.smtp.machine import KEPT, MailFrom, Smtp, SmtpSettings
from tests.support.smtp_session import EHLO, HOST, LMTP, NOBODY, PLAIN, STORED, Session, reply

MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
IDLE = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=9)
LMTP_IDLE = SmtpSettings(HOST, 1000, 3, errors=10_000, idle_commands=9, lmtp=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"MAIL FROM:<bad@example.org>\r\n", b"550"),  # such as the rate, the space, a filter
        (b"MAIL FROM:<a@example.org> SIZE=5000\r\n", b"552"),
        ("MAIL FROM:<\xfc@example.org>\r\n".encode(), b"553"),
        (b"MAIL FROM:<a@example.org> RET=HDRS\r\n", b"555"),
        (b"STARTTLS\r\n", b"502"),
    ],
)
def test_a_refusal_that_was_free_ends_the_session(command: bytes, code: bytes) -> None:
    settings = IDLE if code != b"502" else SmtpSettings(HOST, 1000, 3, errors=9)
    session = Session(settings)
    session.send(EHLO)
    refused = 0
    while not session.machine.closed:
        assert session.send(command).startswith(code)
        refused += 1
        assert refused < 20
    assert session.octets.endswith((states.TOO_MANY_IDLE.wire, states.TOO_MANY_ERRORS.wire))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"DATA\r\nx\ny\r\n.\r\n", b"550"),
        (b"DATA\r\n" + b"x" * 1001 + b"\r\n.\r\n", b"552"),
        (b"BDAT 3 LAST\r\nx\ny", b"550"),
        (b"BDAT 1001 LAST\r\n" + b"x" * 1001, b"552"),
    ],
)
def test_a_refused_message_counts(message: bytes, code: bytes) -> None:
    session = Session(IDLE)
    session.send(EHLO)
    for _ in range(8):
        assert session.send(MAIL + RCPT + message).splitlines()[-1].startswith(code)
        assert not session.machine.closed
    session.send(MAIL + RCPT + message)
    assert session.machine.closed
    assert session.octets.endswith(states.TOO_MANY_IDLE.wire)


def test_a_message_that_the_session_refuses_counts() -> None:
    machine = Smtp(IDLE)
    machine.start()
    machine.receive(EHLO)
    for _ in range(8):
        machine.receive(MAIL + RCPT + b"DATA\r\nA: b\r\n.\r\n")
        for answer in (None, None, Reply(452, "4.3.1", "no space")):
            assert machine.next_event() is not None
            machine.answer(answer)
        assert machine.next_event() is None
    assert not machine.closed
    machine.receive(MAIL)
    machine.next_event()
    machine.answer(Reply(450, "4.7.1", "too much mail"))
    assert machine.closed


def test_empty_chunks_without_end_are_commands_without_mail() -> None:
    session = Session(IDLE)
    session.send(EHLO + MAIL + RCPT)
    session.send(b"BDAT 0\r\n" * 20)
    assert session.machine.closed


def test_a_list_that_is_too_long_is_refused_in_part_and_the_rest_delivered() -> None:
    session = Session(IDLE)
    session.send(EHLO + MAIL)
    answers = session.send(RCPT * (3 + limits.RECIPIENT_OVERSHOOT))
    assert answers.count(b"452 4.5.3") == limits.RECIPIENT_OVERSHOOT
    assert session.send(b"DATA\r\nA: b\r\n.\r\n").endswith(STORED.wire)
    session.send(MAIL + RCPT * (3 + limits.RECIPIENT_OVERSHOOT))
    assert not session.machine.closed
    session.send(RCPT * 20)
    assert session.machine.closed


def test_lmtp_counts_a_message_that_no_recipient_got_and_no_other() -> None:
    machine = Smtp(LMTP_IDLE)
    machine.start()
    machine.receive(b"LHLO c\r\n")

    def deliver(*replies: Reply) -> None:
        machine.receive(MAIL + RCPT * 2 + b"DATA\r\nA: b\r\n.\r\n")
        for _ in range(3):
            assert machine.next_event() is not None
            machine.answer(None)
        assert machine.next_event() is not None
        machine.answer_each(replies)

    for _ in range(30):
        deliver(NOBODY, STORED)
    assert not machine.closed
    for _ in range(10):
        deliver(NOBODY, NOBODY)
    assert machine.closed


def test_lmtp_data_after_refused_recipients_only_is_503() -> None:
    """It was 554; RFC 2033 section 4.2 has 503 for it."""
    session = Session(LMTP)
    session.send(b"LHLO c\r\n" + MAIL + b"RCPT TO:<nobody@example.org>\r\n")
    for command in (b"DATA\r\n", b"BDAT 3\r\nabc"):
        assert reply(session.send(command)) == b"503 5.5.1 Error: no valid recipients"


def test_smtputf8_of_a_refused_mail_does_not_outlive_it() -> None:
    """Regression: the next message was traced as UTF8SMTP, and its recipients could be UTF-8."""
    session = Session(PLAIN)
    session.send(EHLO + b"MAIL FROM:<bad@example.org> SMTPUTF8\r\n")
    assert not session.machine.utf8
    session.send(MAIL)
    assert session.machine.with_protocol == "ESMTP"
    assert session.send("RCPT TO:<\xfc@example.org>\r\n".encode()).startswith(b"553 5.6.7")


def test_a_client_that_guesses_addresses_is_slowed_down() -> None:
    session = Session(PLAIN)
    session.send(EHLO + MAIL)
    delays = []
    for _ in range(60):
        session.send(b"RCPT TO:<nobody@example.org>\r\n")
        delays.append(session.machine.take_delay())
        assert session.machine.take_delay() == 0
    assert delays[:10] == [0] * 10
    assert delays[10:40:10] == [0.5, 1.0, 2.0]
    assert set(delays[40:]) == {4.0}
    assert delays == sorted(delays)
    session.send(RCPT + b"DATA\r\nA: b\r\n.\r\n" + MAIL + b"RCPT TO:<nobody@example.org>\r\n")
    assert session.machine.take_delay() == 0


def test_lmtp_is_never_slowed_down() -> None:
    session = Session(LMTP)
    session.send(b"LHLO c\r\n" + MAIL)
    session.send(b"RCPT TO:<nobody@example.org>\r\n" * 60)
    assert session.machine.take_delay() == 0


def test_a_kept_remainder_is_copied_out_of_its_buffer() -> None:
    """Regression: 300 connections that sent a chunk and one more octet kept 163 KiB each."""
    machine = Smtp(SmtpSettings(HOST, 1_000_000, 3))
    machine.start()
    for octets in (EHLO, MAIL, RCPT):
        machine.feed(octets)
        if machine._due is not None:
            machine.answer(None)
        machine.take_output()
    machine.feed(b"BDAT 250000\r\n" + b"a" * 250_000 + b"X")
    while machine.next_event() is not None:
        pass
    assert machine.buffered == 1
    assert len(machine._lines.data) <= KEPT
    machine.take_output()
    assert machine.feed(b"YZ\r\n") is None
    assert machine.take_output().startswith(b"500 ")


def test_a_used_buffer_is_not_kept_while_the_client_is_waited_for() -> None:
    machine = Smtp(SmtpSettings(HOST, 1_000_000, 3, command_line=8192))
    machine.start()
    machine.feed(EHLO)
    machine.take_output()
    machine.feed(b"NOOP " + b"x" * 6000 + b"\r\n" + MAIL)
    assert machine.answer(None) is False
    assert machine._lines.data == b""


def test_a_client_that_does_not_read_keeps_only_what_is_not_processed() -> None:
    machine = Smtp(SmtpSettings(HOST, 1_000_000, 3, idle_commands=100_000))
    machine.start()
    machine.receive(b"NOOP\r\n" * (states.REPLY_LIMIT + 10))
    assert machine.next_event() is None
    assert machine.full
    assert len(machine._lines.data) == machine.buffered
    machine.take_output()
    assert machine.next_event() is None
    assert machine.take_output().count(b"250 ") == 11


def test_a_strict_listener_refuses_what_others_forgive() -> None:
    strict, other = Session(SmtpSettings(HOST, 1000, 3, strict=True)), Session(PLAIN)
    for command in (b"MAIL FROM:a@example.org\r\n", b"MAIL FROM: <a@example.org>\r\n"):
        assert strict.send(EHLO + command).endswith(b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n")
        assert other.send(EHLO + command).endswith(b"250 2.1.0 Ok\r\n")
    assert other.events[-1] == MailFrom("a@example.org", None, False)
    assert strict.send(MAIL) == b"250 2.1.0 Ok\r\n"
