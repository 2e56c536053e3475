"""A session whose recipients are refused: it is slowed down, but the postmaster always accepts
mail."""

from __future__ import annotations

import pytest

from metad.errors import ForeignDomainError, UnknownUserError
from metad.protocol.smtp.table import IDLE
from metad.users.account import POSTMASTER_ID, Account
from tests.support.session_kit import Connected, World

EHLO = b"EHLO client.example.org\r\n"
MAIL = b"MAIL FROM:<a@b.example>\r\n"
GUESS = b"RCPT TO:<guess@b.example>\r\n"


class Users:
    """Only the postmaster and carol."""

    def expand(self, address: str) -> tuple[Account, ...]:
        if address == "postmaster":
            return (Account(POSTMASTER_ID, address),)
        if address.startswith("carol@"):
            return (Account(7, address),)
        raise UnknownUserError(address) if address.endswith("@b.example") else ForeignDomainError


@pytest.fixture
def world() -> World:
    world = World()
    world.context.users = Users()  # type: ignore[assignment]
    return world


def guessing(world: World) -> Connected:
    """A client with ten refused recipients."""
    client = world.smtp()
    client.send(EHLO + MAIL)
    assert client.send(GUESS * 10).count(b"550 5.1.1") == 10
    return client


def test_a_client_that_guesses_waits_longer_and_longer(world: World) -> None:
    client = guessing(world)
    assert client.send(GUESS * 90).count(b"550 5.1.1") == 1
    began = world.loop.now
    refused = 1
    while not client.session._ended and world.loop.now < began + 600:
        world.loop.advance(0.25)
        refused += client.transport.take().count(b"550 5.1.1")
    assert client.session._ended
    assert world.loop.now - began > 240
    assert refused == 90


def test_a_guess_is_answered_at_once_and_the_next_command_later(world: World) -> None:
    client = guessing(world)
    assert client.send(GUESS + b"NOOP\r\n").count(b"\r\n") == 1
    assert client.send(b"RCPT TO:<carol@b.example>\r\n") == b""
    world.loop.advance(0.5)
    assert client.transport.take() == b"250 2.0.0 Ok\r\n250 2.1.5 Ok\r\n"


def test_a_client_that_waits_does_not_time_out_and_may_hang_up(world: World) -> None:
    client = guessing(world)
    client.send(GUESS + b"NOOP\r\n")
    client.lose()
    world.loop.advance(5)
    assert client.transport.take() == b""


def test_a_stop_ends_a_session_that_was_slowed_down_when_it_goes_on(world: World) -> None:
    client = guessing(world)
    client.send(GUESS + b"RSET\r\n")
    world.context.draining = True
    client.session.drain()
    assert client.transport.take() == b""
    world.loop.advance(0.5)
    # A transaction is not interrupted.
    assert client.transport.take() == b"250 2.0.0 Ok\r\n"


def test_a_stop_ends_a_session_without_a_transaction_that_was_slowed_down(world: World) -> None:
    client = guessing(world)
    client.send(GUESS)
    client.session._machine._give_up(client.session._machine._table[IDLE][b"RSET"].done)
    world.context.draining = True
    world.loop.advance(0.5)
    assert client.transport.take().startswith(b"421 ")


@pytest.mark.parametrize(
    "address",
    [
        "postmaster@mx.example.org",
        "Postmaster@MX.example.org",
        "POSTMASTER@[192.0.2.1]",
        "postmaster@[IPv6:2001:db8::1]",
        "postmaster",
    ],
)
def test_postmaster_at_the_hubs_own_name_or_literal_was_refused(world: World, address: str) -> None:
    """RFC 5321 section 4.5.1."""
    client = world.smtp()
    client.send(EHLO + MAIL)
    assert client.send(f"RCPT TO:<{address}>\r\n".encode()) == b"250 2.1.5 Ok\r\n"
    assert client.session._recipients.entries[POSTMASTER_ID].address == address


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("postmaster@other.example", b"550 5.7.1"),
        ("root@mx.example.org", b"550 5.7.1"),
        ("post@[192.0.2.1]", b"550 5.7.1"),
        ("postmaster@b.example", b"550 5.1.1"),
    ],
)
def test_other_names_are_not_the_postmaster(world: World, address: str, code: bytes) -> None:
    client = world.smtp()
    client.send(EHLO + MAIL)
    assert client.send(f"RCPT TO:<{address}>\r\n".encode()).startswith(code)
