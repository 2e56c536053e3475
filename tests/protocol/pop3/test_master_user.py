"""A master user opens the mailbox of another user, if the settings name one."""

from __future__ import annotations

import base64

import pytest

from metad.protocol.pop3.machine import Event, Login, Pop3Settings, ScramLogin, ScramUser
from tests.support.pop3_session import OPEN, Session
from tests.support.scram_client import final_message

MASTERS = Pop3Settings(
    "mx.example.org", plaintext=True, scram=True, masters=frozenset({"admin@example.org"})
)
ADMIN, BOB = "admin@example.org", "bob@example.org"
FOREIGN = b"-ERR one user cannot act for another\r\n"


def plain(authzid: str, user: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"{authzid}\0{user}\0secret".encode()) + b"\r\n"


@pytest.mark.parametrize(
    "octets",
    [
        f"USER {BOB}*{ADMIN}\r\nPASS secret\r\n".encode(),
        f"USER {BOB}*Admin@Example.org\r\nPASS secret\r\n".encode(),
        plain(BOB, ADMIN),
        plain("", f"{BOB}*{ADMIN}"),
        plain(f"{BOB}*{ADMIN}", f"{BOB}*{ADMIN}"),
    ],
)
def test_a_master_user_opens_the_mailbox_of_another(octets: bytes) -> None:
    session = Session(MASTERS)
    session.send(octets)
    (login,) = session.events
    assert isinstance(login, Login)
    assert (login.user, login.password) == (BOB, b"secret")
    assert (login.master or "").lower() == ADMIN
    assert session.machine.authorized


def test_without_master_users_no_user_acts_for_another() -> None:
    session = Session(OPEN)
    assert session.send(plain(BOB, ADMIN)) == FOREIGN
    session.send(f"USER {BOB}*{ADMIN}\r\nPASS secret\r\n".encode())
    assert session.events == [Login(f"{BOB}*{ADMIN}", b"secret")]


@pytest.mark.parametrize("octets", [plain(ADMIN, BOB), plain(BOB, "eve@example.org")])
def test_other_users_do_not_act_for_another(octets: bytes) -> None:
    session = Session(MASTERS)
    assert session.send(octets) == FOREIGN
    assert session.events == []


@pytest.mark.parametrize("name", ["a*b@example.org", f"*{ADMIN}", f"{BOB}*", f"{BOB}*{BOB}", "*"])
def test_a_star_that_names_no_master_belongs_to_the_name(name: str) -> None:
    session = Session(MASTERS)
    session.send(f"USER {name}\r\nPASS secret\r\n".encode())
    assert session.events == [Login(name, b"secret")]


@pytest.mark.parametrize("first", [f"n,a={BOB},n={ADMIN},r=abc", f"n,,n={BOB}*{ADMIN},r=abc"])
def test_a_master_user_logs_in_by_scram(first: str) -> None:
    session = Session(MASTERS)
    answer = session.send(b"AUTH SCRAM-SHA-256 " + base64.b64encode(first.encode()) + b"\r\n")
    challenge = base64.b64decode(answer[2:])
    final = final_message(first.encode(), challenge, b"pencil")
    session.send(base64.b64encode(final) + b"\r\n", b"\r\n")
    wanted: list[Event] = [ScramUser(ADMIN), ScramLogin(BOB, True, ADMIN)]
    assert session.events == wanted
    wrong = Session(MASTERS)
    answer = wrong.send(b"AUTH SCRAM-SHA-256 " + base64.b64encode(first.encode()) + b"\r\n")
    final = final_message(first.encode(), base64.b64decode(answer[2:]), b"pen")
    wrong.send(base64.b64encode(final) + b"\r\n")
    assert wrong.events[-1] == ScramLogin(BOB, False, ADMIN)


def test_by_scram_others_do_not_act_for_another() -> None:
    session = Session(MASTERS)
    first = base64.b64encode(f"n,a={ADMIN},n={BOB},r=abc".encode())
    assert session.send(b"AUTH SCRAM-SHA-256 " + first + b"\r\n") == FOREIGN
    assert session.events == []
