"""SMTP sessions: answers, failures, the end of input, STARTTLS."""

from __future__ import annotations

import pytest

from metad.errors import Reply
from metad.protocol.smtp.machine import (
    Aborted,
    EndOfMessage,
    MailFrom,
    Smtp,
    StartTls,
)
from tests.support.smtp_session import (
    EHLO,
    NOBODY,
    PLAIN,
    STORED,
    TLS,
    TO_DATA,
    Session,
    reply,
    run,
)

BODY = b"Subject: x\r\n\r\nhello\r\n.\r\n"
SHUTDOWN = Reply(421, "4.3.2", "Service shutting down")


def test_a_positive_answer_in_other_words_is_sent_as_it_is() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(EHLO + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@b>\r\n")
    machine.next_event()
    machine.take_output()
    machine.answer(Reply(250, "2.1.0", "Fine"))
    machine.next_event()
    machine.answer(Reply(251, "2.1.5", "Fine too"))
    assert machine.take_output() == b"250 2.1.0 Fine\r\n251 2.1.5 Fine too\r\n"
    assert machine.accepted == 1


def test_an_answer_without_a_question_is_a_bug() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    with pytest.raises(RuntimeError):
        machine.answer(None)
    with pytest.raises(RuntimeError):
        machine.answer_each([])
    with pytest.raises(RuntimeError):
        machine.tls_started()


def test_the_end_of_a_message_needs_a_reply() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_DATA + BODY)
    while not isinstance(event := machine.next_event(), EndOfMessage):
        assert event is not None
        machine.answer(None)
    with pytest.raises(RuntimeError):
        machine.answer(None)
    machine.answer(STORED)
    assert machine.take_output().endswith(STORED.wire)


def test_an_answer_of_421_ends_the_session() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(EHLO + b"MAIL FROM:<a@b>\r\nNOOP\r\n")
    assert isinstance(machine.next_event(), MailFrom)
    machine.answer(SHUTDOWN)
    assert machine.closed
    assert machine.take_output().endswith(SHUTDOWN.wire)
    assert machine.next_event() is None


# -- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [b"", b"Subject", b"Subject: x\r\n.", b"a\nb"])
def test_a_message_is_aborted_if_the_connection_ends_within(started: bytes) -> None:
    session = Session()
    session.send(TO_DATA, started)
    session.eof()
    assert session.events[2:] == [Aborted(None)]
    assert session.machine.closed
    session.send(b".\r\nNOOP\r\n")
    assert session.events[2:] == [Aborted(None)]


def test_whole_commands_before_the_end_of_input_are_answered() -> None:
    events, octets, closed = run(PLAIN, TO_DATA + BODY + b"NOOP\r\nVRF")
    assert isinstance(events[-1], EndOfMessage)
    assert octets.endswith(STORED.wire + b"250 2.0.0 Ok\r\n")
    assert closed


def test_the_end_of_input_while_an_answer_is_due_leaves_the_message_alone() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_DATA + BODY)
    while not isinstance(machine.next_event(), EndOfMessage):
        machine.answer(None)
    machine.eof()
    assert machine.next_event() is None
    assert not machine.closed
    machine.answer(STORED)
    assert machine.next_event() is None
    assert machine.closed


def test_a_session_that_fails_says_so_and_is_closed() -> None:
    session = Session()
    session.machine.fail(SHUTDOWN)
    session.machine.fail(SHUTDOWN)
    session.pump()
    assert session.octets == SHUTDOWN.wire
    assert session.machine.closed


def test_a_session_that_fails_within_a_message_aborts_it() -> None:
    session = Session()
    session.send(TO_DATA, b"Subject")
    session.machine.fail(SHUTDOWN)
    session.pump()
    assert session.events[2:] == [Aborted(None)]
    assert session.octets.endswith(SHUTDOWN.wire)


def test_a_session_that_fails_answers_the_message_first() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_DATA + BODY + b"NOOP\r\n")
    while not isinstance(machine.next_event(), EndOfMessage):
        machine.answer(None)
    machine.take_output()
    machine.fail(SHUTDOWN)
    assert not machine.closed
    assert machine.take_output() == b""
    machine.answer(STORED)
    assert machine.take_output() == STORED.wire + SHUTDOWN.wire
    assert machine.closed
    assert machine.next_event() is None


# -- STARTTLS ---------------------------------------------------------------------------------


def test_tls_resets_the_session() -> None:
    session = Session(TLS)
    assert b"250-STARTTLS\r\n" in session.send(EHLO)
    assert reply(session.send(b"STARTTLS\r\n")) == b"220 2.0.0 Ready to start TLS"
    assert isinstance(session.events[-1], StartTls)
    machine = session.machine
    assert (machine.helo, machine.extended, machine.tls) == (b"", False, True)
    answer = reply(session.send(b"MAIL FROM:<a@b>\r\n"))
    assert answer == b"503 5.5.1 Error: send HELO/EHLO first"
    assert b"STARTTLS" not in session.send(EHLO)
    assert reply(session.send(b"STARTTLS\r\n")) == b"554 5.5.1 Error: TLS already active"
    assert machine.with_protocol == "ESMTPS"


def test_starttls_has_its_place() -> None:
    session = Session(TLS)
    answer = reply(session.send(b"STARTTLS\r\n"))
    assert answer == b"503 5.5.1 Error: send HELO/EHLO first"
    session.send(EHLO)
    assert reply(session.send(b"STARTTLS x\r\n")) == b"501 5.5.4 Syntax: STARTTLS"
    session.send(b"MAIL FROM:<a@b>\r\n")
    answer = reply(session.send(b"STARTTLS\r\n"))
    assert answer == b"503 5.5.1 Error: MAIL transaction in progress"


@pytest.mark.parametrize("pieces", [[b"STARTTLS\r\nMAIL FROM:<a@b>\r\n"], [b"STARTTLS\r\nM"]])
def test_bytes_right_behind_starttls_end_the_session(pieces: list[bytes]) -> None:
    session = Session(TLS)
    session.send(EHLO)
    answer = reply(session.send(*pieces))
    assert answer == b"554 5.5.0 Error: data before the TLS handshake"
    assert session.machine.closed
    assert session.events == []


def test_bytes_in_the_clear_before_the_handshake_end_the_session() -> None:
    machine = Smtp(TLS)
    machine.start()
    machine.receive(EHLO + b"STARTTLS\r\n")
    assert isinstance(machine.next_event(), StartTls)
    machine.take_output()
    machine.receive(b"MAIL FROM:<a@b>\r\n")
    assert machine.closed
    assert machine.take_output() == b"554 5.5.0 Error: data before the TLS handshake\r\n"
    assert machine.next_event() is None


def test_a_session_that_fails_instead_of_the_handshake_is_closed() -> None:
    machine = Smtp(TLS)
    machine.start()
    machine.receive(EHLO + b"STARTTLS\r\n")
    assert isinstance(machine.next_event(), StartTls)
    machine.fail(NOBODY)
    assert machine.closed
