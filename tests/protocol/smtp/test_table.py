"""Every (state, verb) of the SMTP machine, with a valid and an invalid argument."""

from __future__ import annotations

import pytest

from metad.protocol.smtp import table as states
from metad.protocol.smtp.settings import SmtpSettings
from tests.support.smtp_session import LMTP, PLAIN, TLS, TO_RCPT, Session, reply

EHLO = b"EHLO client.example.org\r\n"
MAIL = b"MAIL FROM:<a@example.org>\r\n"
TO_STATE = {
    "START": b"",
    "IDLE": EHLO,
    "MAIL": EHLO + MAIL,
    "REFUSED": EHLO + MAIL + b"RCPT TO:<nobody@example.org>\r\n",
    "RCPT": TO_RCPT,
    "CHUNKS": TO_RCPT + b"BDAT 3\r\nA: ",
}
ALL = list(TO_STATE)
OUTSIDE = ["START", "IDLE"]
BEGUN = ["MAIL", "REFUSED", "RCPT", "CHUNKS"]

HELLO = b"503 5.5.1 Error: send HELO/EHLO first"
NEED_MAIL = b"503 5.5.1 Error: need MAIL command"
NEED_RCPT = b"503 5.5.1 Error: need RCPT command"
NESTED = b"503 5.5.1 Error: nested MAIL command"
NOBODY = b"554 5.5.1 Error: no valid recipients"
BY_BDAT = b"503 5.5.1 Error: the message is being sent by BDAT"
ABSENT = b"502 5.5.1 Error: command not implemented"
UNKNOWN = b"500 5.5.2 Error: command not recognized"
RSET_SYNTAX = b"501 5.5.4 Syntax: RSET"
GO = b"354 End data with <CR><LF>.<CR><LF>"
BAD_MAIL = b"501 5.5.4 Syntax: MAIL FROM:<address>"
BAD_RCPT = b"501 5.5.4 Syntax: RCPT TO:<address>"
VRFY = b"252 2.0.0 Cannot VRFY user, but will accept mail for it"

# (states, command, reply, state afterwards or None for the same)
ROWS: list[tuple[list[str], bytes, bytes, str | None]] = [
    (ALL, b"HELO c", b"250 mx.example.org", "IDLE"),
    (ALL, b"HELO", b"501 Syntax: HELO hostname", None),
    (ALL, b"EHLO", b"501 Syntax: EHLO hostname", None),
    (ALL, b"EHLO  ", b"501 Syntax: EHLO hostname", None),
    (ALL, b"LHLO c", UNKNOWN, None),
    (["START"], b"RSET", b"250 2.0.0 Ok", None),
    (ALL[1:], b"RSET", b"250 2.0.0 Ok", "IDLE"),
    (ALL, b"RSET now", RSET_SYNTAX, None),
    (ALL, b"NOOP", b"250 2.0.0 Ok", None),
    (ALL, b"NOOP and more", b"250 2.0.0 Ok", None),
    (ALL, b"VRFY b@example.org", VRFY, None),
    (ALL, b"VRFY", b"501 5.5.4 Syntax: VRFY address", None),
    (ALL, b"QUIT now", b"501 5.5.4 Syntax: QUIT", None),
    *((ALL, verb, ABSENT, None) for verb in (b"EXPN list", b"TURN", b"ETRN x", b"AUTH PLAIN")),
    *((ALL, verb, ABSENT, None) for verb in (b"SEND x", b"SOML x", b"SAML x", b"STARTTLS")),
    (ALL, b"WHAT", UNKNOWN, None),
    (ALL, b"", UNKNOWN, None),
    (ALL, b" NOOP", UNKNOWN, None),
    (ALL, b"NOOPS", UNKNOWN, None),
    (ALL, b"\xff\xfe", UNKNOWN, None),
    (["START"], MAIL[:-2], HELLO, None),
    (["IDLE"], MAIL[:-2], b"250 2.1.0 Ok", "MAIL"),
    (["IDLE"], b"mail from:<a@example.org>", b"250 2.1.0 Ok", "MAIL"),
    (["IDLE"], b"MAIL", BAD_MAIL, None),
    (["IDLE"], b"MAIL a@example.org", BAD_MAIL, None),
    (["IDLE"], b"MAIL FROM:<bad@example.org>", b"550 5.1.1 User unknown", None),
    (["MAIL", "REFUSED", "RCPT"], MAIL[:-2], NESTED, None),
    (["CHUNKS"], MAIL[:-2], BY_BDAT, None),
    (["START"], b"RCPT TO:<b@example.org>", HELLO, None),
    (["IDLE"], b"RCPT TO:<b@example.org>", NEED_MAIL, None),
    (["MAIL", "REFUSED", "RCPT"], b"RCPT TO:<b@example.org>", b"250 2.1.5 Ok", "RCPT"),
    (["MAIL", "REFUSED"], b"RCPT TO:<no@example.org>", b"550 5.1.1 User unknown", "REFUSED"),
    (["RCPT"], b"RCPT TO:<no@example.org>", b"550 5.1.1 User unknown", None),
    (["MAIL", "REFUSED", "RCPT"], b"RCPT b@example.org", BAD_RCPT, None),
    (["MAIL", "REFUSED", "RCPT"], b"RCPT", BAD_RCPT, None),
    (["CHUNKS"], b"RCPT TO:<b@example.org>", BY_BDAT, None),
    (["START"], b"DATA", HELLO, None),
    (["IDLE", "MAIL"], b"DATA", NEED_RCPT, None),
    (["REFUSED"], b"DATA", NOBODY, None),
    (["RCPT"], b"DATA", GO, "DATA"),
    (["RCPT"], b"DATA now", b"501 5.5.4 Syntax: DATA", None),
    (["CHUNKS"], b"DATA", BY_BDAT, None),
    (["START"], b"BDAT 0", HELLO, None),
    (["IDLE", "MAIL"], b"BDAT 0 LAST", NEED_RCPT, None),
    (["REFUSED"], b"BDAT 0", NOBODY, None),
    (["RCPT", "CHUNKS"], b"BDAT 0", b"250 2.0.0 Ok", "CHUNKS"),
    (["RCPT", "CHUNKS"], b"BDAT 0 LAST", b"250 2.0.0 Ok: stored", "IDLE"),
]


def state_of(session: Session) -> str:
    return session.machine._state.name


@pytest.mark.parametrize(
    ("before", "command", "answer", "after"),
    [(state, *row[1:]) for row in ROWS for state in row[0]],
)
def test_each_verb_in_each_state(
    before: str, command: bytes, answer: bytes, after: str | None
) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[before])
    assert state_of(session) == before
    assert reply(session.send(command + b"\r\n")) == answer
    assert state_of(session) == (after or before)
    assert not session.machine.closed


def test_each_row_of_the_table_is_tried() -> None:
    tried = {(state, row[1].split(b" ")[0].upper()) for row in ROWS for state in row[0]}
    rules = states.table(lmtp=False, starttls=False, tls=False)
    elsewhere = {b"HELP", b"QUIT", b"EHLO", states.END, *states._HTTP}
    missing = {
        (state.name, verb)
        for state, of in rules.items()
        for verb in of
        if verb not in elsewhere and (state.name, verb) not in tried
    }
    assert missing == set()


def test_every_state_that_follows_is_the_one_of_the_row() -> None:
    """The rows above agree with the table, so its diagram is correct."""
    rules = states.table(lmtp=False, starttls=False, tls=False)
    states_of = {state.name: state for state in rules}
    for before, command, answer, after in ((s, *row[1:]) for row in ROWS for s in row[0]):
        state = states_of[before]
        rule = rules[state].get(command.split(b" ")[0].upper())
        if rule is None or rule.action == "refuse":
            assert after is None
        elif command.endswith(b"LAST") and after is not None:
            assert after == str((rules[states.CHUNKS][states.END]).done)
        elif answer.startswith((b"2", b"3")):
            assert (after or before) == str(rule.done or state)
        elif rule.action in states.ASKING and answer.startswith(b"550"):
            assert (after or before) == str(rule.refused or state)


def test_a_message_ends_as_its_row_says_whether_stored_or_refused() -> None:
    for begin, rest in ((b"DATA\r\n", b"x: y\r\n.\r\n"), (b"BDAT 0\r\n", b"BDAT 0 LAST\r\n")):
        session = Session(PLAIN)
        session.send(TO_RCPT + begin)
        row = states.table(lmtp=False, starttls=False, tls=False)[session.machine._state]
        session.send(rest)
        assert session.machine._state is row[states.END].done
        session.send(MAIL + b"RCPT TO:<b@example.org>\r\n" + begin)
        refused = b"x\ny\r\n.\r\n" if begin == b"DATA\r\n" else b"BDAT 3 LAST\r\nx\ny"
        assert session.send(refused).startswith(b"550 ")
        assert session.machine._state is row[states.END].refused


def test_no_state_asks_the_session_two_questions_about_mail() -> None:
    for state, rules in states.table(lmtp=False, starttls=True, tls=False).items():
        asking = {rule.action for rule in rules.values()} & states.ASKING
        assert len(asking) == (state not in {states.START, states.CLOSED})


@pytest.mark.parametrize("before", ALL)
def test_ehlo_resets_the_session_in_every_state(before: str) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[before])
    answer = session.send(b"EHLO other\r\n")
    assert answer.startswith(b"250-mx.example.org\r\n")
    assert state_of(session) == "IDLE"
    assert session.machine.helo == b"other"
    assert not session.machine.in_transaction


@pytest.mark.parametrize("before", ALL)
def test_quit_ends_the_session_in_every_state(before: str) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[before])
    assert reply(session.send(b"QUIT\r\nNOOP\r\n")) == b"221 2.0.0 Bye"
    assert session.machine.closed


@pytest.mark.parametrize("before", ALL)
def test_help_names_the_commands_in_every_state(before: str) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[before])
    answer = reply(session.send(b"HELP me\r\n"))
    assert answer.startswith(b"214 2.0.0 Commands: EHLO HELO MAIL RCPT DATA BDAT")
    assert b"STARTTLS" not in answer
    assert reply(Session(TLS).send(b"HELP\r\n")).endswith(b"STARTTLS")
    assert b"LHLO MAIL" in Session(LMTP).send(b"HELP\r\n")


@pytest.mark.parametrize("before", ALL)
@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"post / HTTP/1.1", b"CONNECT x:25 HTTP/1.1"])
def test_a_web_client_is_shown_out(before: str, line: bytes) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[before])
    answer = session.send(line + b"\r\nHost: x\r\nMAIL FROM:<a@b>\r\n")
    assert reply(answer) == b"554 5.5.1 Error: this is not a web server"
    assert session.machine.closed


@pytest.mark.parametrize("state", OUTSIDE)
def test_no_transaction_outside_of_one(state: str) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[state])
    assert not session.machine.in_transaction


@pytest.mark.parametrize("state", BEGUN)
def test_a_transaction_is_known(state: str) -> None:
    session = Session(PLAIN)
    session.send(TO_STATE[state])
    assert session.machine.in_transaction


def test_lmtp_greets_by_lhlo_only() -> None:
    session = Session(LMTP)
    assert session.greeting == b"220 mx.example.org LMTP metad\r\n"
    assert reply(session.send(b"EHLO c\r\n")) == UNKNOWN
    assert reply(session.send(b"HELO c\r\n")) == UNKNOWN
    assert reply(session.send(b"LHLO\r\n")) == b"501 Syntax: LHLO hostname"
    assert reply(session.send(MAIL)) == b"503 5.5.1 Error: send LHLO first"
    assert reply(session.send(b"BDAT 1\r\nx")) == b"503 5.5.1 Error: send LHLO first"
    assert session.send(b"LHLO c\r\n").startswith(b"250-mx.example.org\r\n250-PIPELINING\r\n")


def test_a_state_shows_its_name() -> None:
    assert repr(states.CHUNKS) == "CHUNKS"


def test_settings_refuse_an_unknown_way_with_bare_line_ends() -> None:
    with pytest.raises(ValueError, match="bare_line_ends: 'ignore'"):
        SmtpSettings("mx", 1000, 1, bare_line_ends="ignore")
