"""What all sessions of one worker share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from metad.budget import Budget
from metad.config.model import Config
from metad.layers.base import Layer
from metad.loglines import LogLines
from metad.sessions.backpressure import Backpressure
from metad.sessions.filters import Filter
from metad.sessions.networks import LOCAL, is_near, network_of
from metad.sessions.rate_limiter import RateLimiter
from metad.system.shared_memory import ProcessRow
from metad.users.database import UserDatabase
from metad.users.last_logins import LastLogins
from metad.users.login_cache import LoginMemory
from metad.users.policy import Policies

if TYPE_CHECKING:
    from metad.sessions.starttls import Certificates


class Session(Protocol):
    """What the worker may do with any session."""

    def expire(self, now: float) -> None:
        """Close if the deadline has passed."""

    def drain(self) -> None:
        """Say that the service shuts down as soon as nothing is cut short by it."""

    def abort(self) -> None:
        """Drop the connection now."""


@dataclass(slots=True)
class WorkerContext:
    """One per worker.  `now` is the loop's time, renewed once a second: deadlines are coarse.

    `certificates`: None if no listener has TLS.
    """

    config: Config
    layer: Layer
    users: UserDatabase
    logins: LoginMemory
    filter: Filter
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    row: ProcessRow
    log: LogLines
    gate: RateLimiter
    policies: Policies
    last_logins: LastLogins
    budget: Budget
    waiting: Backpressure
    certificates: Certificates | None = None
    now: float = 0.0
    draining: bool = False
    retired: bool = False  # no connection more; those that are here are served to their end
    sessions: set[Session] = field(default_factory=set)
    on_idle: Callable[[], None] = lambda: None

    @property
    def is_idle(self) -> bool:
        """Nobody is here.  Who has been let in but has no session yet (its TLS handshake is under
        way) counts too, but not in the hub's last seconds."""
        return not (self.sessions or (self.gate.connections and not self.draining))

    def forget(self, session: Session) -> None:
        """A connection is gone."""
        self.sessions.discard(session)
        self.one_less()

    def one_less(self) -> None:
        """To be called when somebody has gone."""
        if (self.draining or self.retired) and self.is_idle:
            self.on_idle()


class Client(NamedTuple):
    """Who is at the other end.

    `network`: what its connections, messages and failures are counted by.  `near`: a password
    that it sends readably does not leave this machine.
    """

    address: str
    network: str
    near: bool


def client_of(transport: asyncio.BaseTransport) -> Client:
    """The client at the other end of a socket."""
    address = peer_name(transport.get_extra_info("peername"))
    return Client(address, network_of(address), is_near(address))


def peer_name(peer: object) -> str:
    """The client's address for logs and trace; a unix socket's peer has none.

    A socket handed over may be for IPv4 too: such a client is the same as on one for IPv4 alone.
    """
    if isinstance(peer, tuple) and peer:
        return str(peer[0]).removeprefix("::ffff:")
    return LOCAL
