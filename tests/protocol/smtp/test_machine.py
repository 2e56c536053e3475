"""SMTP sessions: messages, replies, limits, the session's end."""

from __future__ import annotations

from itertools import product

import pytest

from metad.errors import Reply
from metad.protocol.lines import DISCARD_LIMIT
from metad.protocol.smtp import table as states
from metad.protocol.smtp.body import _BARE
from metad.protocol.smtp.machine import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    MailFrom,
    RcptTo,
    Smtp,
    SmtpSettings,
)
from tests.support.smtp_session import (
    EHLO,
    HOST,
    PLAIN,
    REPAIR,
    STORED,
    TLS,
    TO_DATA,
    TO_RCPT,
    Session,
    reply,
    single,
)

BODY = b"Subject: x\r\n\r\nhello\r\n.\r\n"
SHUTDOWN = Reply(421, "4.3.2", "Service shutting down")


def test_the_greeting_and_the_extensions() -> None:
    session = Session(PLAIN)
    assert session.greeting == b"220 mx.example.org ESMTP metad\r\n"
    assert session.send(EHLO).decode().split("\r\n") == [
        "250-mx.example.org",
        "250-PIPELINING",
        "250-SIZE 1000",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES",
        "250-LIMITS RCPTMAX=3",
        "250 CHUNKING",
        "",
    ]
    assert session.machine.helo == b"client.example.org"
    assert session.machine.extended


def test_a_message_is_one_chunk_and_its_counts() -> None:
    session = Session()
    session.send(TO_DATA)
    assert session.octets.endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n")
    assert reply(session.send(BODY)) == b"250 2.0.0 Ok: stored"
    assert session.events == [
        MailFrom("a@example.org", None, False),
        RcptTo("b@example.org"),
        BodyChunk(BODY),
        EndOfMessage(len(BODY) - 3, 0, True, 0),
    ]
    assert not session.machine.in_transaction


def test_a_message_that_lies_whole_in_the_input_is_not_cut_or_copied() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_DATA)
    while (event := machine.next_event()) is not None:
        assert isinstance(event, MailFrom | RcptTo)
        machine.answer(None)
    machine.receive(BODY)
    event = machine.next_event()
    assert isinstance(event, EndOfMessage)
    assert event.rest is BODY
    assert machine.next_event() is None
    assert machine._due is not None


@pytest.mark.parametrize(
    ("body", "octets", "dots", "header", "received"),
    [
        (b".\r\n", 0, 0, False, 0),
        (b"\r\n.\r\n", 2, 0, True, 0),
        (b"..\r\n.\r\n", 3, 1, False, 0),
        (b"A: b\r\n\r\n..\r\n..x\r\n.\r\n", 15, 2, True, 0),
        (b"A: b\r\n..x\r\n...\r\n..y\r\n.\r\n", 18, 3, True, 0),
        (b"Received: a\r\nReceived: b\r\n\r\nReceived: c\r\n.\r\n", 41, 0, True, 2),
        (b"no header\r\n.\r\n", 11, 0, False, 0),
        (b"A: \xc3\xa9\xff\r\n.\r\n", 8, 0, True, 0),
    ],
)
def test_counts_of_a_message_at_every_cut(
    body: bytes, octets: int, dots: int, header: bool, received: int
) -> None:
    for pieces in ([body], single(body), *([body[:i], body[i:]] for i in range(len(body)))):
        session = Session()
        session.send(TO_DATA, *pieces)
        assert session.events[2:] == [BodyChunk(body), EndOfMessage(octets, dots, header, received)]


def test_a_large_message_streams_and_little_is_held_back() -> None:
    session = Session(SmtpSettings(HOST, 1_000_000, 3))
    session.send(TO_DATA)
    sent = 0
    for _ in range(100):
        piece = b"x" * 98 + b"\r\n"
        session.send(piece)
        sent += len(piece)
        assert sum(map(len, session.chunks)) >= sent - 4
    session.send(b".\r\n")
    assert session.messages == [(b"x" * 98 + b"\r\n") * 100 + b".\r\n"]


def test_commands_behind_a_message_wait_for_its_verdict() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_DATA + BODY + b"NOOP\r\n")
    events = []
    while (event := machine.next_event()) is not None:
        events.append(event)
        if isinstance(event, MailFrom | RcptTo):
            machine.answer(None)
    assert isinstance(events[-1], EndOfMessage)
    machine.take_output()
    machine.receive(b"VRFY x\r\n")
    machine.receive(b"QUIT\r\n")
    assert machine.next_event() is None
    assert machine.take_output() == b""
    assert machine.buffered == len(b"NOOP\r\nVRFY x\r\nQUIT\r\n")
    machine.answer(STORED)
    assert machine.next_event() is None
    codes = [line[:3] for line in machine.take_output().split(b"\r\n")]
    assert codes == [b"250", b"250", b"252", b"221", b""]
    assert machine.closed


def test_the_replies_of_a_pipelined_group_leave_together() -> None:
    session = Session()
    session.send(EHLO)
    octets = session.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<no@b>\r\nRCPT TO:<c@b>\r\nDATA\r\n")
    assert [line[:3] for line in octets.split(b"\r\n")] == [b"250", b"550", b"250", b"354", b""]


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (b"a\nb\r\n.\r\n", b"<LF>"),
        (b"a\rb\r\n.\r\n", b"<CR>"),
        (b"a\r\r\n.\r\n", b"<CR>"),
        (b"a\0b\r\n.\r\n", b"<NUL>"),
        (b"a\0b\rc\nd\r\n.\r\n", b"<LF>"),
        (b"a\n.\nb\r\n.\r\n", b"<LF>"),
        (b"\n.\r\n\r\n.\r\n", b"<LF>"),
    ],
)
def test_a_bare_line_end_or_nul_is_refused_after_the_true_end(bad: bytes, name: bytes) -> None:
    for pieces in ([bad], single(bad), *([bad[:i], bad[i:]] for i in range(len(bad)))):
        session = Session()
        session.send(TO_DATA)
        assert session.send(*pieces[:-1]) == b""
        answer = reply(session.send(pieces[-1]))
        assert answer.startswith(b"550 5.5.2 bare %b received" % name)
        assert session.events[2:] == [Aborted(_BARE[name.decode()])]
        assert session.codes[-1] == 550
        assert reply(session.send(b"NOOP\r\n")) == b"250 2.0.0 Ok"
        assert not session.machine.in_transaction


@pytest.mark.parametrize(
    ("sent", "stored", "dots"),
    [
        (b"A: b\nc\rd\r\n.\r\n", b"A: b\r\nc\r\nd\r\n.\r\n", 0),
        (b"a\n.\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n.\r\n", 1),
        (b"a\r\n.\rb\r\n.\r\n", b"a\r\n..\r\nb\r\n.\r\n", 1),
        (b"\n.\r\n\r\n.\r\n", b"\r\n..\r\n\r\n.\r\n", 1),
        (b".\r\n", b".\r\n", 0),
        (b"a\r\n.\r\n", b"a\r\n.\r\n", 0),
        (b"a\r\r\n.\r\n", b"a\r\n\r\n.\r\n", 0),
        (b"..\n.\r\n", b"..\r\n.\r\n", None),
    ],
)
def test_repair_makes_line_ends_and_no_end_of_message(
    sent: bytes, stored: bytes, dots: int | None
) -> None:
    if dots is None:  # the dot line follows a bare LF: it is not an end, so a real one is needed
        sent, stored, dots = sent + b"\r\n.\r\n", b"..\r\n..\r\n\r\n.\r\n", 2
    for pieces in ([sent], single(sent), *([sent[:i], sent[i:]] for i in range(len(sent)))):
        session = Session(REPAIR)
        session.send(TO_DATA, *pieces)
        assert session.messages == [stored]
        end = session.events[-1]
        assert isinstance(end, EndOfMessage)
        assert (end.octets, end.stuffed_dots) == (len(stored) - 3 - dots, dots)


def test_a_nul_cannot_be_repaired() -> None:
    session = Session(REPAIR)
    assert session.send(TO_DATA, b"a\0\n\r\n.\r\n").endswith(b"550 5.5.2 bare <NUL> received\r\n")


@pytest.mark.slow
def test_the_size_limit_is_exact_and_counts_no_stuffing() -> None:
    for size, first in product((999, 1000, 1001), (b"..\r\n", b"A\r\n..\r\n")):
        code = 250 if size <= 1000 else 552
        body = first + b"x" * (size - len(first) - 1) + b"\r\n.\r\n"
        for pieces in ([body], single(body), [body[:-3], body[-3:]], [body[:500], body[500:]]):
            session = Session()
            session.send(TO_DATA, *pieces)
            assert session.codes[-1] == code
    assert session.octets.endswith(b"552 5.3.4 Message size exceeds fixed limit\r\n")
    assert session.events[2:] == [Aborted(states.TOO_LARGE)]
    assert reply(session.send(b"NOOP\r\n")) == b"250 2.0.0 Ok"


def test_no_more_is_given_out_of_a_message_once_it_is_too_large() -> None:
    session = Session()
    session.send(TO_DATA, *[b"x" * 500] * 10)
    assert sum(map(len, session.chunks)) <= 1003


def test_an_announced_size_over_the_limit_is_refused_at_mail() -> None:
    session = Session()
    session.send(EHLO)
    answer = reply(session.send(b"MAIL FROM:<a@b> SIZE=1001\r\n"))
    assert answer == b"552 5.3.4 Message size exceeds fixed limit"
    assert reply(session.send(b"MAIL FROM:<a@b> SIZE=1000\r\n")) == b"250 2.1.0 Ok"
    assert session.events == [MailFrom("a@b", 1000, False)]


def test_no_more_recipients_than_the_limit_and_the_refused_do_not_count() -> None:
    session = Session()
    session.send(TO_RCPT, b"RCPT TO:<no@b>\r\n", b"RCPT TO:<c@b>\r\n", b"RCPT TO:<d@b>\r\n")
    assert session.machine.accepted == 3
    answer = reply(session.send(b"RCPT TO:<e@b>\r\n"))
    assert answer == b"452 4.5.3 Error: too many recipients"
    assert RcptTo("e@b") not in session.events
    session.send(b"DATA\r\n", BODY, b"MAIL FROM:<a@b>\r\n")
    assert reply(session.send(b"RCPT TO:<e@b>\r\n")) == b"250 2.1.5 Ok"


def test_utf8_addresses_need_smtputf8() -> None:
    session = Session()
    session.send(EHLO)
    mail = "MAIL FROM:<ü@b> SMTPUTF8\r\n".encode()
    rcpt = "RCPT TO:<ö@b>\r\n".encode()
    assert reply(session.send(b"MAIL FROM:<a@b>\r\n")) == b"250 2.1.0 Ok"
    assert reply(session.send(rcpt)) == b"553 5.6.7 Address requires SMTPUTF8"
    session.send(b"RSET\r\n", mail)
    assert session.machine.with_protocol == "UTF8SMTP"
    assert reply(session.send(rcpt)) == b"250 2.1.5 Ok"
    assert session.events[1:] == [MailFrom("ü@b", None, True), RcptTo("ö@b")]
    session.send(b"RSET\r\n")
    assert session.machine.with_protocol == "ESMTP"


def test_the_protocol_has_the_name_that_received_wants() -> None:
    session = Session()
    session.send(b"HELO c\r\n")
    assert session.machine.with_protocol == "SMTP"
    assert not session.machine.extended
    secure = Session(TLS, tls=True)
    secure.send(EHLO)
    assert secure.machine.with_protocol == "ESMTPS"


def test_command_lines_with_a_bare_line_end_or_nul_are_refused_and_not_executed() -> None:
    for line in (b"NOOP\nQUIT\r\n", b"NOOP\rQUIT\r\n", b"NOOP\0\r\n", b"\rNOOP\r\n"):
        session = Session()
        assert reply(session.send(line)).startswith(b"500 5.5.2 Error: bare")
        assert reply(session.send(b"NOOP\r\n")) == b"250 2.0.0 Ok"


def test_a_client_that_ends_lines_with_lf_is_told_at_once() -> None:
    session = Session()
    assert reply(session.send(b"EHLO c\n")).startswith(b"500 5.5.2 Error: bare")
    assert session.send(b"MAIL FROM:<a@b>\n") == b""
    assert session.machine.helo == b""


def test_command_lines_may_have_2048_bytes() -> None:
    session = Session()
    assert reply(session.send(b"NOOP " + b"x" * 2041 + b"\r\n")) == b"250 2.0.0 Ok"
    answer = reply(session.send(b"NOOP " + b"x" * 2042 + b"\r\n"))
    assert answer == b"500 5.5.2 Error: line too long"
    assert reply(session.send(b"NOOP\r\n")) == b"250 2.0.0 Ok"


def test_a_line_without_end_ends_the_session() -> None:
    session = Session()
    octets = session.send(*[b"x" * 1000] * (DISCARD_LIMIT // 1000 + 1))
    assert octets.split(b"\r\n")[:2] == [
        b"500 5.5.2 Error: line too long",
        b"421 4.7.0 Error: line does not end",
    ]
    assert session.machine.closed
    assert session.machine.buffered == 0


def test_too_many_errors_end_the_session_and_refusals_are_none() -> None:
    session = Session(SmtpSettings(HOST, 1000, 3, errors=3))
    session.send(EHLO, b"MAIL FROM:<a@b>\r\n", *[b"RCPT TO:<no@b>\r\n"] * 10)
    session.send(b"RCPT TO:<c@b> X=1\r\n", b"MAIL FROM:<a@b> SIZE=9999\r\n")  # 555, 503
    session.send(b"RSET x\r\n")  # 501
    assert not session.machine.closed
    assert session.send(b"WHAT\r\nNOOP\r\n").split(b"\r\n") == [
        b"500 5.5.2 Error: command not recognized",
        b"421 4.7.0 Error: too many errors",
        b"",
    ]
    assert session.machine.closed


def test_bytes_before_the_greeting_are_early_talk() -> None:
    machine = Smtp(PLAIN)
    machine.receive(b"EHLO c\r\n")
    machine.start()
    assert machine.take_output() == b"554 5.5.0 Error: you sent data before the greeting\r\n"
    assert machine.closed
    assert machine.next_event() is None


def test_queued_replies_are_bounded_and_the_rest_waits() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.take_output()
    machine.receive(b"NOOP\r\n" * (states.REPLY_LIMIT + 2))
    assert machine.next_event() is None
    assert machine.full
    machine.eof()
    assert machine.next_event() is None
    assert not machine.closed
    assert machine.take_output().count(b"\r\n") == states.REPLY_LIMIT
    assert machine.next_event() is None
    assert machine.take_output().count(b"\r\n") == 2
    assert machine.closed


def test_rset_and_ehlo_forget_the_transaction() -> None:
    for command in (b"RSET\r\n", EHLO):
        session = Session()
        session.send(TO_RCPT, command)
        assert session.machine.accepted == 0
        assert reply(session.send(b"RCPT TO:<c@b>\r\n")) == b"503 5.5.1 Error: need MAIL command"
        assert not any(isinstance(event, Aborted) for event in session.events)


# -- answers ----------------------------------------------------------------------------------
