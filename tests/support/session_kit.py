"""Sessions without sockets, hub or real time: a transport, a clock and a worker's context."""

from __future__ import annotations

import mmap
import os
from functools import partial
from types import SimpleNamespace
from typing import Any

from metad.budget import Budget
from metad.errors import MailboxInUseError, RefusedError
from metad.layers.base import Maildrop
from metad.layers.null import NullMaildrop
from metad.loglines import LogLines
from metad.protocol.pop3.machine import Pop3Settings
from metad.protocol.smtp.machine import SmtpSettings
from metad.sessions.backpressure import Backpressure
from metad.sessions.context import WorkerContext
from metad.sessions.networks import Networks
from metad.sessions.pop3 import Pop3Service, Pop3Session
from metad.sessions.rate_limiter import Caps, RateLimiter
from metad.sessions.shared_counts import SharedCounts
from metad.sessions.smtp import SmtpSession
from metad.sessions.smtp_service import SmtpService
from metad.sessions.unfinished import Unfinished
from metad.system.shared_memory import CELLS, Cell, Role, SharedArea
from metad.users.account import Account

# Something with a descriptor that is no socket: nothing waits on it.
NOTHING = open(os.devnull, "rb")


def shared_area() -> SharedArea:
    """Shared memory without a name: it goes with its last process."""
    return SharedArea("", mmap.mmap(-1, CELLS * 8))


def make_limiter(
    caps: Caps, rate: int = 0, area: SharedArea | None = None, index: int = 1
) -> RateLimiter:
    """The limiter of the worker whose row is `index`."""
    area = area or shared_area()
    row = area.process(index)
    row[Cell.ROLE] = Role.WORKER
    return RateLimiter(caps, SharedCounts(area, row), rate)


class Transport:
    """What a session sees of a connection: what it wrote, whether it reads, how it ended."""

    def __init__(self, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.protocol: Any = None
        self.written = b""
        self.unsent = 0
        self.reading = True
        self.half_closed = False
        self.closed = False
        self.aborted = False

    def get_extra_info(self, name: str) -> object:
        return (self.peer, 40000) if name == "peername" else NOTHING

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, octets: bytes) -> None:
        self.written += octets

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def take(self) -> bytes:
        """What was written since the last time."""
        written, self.written = self.written, b""
        return written


class Loop:
    """A clock that a test moves, and what was asked to be called later."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Any, *arguments: Any) -> None:
        self.later.append((self.now + delay, partial(call, *arguments)))

    def call_soon(self, call: Any) -> None:
        call()

    def call_soon_threadsafe(self, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [one for one in self.later if one[0] <= self.now]
        self.later = [one for one in self.later if one[0] > self.now]
        for _, call in due:
            call()


class Layer:
    """Takes every message at once; its mailboxes are empty."""

    in_use = False
    behind = False

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    opens_later = False

    def is_behind(self, mailbox: int, asked_ns: int) -> bool:
        return self.behind

    def open_mailbox(self, mailbox: int) -> Maildrop:
        if self.in_use:
            raise MailboxInUseError
        return NullMaildrop(self.loop)

    def check_space(self) -> None:
        pass

    def check_mailbox(self, mailbox: int) -> None:
        pass

    def transaction_started(self) -> None:
        pass

    def begin(self) -> Any:
        return SimpleNamespace(write=lambda chunk: None, abort=lambda: None, commit=self.commit)

    def begin_for(self, mailboxes: Any) -> Any:
        return self.begin()

    def commit(self, envelope: Any, done: Any) -> None:
        done(None)

    def deliver(self, envelope: Any, body: bytes, done: Any) -> None:
        self.commit(envelope, done)

    def next_id(self) -> bytes:
        return bytes(16)


class Threads:
    """Carries out work when the test says so."""

    def __init__(self) -> None:
        self.work: list[Any] = []

    def submit(self, work: Any) -> None:
        self.work.append(work)

    def run(self) -> None:
        work, self.work = self.work, []
        for one in work:
            one()


class Users:
    """Every user exists, with the password "right"; "broken" meets a broken disk."""

    lost = 0

    def expand(self, address: str) -> tuple[Account, ...]:
        return (Account(2, address),)

    def verify(self, user: str, password: bytes) -> object:
        if password == b"broken":
            raise RefusedError("the disk is gone")
        return Account(2, user) if password == b"right" else None

    def account(self, address: str) -> Account | None:
        return Account(2, address)


class Log(LogLines):
    """Keeps the text of each line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(-1)
        self._kept = lines

    def _queue(self, service: str, text: str, event: dict[str, object] | None) -> None:
        self._kept.append(text)

    def plain(self, service: str, text: str) -> None:
        self._kept.append(text)


class World:
    """A worker's context of stand-ins, and what sees to its sessions."""

    def __init__(self, connections: int = 100, of_network: int = 10, rate: int = 0) -> None:
        self.loop = Loop()
        self.lines: list[str] = []
        self.session: type[SmtpSession] = SmtpSession
        self.threads = Threads()
        self.area = shared_area()
        self.limiter = make_limiter(Caps(connections, of_network, connections), rate, self.area)
        fields: dict[str, Any] = {
            "loop": self.loop,
            "limiter": self.limiter,
            "row": self.area.process(1),
            "layer": Layer(self.loop),
            "users": Users(),
            "threads": self.threads,
            "policies": SimpleNamespace(
                quota=lambda account: None,
                login_delay=lambda account: 0,
                expiry=lambda account: 0,
            ),
            "logins": SimpleNamespace(
                recall=lambda user, password: None, remember=lambda *login: None
            ),
            "log": Log(self.lines),
            "config": SimpleNamespace(
                pop3=SimpleNamespace(default_domain=None), hostname="mx.example.org"
            ),
            "budget": Budget(),
            "backpressure": Backpressure(),
            "unfinished": Unfinished(),
            "last_logins": SimpleNamespace(note=lambda account, at_once: None),
            "now": self.loop.now,
        }
        self.context = WorkerContext(**fields)

    def smtp(self, peer: str = "192.0.2.1", clients: tuple[str, ...] = ()) -> Any:
        """A session that has been connected; its transport is `session.transport`."""
        settings = SmtpSettings("mx.example.org", 10_000_000, 100)
        service = SmtpService(
            context=self.context,
            tls="none",
            clients=Networks(clients),
            connections=Cell.SMTP_CONNECTIONS,
            open=Cell.SMTP_OPEN,
            too_many=b"421 too many\r\n",
            not_listed=b"554 not listed\r\n",
            settings=settings,
            repairing=settings,
            repair_networks=Networks(()),
            session=self.session,
        )
        return self._connected(service.make(), peer)

    def pop3(self, peer: str = "192.0.2.1") -> Any:
        settings = Pop3Settings("mx.example.org", plaintext=True)
        service = Pop3Service(
            context=self.context,
            tls="none",
            clients=Networks(()),
            connections=Cell.POP3_CONNECTIONS,
            open=Cell.POP3_OPEN,
            too_many=b"-ERR too many\r\n",
            not_listed=b"",
            settings=lambda plaintext, tls: settings,
            plaintext="always",
        )
        return self._connected(Pop3Session(service), peer)

    def _connected(self, session: Any, peer: str) -> Connected:
        transport = Transport(peer)
        transport.set_protocol(session)
        session.connection_made(transport)
        return Connected(session, transport)

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Move the clock, looking at every session's deadlines as a worker does."""
        until = self.loop.now + seconds
        while self.loop.now < until:
            self.loop.advance(min(step, until - self.loop.now))
            self.context.now = self.loop.now
            for session in list(self.context.sessions):
                session.expire(self.loop.now)


class Connected:
    """A session and its transport; octets go to the transport's present protocol."""

    def __init__(self, session: Any, transport: Transport) -> None:
        self.session = session
        self.transport = transport

    def send(self, octets: bytes) -> bytes:
        """Octets from the client; what it was answered."""
        if not self.transport.is_closing():
            self.transport.protocol.data_received(octets)
        return self.transport.take()

    def lose(self) -> None:
        self.transport.protocol.connection_lost(None)
