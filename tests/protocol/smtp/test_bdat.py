"""CHUNKING (RFC 3030) and LMTP (RFC 2033)."""

from __future__ import annotations

import pytest

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
from metad.protocol.smtp.table import TOO_LARGE
from tests.support.smtp_session import (
    EHLO,
    HOST,
    LMTP,
    NOBODY,
    PLAIN,
    REPAIR,
    STORED,
    TO_RCPT,
    Session,
    reply,
    single,
)

RAW = b"A: b\r\n\r\n.x\r\n..\r\n\r\n.y"
STUFFED = b"A: b\r\n\r\n..x\r\n...\r\n\r\n..y\r\n.\r\n"


def chunk(octets: bytes, last: bool = False) -> bytes:
    return b"BDAT %d%b\r\n" % (len(octets), b" LAST" if last else b"") + octets


def deliver(session: Session, *pieces: bytes) -> list[int]:
    session.send(TO_RCPT)
    before = len(session.codes)
    session.send(*pieces)
    return session.codes[before:]


def test_one_chunk_is_stuffed_and_given_its_line_end() -> None:
    session = Session()
    assert deliver(session, chunk(RAW, last=True)) == [250]
    assert session.events[2:] == [
        BodyChunk(STUFFED),
        EndOfMessage(len(RAW) + 2, 3, True, 0),
    ]


def test_a_message_whole_in_the_input_is_one_chunk() -> None:
    machine = Smtp(PLAIN)
    machine.start()
    machine.receive(TO_RCPT + chunk(RAW, last=True))
    while isinstance(event := machine.next_event(), MailFrom | RcptTo):
        machine.answer(None)
    assert isinstance(event, EndOfMessage)
    assert event.rest == STUFFED


def test_chunks_may_be_cut_anywhere() -> None:
    for at in range(len(RAW) + 1):
        session = Session()
        assert deliver(session, chunk(RAW[:at]), chunk(RAW[at:], last=True)) == [250, 250]
        assert session.messages == [STUFFED]
        assert session.events[-1] == EndOfMessage(len(RAW) + 2, 3, True, 0)
    session = Session()
    codes = deliver(session, *(chunk(octet) for octet in single(RAW)), chunk(b"", last=True))
    assert codes == [250] * (len(RAW) + 1)
    assert session.messages == [STUFFED]


def test_chunks_may_come_byte_by_byte() -> None:
    session = Session()
    assert deliver(session, *single(chunk(RAW[:9]) + chunk(RAW[9:], last=True))) == [250, 250]
    assert session.messages == [STUFFED]


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
    ],
)
def test_a_line_end_is_added_only_where_it_is_missing(raw: bytes, stored: bytes) -> None:
    for at in range(len(raw) + 1):
        session = Session()
        assert deliver(session, chunk(raw[:at]), chunk(raw[at:], last=True)) == [250, 250]
        assert session.messages == [stored]
        dots = stored.startswith(b"..") or b"\n.." in stored
        end = session.events[-1]
        assert end == EndOfMessage(len(stored) - 3 - dots, dots, raw.startswith(b"\r"), 0)


@pytest.mark.parametrize(
    ("chunks", "codes", "name"),
    [
        ([b"a\nb"], [550], "<LF>"),
        ([b"a\rb"], [550], "<CR>"),
        ([b"a\r"], [550], "<CR>"),
        ([b"a\0"], [550], "<NUL>"),
        ([b"a\r", b"\nb"], [250, 250], None),
        ([b"a\r", b"b"], [250, 550], "<CR>"),
        ([b"a\r", b""], [250, 550], "<CR>"),
        ([b"a\nb", b"c", b"d"], [550, 503, 503], "<LF>"),
    ],
)
def test_bare_line_ends_are_refused_at_the_last_byte_of_the_chunk(
    chunks: list[bytes], codes: list[int], name: str | None
) -> None:
    wire = b"".join(chunk(octets, last=octets is chunks[-1]) for octets in chunks)
    for pieces in ([wire], single(wire)):
        session = Session()
        assert deliver(session, *pieces) == codes
        if name is not None:
            refusal = Aborted(_BARE[name])
            assert session.events[2:] == [refusal]
        assert reply(session.send(b"NOOP\r\n")) == b"250 2.0.0 Ok"


def test_repair_makes_line_ends_in_chunks() -> None:
    raw = b"a\nb\rc\r\n.\n.d\r"
    stored = b"a\r\nb\r\nc\r\n..\r\n..d\r\n.\r\n"
    for at in range(len(raw) + 1):
        session = Session(REPAIR)
        assert deliver(session, chunk(raw[:at]), chunk(raw[at:], last=True)) == [250, 250]
        assert session.messages == [stored]


def test_a_chunk_over_the_limit_is_read_and_then_refused() -> None:
    big = b"NOOP\r\n" * 167
    for pieces in ([chunk(big, last=True)], single(chunk(big, last=True))):
        session = Session()
        assert deliver(session, *pieces) == [552]
        assert session.events[2:] == [Aborted(TOO_LARGE)]
        assert not session.machine.in_transaction


def test_the_limit_is_on_all_chunks_together() -> None:
    session = Session()
    codes = deliver(session, chunk(b"x" * 600), chunk(b"y" * 400), chunk(b"z"), chunk(b"", True))
    assert codes == [250, 250, 552, 503]
    assert session.events[2:] == [Aborted(TOO_LARGE)]
    session = Session()
    assert deliver(session, chunk(b"x" * 600), chunk(b"y" * 400, last=True)) == [250, 250]


def test_a_chunk_after_only_failed_recipients_is_read_and_refused() -> None:
    session = Session()
    session.send(EHLO, b"MAIL FROM:<a@b>\r\n")
    octets = session.send(b"RCPT TO:<no@b>\r\n" + chunk(b"QUIT\r\n") + chunk(b"RSET\r\n", True))
    assert [line[:3] for line in octets.split(b"\r\n")] == [b"550", b"554", b"554", b""]
    assert not session.machine.closed
    assert session.machine.in_transaction


def test_a_chunk_without_a_transaction_is_read_and_refused() -> None:
    session = Session()
    assert reply(session.send(*single(chunk(b"QUIT\r\n")))).startswith(b"503 5.5.1")
    session.send(EHLO)
    answer = reply(session.send(chunk(b"QUIT\r\n", last=True)))
    assert answer == b"503 5.5.1 Error: need RCPT command"
    assert not session.machine.closed


@pytest.mark.parametrize("command", [b"BDAT LAST", b"BDAT +1", b"BDAT 1 FIRST", b"BDAT -1"])
@pytest.mark.parametrize("before", [EHLO, TO_RCPT, TO_RCPT + b"BDAT 1\r\nx"])
def test_a_chunk_of_unknown_length_ends_the_session(before: bytes, command: bytes) -> None:
    session = Session()
    session.send(before)
    answer = reply(session.send(command + b"\r\nMAIL FROM:<x@y>\r\n"))
    assert answer == b"501 5.5.4 Syntax: BDAT count [LAST]"
    assert session.machine.closed
    assert MailFrom("x@y", None, False) not in session.events
    assert (Aborted(None) in session.events) is (b"BDAT" in before)


@pytest.mark.parametrize("end", [b"RSET\r\n", EHLO, b"HELO c\r\n", b"QUIT\r\n"])
def test_a_message_given_up_between_chunks_is_aborted(end: bytes) -> None:
    session = Session()
    deliver(session, chunk(b"A: b\r\n"), end)
    assert session.events[2:] == [Aborted(None)]


@pytest.mark.parametrize("pieces", [[chunk(b"x")], [b"BDAT 10\r\nx"], [b"BDAT 2000\r\nx"]])
def test_a_message_is_aborted_if_the_connection_ends_in_a_chunk(pieces: list[bytes]) -> None:
    session = Session()
    deliver(session, *pieces)
    session.eof()
    assert session.events[2:] == [Aborted(None)]
    assert session.machine.closed


def test_too_many_errors_between_chunks_abort_the_message() -> None:
    session = Session(SmtpSettings(HOST, 1000, 3, errors=2))
    deliver(session, chunk(b"x"), b"DATA\r\n", b"DATA\r\n")
    assert session.events[2:] == [Aborted(None)]
    assert session.codes[-2:] == [503, 421]


def test_chunks_mix_with_pipelining() -> None:
    session = Session()
    session.send(EHLO)
    one = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n" + chunk(b"A: b\r\n") + chunk(b"\r\nx\r\n", True)
    octets = session.send(one * 3 + b"QUIT\r\n")
    codes = [line[:3] for line in octets.split(b"\r\n")]
    assert codes == [b"250"] * 12 + [b"221", b""]
    assert session.messages == [b"A: b\r\n\r\nx\r\n.\r\n"] * 3


# -- LMTP -------------------------------------------------------------------------------------

# Two recipients are accepted, and they are the same.
TO_LMTP = b"LHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<no@d>\r\nRCPT TO:<c@d>\r\n"
BODY = b"A: b\r\n.\r\n"


def lmtp_at_end(tail: bytes) -> Smtp:
    machine = Smtp(LMTP)
    machine.start()
    machine.receive(TO_LMTP + tail)
    while not isinstance(event := machine.next_event(), EndOfMessage):
        if isinstance(event, RcptTo) and event.address.startswith("no"):
            machine.answer(NOBODY)
        else:
            machine.answer(None)
    machine.take_output()
    return machine


@pytest.mark.parametrize("tail", [b"DATA\r\n" + BODY, chunk(b"A: b\r\n", last=True)])
def test_lmtp_has_a_verdict_for_each_accepted_recipient(tail: bytes) -> None:
    machine = lmtp_at_end(tail)
    machine.answer_each([STORED, NOBODY])
    assert machine.take_output() == STORED.wire + NOBODY.wire
    assert not machine.in_transaction


def test_lmtp_says_one_verdict_for_each_recipient() -> None:
    machine = lmtp_at_end(b"DATA\r\n" + BODY)
    machine.answer(STORED)
    assert machine.take_output() == STORED.wire * 2


def test_lmtp_wants_as_many_verdicts_as_recipients() -> None:
    machine = lmtp_at_end(b"DATA\r\n" + BODY)
    with pytest.raises(RuntimeError):
        machine.answer_each([STORED])


@pytest.mark.parametrize(
    ("tail", "codes"),
    [
        (b"DATA\r\na\nb\r\n.\r\n", [354, 550, 550]),
        (b"DATA\r\n" + b"x" * 1001 + b"\r\n.\r\n", [354, 552, 552]),
        (chunk(b"a\nb", last=True), [550, 550]),
        (chunk(b"a\nb"), [550]),
        (chunk(b"x" * 1001, last=True), [552, 552]),
        (chunk(b"x" * 1001), [552]),
        (chunk(b"x") + chunk(b"y\n", last=True), [250, 550, 550]),
    ],
)
def test_lmtp_refuses_a_message_for_each_recipient_and_a_chunk_once(
    tail: bytes, codes: list[int]
) -> None:
    session = Session(LMTP)
    session.send(TO_LMTP)
    before = len(session.codes)
    session.send(tail)
    assert session.codes[before:] == codes


def test_lmtp_names() -> None:
    session = Session(LMTP)
    session.send(b"LHLO c\r\n")
    assert session.machine.with_protocol == "LMTP"
    session.send(b"MAIL FROM:<a@b> SMTPUTF8\r\n")
    assert session.machine.with_protocol == "UTF8LMTP"
