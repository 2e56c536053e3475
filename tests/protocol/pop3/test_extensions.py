"""POP3 beyond RFC 1939: STLS, SCRAM, UTF8, LANG, EXPIRE, LOGIN-DELAY, and its limits."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from pathlib import Path

import pytest

from metad import errors, protocol
from metad.protocol.pop3.languages import ENGLISH, LANGUAGES, SWEDISH, find
from metad.protocol.pop3.machine import (
    Login,
    Personal,
    Pop3,
    Pop3Settings,
    ScramLogin,
    ScramUser,
    StartTls,
)
from tests.support.pop3_session import (
    GUARDED,
    KEYS,
    NONCE,
    OPEN,
    SCRAM,
    TLS,
    Drop,
    Session,
    logged_in,
    single,
)

FIRST = b"n,,n=bob@example.org,r=clientnonce"


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets)


def proof(challenge: bytes, password: bytes = b"pencil") -> tuple[bytes, bytes]:
    """client-final for a server-first, and the server-final that must follow (RFC 5802)."""
    fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
    salted = hashlib.pbkdf2_hmac(
        "sha256", password, base64.b64decode(fields[b"s"]), int(fields[b"i"])
    )
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without = b"c=biws,r=" + fields[b"r"]
    said = FIRST[3:] + b"," + challenge + b"," + without
    signature = hmac.digest(hashlib.sha256(client_key).digest(), said, "sha256")
    mixed = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    verifier = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
    return without + b",p=" + b64(mixed), b"v=" + b64(verifier)


def challenge(session: Session, command: bytes) -> bytes:
    answer = session.send(command)
    assert answer.startswith(b"+ ")
    return base64.b64decode(answer[2:-2])


# --- SCRAM ---


@pytest.mark.parametrize("initial", [True, False])
def test_scram_logs_in_with_and_without_an_initial_response(initial: bool) -> None:
    session = Session(SCRAM)
    if initial:
        first = challenge(session, b"AUTH SCRAM-SHA-256 " + b64(FIRST) + b"\r\n")
    else:
        assert session.send(b"AUTH scram-sha-256\r\n") == b"+ \r\n"
        first = challenge(session, b64(FIRST) + b"\r\n")
    assert first == b"r=clientnonce%b,s=%b,i=4096" % (NONCE, b64(KEYS.salt))
    final, verifier = proof(first)
    assert challenge(session, b64(final) + b"\r\n") == verifier
    assert not session.machine.authorized
    assert session.send(b"\r\n").startswith(b"+OK 3 messages")
    user = "bob@example.org"
    assert session.events == [ScramUser(user), ScramLogin(user, True)]


def test_a_wrong_scram_proof_is_told_only_to_the_session() -> None:
    session = Session(SCRAM)
    final, _ = proof(challenge(session, b"AUTH SCRAM-SHA-256 %b\r\n" % b64(FIRST)), b"crayon")
    assert session.send(b64(final) + b"\r\n") == b"-ERR [AUTH] authentication failed\r\n"
    assert session.events[-1] == ScramLogin("bob@example.org", False)
    assert not session.machine.authorized


@pytest.mark.parametrize("last", [b"*", b"c29tZQ==", b"!"])
def test_scram_is_not_done_until_the_client_confirms(last: bytes) -> None:
    session = Session(SCRAM)
    final, _ = proof(challenge(session, b"AUTH SCRAM-SHA-256 %b\r\n" % b64(FIRST)))
    session.send(b64(final) + b"\r\n")
    assert session.send(last + b"\r\n").startswith(b"-ERR ")
    assert not session.machine.authorized
    assert session.send(b"CAPA\r\n").startswith(b"+OK")


@pytest.mark.parametrize("line", [b"*", b"", b"!!", b64(b"n,,n=,r=x"), b64(b"p=x,,n=a,r=b")])
def test_a_bad_first_message_ends_the_exchange(line: bytes) -> None:
    session = Session(SCRAM)
    session.send(b"AUTH SCRAM-SHA-256\r\n")
    assert session.send(line + b"\r\n").startswith(b"-ERR ")
    assert session.events == []


def test_scram_needs_no_plaintext_and_plain_stays_refused() -> None:
    session = Session(SCRAM)
    assert b"\r\nSASL SCRAM-SHA-256\r\n" in session.send(b"CAPA\r\n")
    assert session.send(b"AUTH\r\n") == b"+OK\r\nSCRAM-SHA-256\r\n.\r\n"
    assert session.send(b"AUTH PLAIN\r\n").startswith(b"-ERR plaintext")


def test_scram_is_refused_when_it_is_not_offered() -> None:
    session = Session(OPEN)
    answer = session.send(b"AUTH SCRAM-SHA-256\r\n")
    assert answer == b"-ERR unknown authentication mechanism\r\n"


def test_a_session_refused_while_scram_waits_for_keys_may_try_again() -> None:
    machine = Pop3(SCRAM)
    machine.receive(b"AUTH SCRAM-SHA-256 " + b64(FIRST) + b"\r\n")
    assert machine.next_event() == ScramUser("bob@example.org")
    machine.login_failed("[SYS/TEMP] temporary failure")
    assert machine.take_output() == [b"-ERR [SYS/TEMP] temporary failure\r\n"]
    machine.receive(b"CAPA\r\n")
    assert machine.next_event() is None
    assert machine.take_output()


# --- STLS ---


def test_stls_forgets_what_was_sent_before() -> None:
    session = Session(TLS)
    session.send(b"LANG sv\r\nUSER bob\r\n")
    assert session.send(b"STLS\r\n") == "+OK börja TLS-förhandlingen\r\n".encode()
    assert session.events == [StartTls()]
    assert session.machine.tls
    assert session.send(b"PASS secret\r\n") == b"-ERR USER comes first\r\n"


def test_stls_gives_the_settings_of_tls() -> None:
    session = Session(Pop3Settings("mx.example.org", plaintext=False, stls=True))
    before = session.send(b"CAPA\r\n")
    assert b"\r\nSTLS\r\n" in before
    assert b"SASL" not in before
    session.send(b"STLS\r\n")
    after = session.send(b"CAPA\r\n")
    assert b"\r\nSTLS\r\n" not in after
    assert b"\r\nUSER\r\n" in after
    assert session.send(b"STLS\r\n") == b"-ERR TLS is active already\r\n"


def test_stls_is_refused_where_it_is_not_offered_and_after_utf8() -> None:
    assert Session(GUARDED).send(b"STLS\r\n") == b"-ERR TLS is not offered here\r\n"
    assert Session(TLS).send(b"UTF8\r\nSTLS\r\n").endswith(b"-ERR STLS comes before UTF8\r\n")
    assert Session(OPEN).machine.tls is False
    with_tls = Pop3(OPEN, tls=True)
    with_tls.receive(b"STLS\r\n")
    with_tls.next_event()
    assert with_tls.take_output() == [b"-ERR TLS is active already\r\n"]


@pytest.mark.parametrize("rest", [b"CAPA\r\n", b"U", b"\r\n", b"\x16\x03\x01"])
def test_bytes_behind_stls_in_the_clear_end_the_session(rest: bytes) -> None:
    together = Session(TLS)
    answer = together.send(b"STLS\r\n" + rest)
    assert answer == b"-ERR data before the TLS handshake\r\n"
    assert together.machine.closed
    assert together.machine.abrupt
    assert together.events == []

    machine = Pop3(TLS)
    machine.receive(b"STLS\r\n")
    assert machine.next_event() == StartTls()
    machine.take_output()
    machine.receive(rest)
    assert machine.closed
    assert machine.next_event() is None
    assert b"".join(machine.take_output()) == b"-ERR data before the TLS handshake\r\n"


# --- UTF8 and LANG ---


def test_utf8_is_accepted_before_login_only() -> None:
    assert Session().send(b"UTF8\r\n") == b"+OK UTF-8 enabled\r\n"
    assert logged_in().send(b"UTF8\r\n") == b"-ERR command not valid in this state\r\n"


@pytest.mark.parametrize("session", [Session, logged_in])
def test_lang_lists_and_changes_the_language(session) -> None:
    now = session()
    listing = b"+OK language listing follows\r\nen English\r\nsv Svenska\r\n.\r\n"
    assert now.send(b"LANG\r\n") == listing
    assert now.send(b"lang SV-se\r\n") == "+OK sv Språket är bytt\r\n".encode()
    assert now.send(b"NOPE\r\n") == "-ERR okänt kommando\r\n".encode()
    assert now.send(b"LANG xx\r\n") == "-ERR okänt språk\r\n".encode()
    assert now.send(b"LANG *\r\n") == b"+OK en Language changed\r\n"
    assert now.send(b"NOPE\r\n") == b"-ERR unknown command\r\n"


def test_a_session_in_swedish() -> None:
    session = Session()
    said = session.send(
        b"LANG sv\r\nUSER bob\r\nPASS wrong\r\nUSER bob\r\nPASS secret\r\n"
        b"STAT\r\nDELE 1\r\nRETR 1\r\nRETR 2\r\nRSET\r\nQUIT\r\n"
    ).decode()
    assert said.split("\r\n") == [
        "+OK sv Språket är bytt",
        "+OK skicka lösenordet",
        "-ERR [AUTH] inloggningen misslyckades",
        "+OK skicka lösenordet",
        "+OK 3 meddelanden (78 oktetter)",
        "+OK 3 78",
        "+OK meddelandet är raderat",
        "-ERR det meddelandet är raderat",
        "+OK 25 oktetter",
        "Subject: two",
        "",
        "..dotted",
        ".",
        "+OK 3 meddelanden (78 oktetter)",
        "+OK metad avslutar",
        "",
    ]


def test_every_text_has_its_swedish() -> None:
    """Every text in the sources of the machine, and in our errors."""
    texts = {text for text in said_in_sources() if not text.startswith("Syntax")}
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    brought = [kind.pop3 for kind in kinds if issubclass(kind, errors.RefusedError)]
    texts |= {re.sub(r"^\[[A-Z/-]+\] ", "", text) for text in brought}
    assert len(texts) > 30
    assert texts - set(SWEDISH.texts) == set()


def said_in_sources() -> set[str]:
    """The literals given to what says or refuses, in the modules of POP3."""
    directory = Path(protocol.__file__).parent
    pattern = re.compile(
        r"(?:_ok|_refuse|_error|\.fail|ArgumentError|SaslError|LineError|_answer_error)\(\s*"
        r'"(?:\[[A-Z/-]+\] )?([^"{]+)"'
    )
    found: set[str] = set()
    for name in ("pop3/machine", "pop3/table", "pop3/lines", "pop3/marks", "sasl", "scram"):
        found |= set(pattern.findall((directory / f"{name}.py").read_text()))
    return found


@pytest.mark.parametrize("tag", ["en", "EN-us", "sv", "sv-FI-x-a", "*", "de", "s"])
def test_languages_are_found_by_lookup(tag: str) -> None:
    expected = {"e": ENGLISH, "s": SWEDISH, "*": ENGLISH}.get(tag[0].lower())
    assert find(tag) is (expected if tag not in {"de", "s"} else None)


def test_every_language_keeps_the_numbers_and_codes() -> None:
    for language in LANGUAGES.values():
        assert b"3" in language.summary % (3, 4)
        assert language.octets % 5
        assert language.say("[AUTH] authentication failed").startswith("[AUTH] ")
        assert language.say("not in the book") == "not in the book"


# --- what CAPA says about users ---

DIFFERENT = Pop3Settings(
    "mx.example.org",
    plaintext=True,
    common=Personal(expire=7, login_delay=900),
    expire_differs=True,
    login_delay_differs=True,
)


def test_before_login_capa_shows_the_worst_and_that_it_differs() -> None:
    lines = Session(DIFFERENT).send(b"CAPA\r\n").split(b"\r\n")
    assert b"EXPIRE 7 USER" in lines
    assert b"LOGIN-DELAY 900 USER" in lines


@pytest.mark.parametrize(
    ("personal", "expire", "delay"),
    [
        (Personal(30, 60), b"EXPIRE 30", b"LOGIN-DELAY 60"),
        (Personal(), b"EXPIRE NEVER", None),
        (None, b"EXPIRE 7", b"LOGIN-DELAY 900"),
    ],
)
def test_after_login_capa_shows_the_users_own(personal, expire, delay) -> None:
    machine = Pop3(DIFFERENT)
    machine.receive(b"USER bob\r\nPASS secret\r\nCAPA\r\n")
    assert isinstance(machine.next_event(), Login)
    machine.login_ok(Drop(), personal)
    assert machine.next_event() is None
    lines = b"".join(machine.take_output()).split(b"\r\n")
    assert expire in lines
    assert [line for line in lines if line.startswith(b"LOGIN-DELAY")] == ([delay] if delay else [])


def test_by_default_mail_is_kept_and_logins_are_not_delayed() -> None:
    answer = Session().send(b"CAPA\r\n")
    assert b"\r\nEXPIRE NEVER\r\n" in answer
    assert b"LOGIN-DELAY" not in answer


# --- limits ---


def test_commands_before_login_are_counted() -> None:
    settings = Pop3Settings("mx.example.org", plaintext=True, login_commands=5)
    session = Session(settings)
    assert session.send(b"CAPA\r\n" * 5).count(b"+OK") == 5
    assert session.send(b"CAPA\r\n") == b"-ERR too many commands before login\r\n"
    assert session.machine.closed
    assert session.machine.abrupt


def test_commands_after_login_are_not_counted() -> None:
    settings = Pop3Settings("mx.example.org", plaintext=True, login_commands=5)
    session = logged_in(settings)
    assert session.send(b"NOOP\r\n" * 50).count(b"+OK") == 50


def test_an_end_by_quit_is_not_abrupt() -> None:
    session = logged_in()
    session.send(b"QUIT\r\n")
    assert session.machine.closed
    assert not session.machine.abrupt


def test_half_a_line_is_no_progress() -> None:
    session = logged_in()
    before = session.machine.commands
    session.send(*single(b"NOO"))
    assert session.machine.commands == before
    session.send(b"P\r\n")
    assert session.machine.commands == before + 1


def test_an_answer_that_comes_after_the_end_goes_nowhere() -> None:
    machine = Pop3(SCRAM)
    machine.start()
    machine.receive(b"AUTH SCRAM-SHA-256 %b\r\n" % b64(FIRST))
    assert isinstance(machine.next_event(), ScramUser)
    machine.fail("service shutting down")
    written = machine.take_output()
    machine.scram_keys(KEYS, NONCE)
    machine.login_failed()
    machine.refused("late")
    assert machine.take_output() == []
    assert written[-1] == b"-ERR service shutting down\r\n"
