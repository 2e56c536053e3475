"""What all sessions of one worker share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from metad.config import Config
from metad.layers.base import Layer
from metad.loglines import LogLines
from metad.shm import ProcessRow
from metad.users.cache import LoginMemory
from metad.users.database import UserDatabase
from metad.workers.filters import Filter


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
    """One per worker.  `now` is the loop's time, renewed once a second: deadlines are coarse."""

    config: Config
    layer: Layer
    users: UserDatabase
    logins: LoginMemory
    filter: Filter
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    row: ProcessRow
    log: LogLines
    now: float = 0.0
    draining: bool = False
    sessions: set[Session] = field(default_factory=set)
    on_idle: Callable[[], None] = lambda: None

    def forget(self, session: Session) -> None:
        """A connection is gone."""
        self.sessions.discard(session)
        if self.draining and not self.sessions:
            self.on_idle()


def peer_name(peer: object) -> str:
    """The client's address for logs and trace; a unix socket's peer has none."""
    if isinstance(peer, tuple) and peer:
        return str(peer[0])
    return "local"


def is_loopback(client: str) -> bool:
    """Whether a client's address, or a unix socket's peer, is on this machine."""
    return client in ("local", "::1") or client.startswith("127.")
