"""A master user in a session: whose password counts, whose mailbox opens, what is logged."""

from __future__ import annotations

from typing import Any

import pytest

from metad.errors import MailboxInUseError
from metad.layers.base import Maildrop
from metad.layers.null import NullMaildrop
from metad.protocol.pop3.machine import Pop3Settings
from metad.sessions.networks import Networks
from metad.sessions.pop3 import Pop3Service, Pop3Session
from metad.system.shared_memory import Cell
from metad.users.account import DISABLED, Account
from tests.support.session_kit import Connected, World

ADMIN, BOB, GONE = "admin@example.org", "bob@example.org", "gone@example.org"
ACCOUNTS = {ADMIN: Account(1, ADMIN), BOB: Account(2, BOB), GONE: Account(3, GONE, DISABLED)}


class Users:
    """Each user's password is their address; disabled users have none that works."""

    lost = 0

    def verify(self, user: str, password: bytes) -> Account | None:
        account = ACCOUNTS.get(user)
        good = account is not None and not account.disabled and password == user.encode()
        return account if good else None

    def account(self, address: str) -> Account | None:
        return ACCOUNTS.get(address)


class Layer:
    """Records which mailboxes were opened."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.opened: list[int] = []

    opens_later = False

    def is_behind(self, mailbox: int, asked_ns: int) -> bool:
        return False

    def open_mailbox(self, mailbox: int) -> Maildrop:
        if mailbox == 1:
            raise MailboxInUseError
        self.opened.append(mailbox)
        return NullMaildrop(self.loop)


@pytest.fixture
def world() -> World:
    world = World()
    context: Any = world.context
    context.users, context.layer = Users(), Layer(world.loop)
    return world


def client(world: World) -> Connected:
    settings = Pop3Settings("mx.example.org", plaintext=True, masters=frozenset({ADMIN}))
    service = Pop3Service(
        context=world.context, tls="none", clients=Networks(()),
        connections=Cell.POP3_CONNECTIONS, open=Cell.POP3_OPEN, too_many=b"", not_listed=b"",
        settings=lambda plaintext, tls: settings, plaintext="always",
    )  # fmt: skip
    connected: Connected = world._connected(Pop3Session(service), "192.0.2.1")
    connected.transport.take()
    return connected


def log_in(world: World, user: str, password: str) -> bytes:
    one = client(world)
    one.send(f"USER {user}\r\nPASS {password}\r\n".encode())
    world.threads.run()
    world.pass_time(30)
    return one.transport.take()


@pytest.mark.parametrize(("mailbox", "number"), [(BOB, 2), (GONE, 3)])
def test_a_master_user_opens_any_mailbox_and_that_is_logged(
    world: World, mailbox: str, number: int
) -> None:
    layer: Any = world.context.layer
    assert log_in(world, f"{mailbox}*{ADMIN}", ADMIN).startswith(b"+OK ")
    assert layer.opened == [number]
    opened = [line for line in world.lines if line.startswith("opened by a master user: ")]
    assert len(opened) == 1
    assert f"user=<{mailbox}>, master=<{ADMIN}>" in opened[0]


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        (f"{BOB}*{ADMIN}", BOB, "wrong password"),
        (f"nobody@example.org*{ADMIN}", ADMIN, "unknown user"),
        (f"{BOB}*{GONE}", GONE, "unknown user"),
        (GONE, GONE, "user disabled"),
    ],
)
def test_a_login_that_fails_tells_only_the_log_why(
    world: World, user: str, password: str, reason: str
) -> None:
    layer: Any = world.context.layer
    assert log_in(world, user, password).endswith(b"-ERR [AUTH] authentication failed\r\n")
    assert layer.opened == []
    (line,) = [line for line in world.lines if "login failed" in line]
    assert line.endswith(f"reason={reason}")
    assert ("master=<" in line) == (ADMIN in user)


def test_a_master_users_own_login_is_like_any_other(world: World) -> None:
    assert b"[IN-USE]" in log_in(world, ADMIN, ADMIN)
    assert log_in(world, BOB, BOB).startswith(b"+OK ")
    assert not any("master=" in line for line in world.lines)
