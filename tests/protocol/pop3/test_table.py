"""POP3: every command in every state, with good and bad arguments."""

from __future__ import annotations

import base64

import pytest

from metad.protocol.pop3.machine import Login, Quit
from metad.protocol.pop3.table import COMMANDS, VERBS, State
from tests.support.pop3_session import GUARDED, OPEN, TLS, Session, logged_in

PLAIN = base64.b64encode(b"\0bob@example.org\0secret")

# An argument with which each command is understood in the state that has it.
GOOD = {
    b"USER": b"USER bob",
    b"PASS": b"PASS secret",
    b"AUTH": b"AUTH PLAIN " + PLAIN,
    b"LIST": b"LIST 1",
    b"UIDL": b"UIDL 1",
    b"RETR": b"RETR 1",
    b"TOP": b"TOP 1 0",
    b"DELE": b"DELE 1",
    b"LANG": b"LANG sv",
}
BAD = [
    b"USER",
    b"USER ",
    b"USER a\tb",
    b"USER a\x7fb",
    b"USER \xff\xfe",
    b"USER a\xc2\x80b",
    b"PASS",
    b"PASS ",
    b"CAPA all",
    b"STLS now",
    b"UTF8 USER",
    b"LANG en sv",
    b"LANG sv_SE",
    b"LANG **",
    b"LANG \xff",
    b"QUIT now",
]
BAD_LATER = [
    *[
        verb + b" " + argument
        for verb in (b"RETR", b"DELE", b"LIST", b"UIDL")
        for argument in (
            b"x",
            b"+1",
            b"-1",
            b"1_0",
            b"1 2",
            b" 1",
            b"0x1",
            b"1.0",
            b"\xb2",
            b"1" * 11,
        )
    ],
    b"RETR",
    b"DELE",
    b"TOP",
    b"TOP 1",
    b"TOP 1 ",
    b"TOP 1 -1",
    b"TOP 1 +1",
    b"TOP x 1",
    b"TOP 1  1",
    b"TOP 1 1 1",
    b"STAT 1",
    b"NOOP x",
    b"RSET 1",
    b"QUIT 1",
    b"CAPA 1",
]


def in_state(state: State) -> Session:
    return logged_in(TLS) if state is State.TRANSACTION else Session(TLS)


@pytest.mark.parametrize("state", [State.AUTHORIZATION, State.TRANSACTION])
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_command_is_taken_in_its_states_only(state: State, verb: bytes) -> None:
    session = in_state(state)
    if verb == b"PASS":
        session.send(b"USER bob\r\n")
    reply = session.send(GOOD.get(verb, verb) + b"\r\n")
    if verb in COMMANDS[state]:
        assert reply.startswith(b"+OK")
    else:
        assert reply == b"-ERR command not valid in this state\r\n"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_case_of_a_verb_does_not_matter(verb: bytes) -> None:
    for state, commands in COMMANDS.items():
        if verb in commands:
            session = in_state(state)
            if verb == b"PASS":
                session.send(b"user bob\r\n")
            good = GOOD.get(verb, verb)
            assert session.send(good.replace(verb, verb.lower()) + b"\r\n").startswith(b"+OK")


@pytest.mark.parametrize("line", BAD)
def test_a_bad_argument_before_login_is_refused(line: bytes) -> None:
    session = Session()
    assert session.send(line + b"\r\n").startswith(b"-ERR ")
    assert session.events == []
    assert not session.machine.closed


@pytest.mark.parametrize("line", BAD_LATER)
def test_a_bad_argument_after_login_is_refused(line: bytes) -> None:
    session = logged_in()
    before = session.events[:]
    assert session.send(line + b"\r\n").startswith(b"-ERR ")
    assert session.events == before
    assert session.send(b"STAT\r\n").startswith(b"+OK 3 ")


@pytest.mark.parametrize("line", [b"", b" ", b"X", b"RETR1", b"XTND a", b"APOP a b", b"GET / x"])
@pytest.mark.parametrize("state", [State.AUTHORIZATION, State.TRANSACTION])
def test_unknown_commands_are_refused(state: State, line: bytes) -> None:
    assert in_state(state).send(line + b"\r\n") == b"-ERR unknown command\r\n"


@pytest.mark.parametrize("line", [b"STAT ", b"LIST ", b"RETR 1 ", b"TOP 1 0  ", b"NOOP  "])
def test_blanks_at_the_end_of_a_line_are_forgiven(line: bytes) -> None:
    assert logged_in().send(line + b"\r\n").startswith(b"+OK")


@pytest.mark.parametrize("state", [State.AUTHORIZATION, State.TRANSACTION])
def test_capa_announces_what_there_is(state: State) -> None:
    session = logged_in() if state is State.TRANSACTION else Session()
    lines = session.send(b"CAPA\r\n").split(b"\r\n")
    assert lines[0].startswith(b"+OK")
    assert lines[-2:] == [b".", b""]
    assert set(lines[1:-2]) == {
        b"TOP",
        b"UIDL",
        b"RESP-CODES",
        b"AUTH-RESP-CODE",
        b"PIPELINING",
        b"EXPIRE NEVER",
        b"USER",
        b"SASL PLAIN",
        b"UTF8 USER",
        b"LANG",
        b"IMPLEMENTATION metad",
    }


def test_without_plaintext_user_and_plain_are_neither_announced_nor_taken() -> None:
    session = Session(GUARDED)
    capabilities = session.send(b"CAPA\r\n")
    assert b"\r\nUSER\r\n" not in capabilities
    assert b"SASL" not in capabilities
    refusal = b"-ERR plaintext authentication is refused on this connection\r\n"
    for line in (b"USER bob", b"PASS secret", b"AUTH PLAIN", b"AUTH PLAIN " + PLAIN):
        assert session.send(line + b"\r\n") == refusal
    assert session.send(b"AUTH\r\n") == b"+OK\r\n.\r\n"
    assert session.events == []


def test_the_greeting_announces_no_apop() -> None:
    greeting = Session().octets
    assert greeting == b"+OK metad ready at mx.example.org\r\n"
    assert b"<" not in greeting


def test_user_and_pass_make_a_login() -> None:
    session = Session()
    assert session.send(b"USER bob smith\r\n").startswith(b"+OK")
    assert session.send(b"PASS  two  blanks \r\n") == b"+OK 3 messages (78 octets)\r\n"
    assert session.events == [Login("bob smith", b" two  blanks ")]
    assert session.machine.authorized


def test_pass_without_user_is_refused() -> None:
    assert Session().send(b"PASS secret\r\n") == b"-ERR USER comes first\r\n"


def test_a_failed_login_forgets_the_user_and_may_be_tried_again() -> None:
    session = Session()
    reply = session.send(b"USER bob\r\nPASS wrong\r\nPASS secret\r\n")
    assert reply.split(b"\r\n")[1:3] == [
        b"-ERR [AUTH] authentication failed",
        b"-ERR USER comes first",
    ]
    assert not session.machine.authorized
    assert session.send(b"USER bob\r\nPASS secret\r\n").count(b"+OK") == 2


@pytest.mark.parametrize("state", [State.AUTHORIZATION, State.TRANSACTION])
def test_a_user_name_with_nul_is_refused_not_cut(state: State) -> None:
    session = in_state(state)
    before = session.events[:]
    assert session.send(b"USER bob\0eve\r\n") == b"-ERR a line with a NUL or bare CR\r\n"
    assert session.events == before


def test_auth_plain_with_an_initial_response() -> None:
    session = Session()
    assert session.send(b"AUTH plain " + PLAIN + b"\r\n").startswith(b"+OK")
    assert session.events == [Login("bob@example.org", b"secret")]


def test_auth_plain_with_a_challenge() -> None:
    session = Session()
    assert session.send(b"AUTH PLAIN\r\n") == b"+ \r\n"
    assert not session.machine.authorized
    assert session.send(PLAIN + b"\r\n").startswith(b"+OK")
    assert session.events == [Login("bob@example.org", b"secret")]


def test_a_long_response_line_is_taken() -> None:
    session = Session()
    password = b"x" * 1000
    response = base64.b64encode(b"\0bob\0" + password)
    session.send(b"AUTH PLAIN\r\n")
    assert session.send(response + b"\r\n").startswith(b"+OK")
    assert session.events == [Login("bob", password)]


@pytest.mark.parametrize("response", [b"*", b"", b"=", b"!!", PLAIN[:-1], b"RETR 1", b"A" * 12_300])
def test_a_bad_response_ends_the_exchange(response: bytes) -> None:
    session = Session()
    session.send(b"AUTH PLAIN\r\n")
    assert session.send(response + b"\r\n").startswith(b"-ERR ")
    assert session.send(b"USER bob\r\n").startswith(b"+OK")
    assert session.events == []


def test_auth_names_its_mechanisms_and_knows_no_other() -> None:
    session = Session(OPEN)
    assert session.send(b"AUTH\r\n") == b"+OK\r\nPLAIN\r\n.\r\n"
    assert session.send(b"AUTH CRAM-MD5\r\n") == b"-ERR unknown authentication mechanism\r\n"
    assert session.send(b"AUTH PLAIN =\r\n") == b"-ERR not a PLAIN message\r\n"


def test_quit_before_login_is_no_event() -> None:
    session = Session()
    assert session.send(b"USER bob\r\nQUIT\r\n").endswith(b"+OK metad signing off\r\n")
    assert session.machine.closed
    assert session.events == []


def test_quit_after_login_is_an_event_even_without_deletions() -> None:
    session = logged_in()
    assert session.send(b"QUIT\r\n") == b"+OK metad signing off\r\n"
    assert session.events[-1] == Quit([])
    assert session.machine.closed
