"""A layer that must ask others before it opens a mailbox, and before it has a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from metad.errors import DamagedError, MailboxInUseError, RefusedError
from metad.layers.base import Done, Maildrop, NotAtHandError, Opened
from metad.protocol.pop3.machine import Pop3Settings
from metad.sessions.mail_deletion import MailDeletion
from metad.sessions.networks import Networks
from metad.sessions.pop3 import Pop3Service, Pop3Session
from metad.system.shared_memory import Cell
from metad.users.account import Account
from tests.support.session_kit import Connected, World

BOB = "bob@example.org"
TEXT = b"Subject: a test\r\n\r\nhere\r\n.\r\n"


class Users:
    def verify(self, user: str, password: bytes) -> Account:
        return Account(2, user)

    def account(self, address: str) -> Account:
        return Account(2, address)


class FarDrop(Maildrop):
    """One message, which must be loaded first."""

    def __init__(self) -> None:
        self.bringing: list[Done] = []
        self.at_hand = self.closed = False
        self.deleted: list[int] = []

    @property
    def octets(self) -> int:
        return len(TEXT) - 3

    def __len__(self) -> int:
        return 1

    def size(self, number: int, /) -> int:
        return self.octets

    def uid(self, number: int, /) -> str:
        return "far"

    def fetch(self, number: int, most: int, /) -> Sequence[bytes]:
        if not self.at_hand:
            raise NotAtHandError
        return [TEXT]

    def bring(self, number: int, done: Done) -> None:
        self.bringing.append(done)

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        self.deleted += numbers
        done(None)

    def close(self) -> None:
        self.closed = True


class LateLayer:
    """Opens when the test says so."""

    opens_later = True

    def __init__(self) -> None:
        self.opening: list[Opened] = []
        self.error: Exception | None = None

    def open_later(self, mailbox: int, done: Opened) -> None:
        if self.error is not None:
            raise self.error
        self.opening.append(done)


@pytest.fixture
def world() -> World:
    world = World()
    context: Any = world.context
    context.users, context.layer = Users(), LateLayer()
    return world


@pytest.fixture
def layer(world: World) -> LateLayer:
    layer: Any = world.context.layer
    return layer


@pytest.fixture
def client(world: World) -> Connected:
    return connected(world)


def connected(world: World) -> Connected:
    """A client that has logged in, and wants a message and to quit."""
    settings = Pop3Settings("mx.example.org", plaintext=True)
    service = Pop3Service(
        context=world.context, tls="none", clients=Networks(()),
        connections=Cell.POP3_CONNECTIONS, open=Cell.POP3_OPEN, too_many=b"", not_listed=b"",
        settings=lambda plaintext, tls: settings, plaintext="always",
    )  # fmt: skip
    connected: Connected = world._connected(Pop3Session(service), "192.0.2.1")
    connected.transport.take()
    connected.send(f"USER {BOB}\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n".encode())
    world.threads.run()
    return connected


def test_a_login_waits_for_the_answer_and_commands_wait_behind_it(
    layer: LateLayer, client: Connected
) -> None:
    assert not client.transport.take()
    drop = FarDrop()
    layer.opening.pop()(drop)
    assert client.transport.take().startswith(b"+OK ")
    drop.at_hand = True
    drop.bringing.pop()(None)
    assert TEXT in client.transport.take()
    assert drop.closed
    assert not drop.deleted


class DamagedDrop(FarDrop):
    """One message, which a thread finds to be damaged here."""

    def fetch(self, number: int, most: int, /) -> Any:
        return [TEXT] if self.at_hand else self._read()

    def _read(self) -> Iterator[bytes]:
        raise NotAtHandError
        yield b""


@pytest.mark.parametrize("comes", [True, False])
def test_a_message_that_a_thread_cannot_read_is_brought(
    world: World, layer: LateLayer, client: Connected, comes: bool
) -> None:
    drop = DamagedDrop()
    layer.opening.pop()(drop)
    client.transport.take()
    world.threads.run()
    assert not client.transport.take()
    drop.at_hand = comes
    drop.bringing.pop()(None if comes else RefusedError("damaged everywhere"))
    answer = client.transport.take()
    assert (TEXT in answer) is comes
    assert answer.startswith(b"-ERR [SYS/TEMP]") is not comes
    assert answer.count(b"+OK") == 1 + comes  # to QUIT
    assert drop.closed


def test_a_message_that_cannot_be_brought_costs_its_command_alone(
    layer: LateLayer, client: Connected
) -> None:
    drop = FarDrop()
    layer.opening.pop()(drop)
    client.transport.take()
    drop.bringing.pop()(RefusedError("no holder answers"))
    lines = client.transport.take().split(b"\r\n")
    assert lines[0].startswith(b"-ERR [SYS/TEMP]")
    assert lines[1].startswith(b"+OK")


def test_what_another_node_cannot_give_is_no_damage_here(
    world: World, layer: LateLayer, client: Connected
) -> None:
    drop = FarDrop()
    layer.opening.pop()(drop)
    drop.bringing.pop()(RefusedError("node 2: does not answer"))
    assert not world.context.row[Cell.DAMAGED]
    drop = FarDrop()
    other = connected(world)
    layer.opening.pop()(drop)
    drop.bringing.pop()(DamagedError("it does not verify"))
    assert world.context.row[Cell.DAMAGED] == 1
    assert b"-ERR" in other.transport.take()


def test_a_layer_that_cannot_begin_to_open_costs_one_login(world: World, layer: LateLayer) -> None:
    layer.error = OSError("no lock file")
    client = connected(world)
    lines = client.transport.take().split(b"\r\n")
    assert lines[0].startswith(b"-ERR [SYS/")
    assert lines[2].startswith(b"+OK")  # QUIT is answered
    assert client.transport.is_closing()


def test_a_client_that_leaves_meanwhile_leaves_the_mailbox_to_the_next(
    layer: LateLayer, client: Connected
) -> None:
    client.lose()
    drop = FarDrop()
    layer.opening.pop()(drop)
    assert drop.closed


def test_a_client_that_leaves_while_a_message_is_brought(
    layer: LateLayer, client: Connected
) -> None:
    drop = FarDrop()
    layer.opening.pop()(drop)
    client.lose()
    drop.bringing.pop()(None)
    assert drop.closed
    assert not drop.deleted


def test_a_mailbox_in_use_is_asked_for_again(
    world: World, layer: LateLayer, client: Connected
) -> None:
    layer.opening.pop()(MailboxInUseError())
    client.transport.take()
    world.pass_time(1)
    layer.opening.pop()(FarDrop())
    assert client.transport.take().startswith(b"+OK ")


@pytest.mark.parametrize("error", [RefusedError("too few members"), ValueError("a bug")])
def test_a_refusal_is_the_answer(layer: LateLayer, client: Connected, error: Exception) -> None:
    layer.opening.pop()(error)
    assert client.transport.take().startswith(b"-ERR [SYS/TEMP]")


@pytest.mark.parametrize(
    ("outcome", "key"), [(FarDrop, "deleted"), (lambda: RefusedError("no"), "refused")]
)
def test_the_command_that_deletes_waits_too(
    world: World, layer: LateLayer, outcome: Callable[[], Any], key: str
) -> None:
    answers: list[dict[str, Any]] = []
    request = {"mailbox": 2, "address": BOB, "uids": ["far", "gone"]}
    MailDeletion(world.context, request, answers.append).begin()
    assert not answers
    layer.opening.pop()(outcome())
    world.pass_time(1)
    assert next(iter(answers[0])) == key
    if key == "deleted":
        assert answers[0] == {"deleted": ["far"], "missing": ["gone"]}


def test_only_the_log_tells_why_a_mailbox_was_not_opened(
    world: World, layer: LateLayer, client: Connected
) -> None:
    layer.opening.pop()(RefusedError("nodes 2 and 3\r\ndo not answer"))
    assert client.transport.take().startswith(b"-ERR [SYS/TEMP] temporary failure\r\n")
    (line,) = [line for line in world.lines if "login failed" in line]
    assert line.endswith("reason=[SYS/TEMP] temporary failure: nodes 2 and 3??do not answer")
