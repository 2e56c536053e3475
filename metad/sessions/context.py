"""What all sessions of one worker share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from metad.budget import Budget
from metad.config.model import Config
from metad.filters.chain import FilterChain
from metad.layers.base import Layer
from metad.loglines import LogLines
from metad.sessions.backpressure import Backpressure
from metad.sessions.rate_limiter import RateLimiter
from metad.sessions.unfinished import Unfinished
from metad.system.shared_memory import ProcessRow
from metad.tls.certificates import Certificates
from metad.users.database import UserDatabase
from metad.users.last_logins import LastLogins
from metad.users.login_cache import LoginMemory
from metad.users.policy import Policies


class Session(Protocol):
    """What the worker requires of every session."""

    def expire(self, now: float) -> None:
        """Close the connection if its deadline has passed."""

    def drain(self) -> None:
        """Announce the shutdown, unless that would cut a transaction short."""

    def abort(self) -> None:
        """Drop the connection now."""


@dataclass(slots=True)
class WorkerContext:
    """One per worker.  `now` is the loop's time, updated once a second: deadlines are coarse.

    `certificates`: None if no listener has TLS; `filters`: None if there are none.
    """

    config: Config
    layer: Layer
    users: UserDatabase
    logins: LoginMemory
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    row: ProcessRow
    log: LogLines
    limiter: RateLimiter
    policies: Policies
    last_logins: LastLogins
    budget: Budget
    backpressure: Backpressure
    unfinished: Unfinished
    certificates: Certificates | None = None
    filters: FilterChain | None = None
    now: float = 0.0
    draining: bool = False
    retired: bool = False  # accepts no new connections; open sessions run to their end
    sessions: set[Session] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    on_idle: Callable[[], None] = lambda: None
    # Notified of each new session while a command follows sessions.
    watch: Callable[[Any], None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no client is connected.

        A client that is admitted but has no session yet (during its TLS handshake) counts, except
        while draining.
        """
        return not (self.sessions or (self.limiter.connections and not self.draining))

    def forget(self, session: Session) -> None:
        """A connection has closed."""
        self.sessions.discard(session)
        self.check_idle()

    def check_idle(self) -> None:
        """Call this after a connection has ended."""
        if (self.draining or self.retired) and self.is_idle:
            self.on_idle()
