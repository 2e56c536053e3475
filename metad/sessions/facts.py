"""What `metad who` shows about a session, read from the session on request."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from metad.sessions.connection import Connection
from metad.sessions.context import WorkerContext
from metad.sessions.pop3 import Pop3Session
from metad.sessions.smtp import SmtpSession

# Readable names of the machines' states.
_STAGES = {
    "start": "connected", "refused": "mail", "chunks": "data", "authorization": "login",
    "challenge": "login", "transaction": "open", "update": "closing", "closed": "closing",
}  # fmt: skip


def connections(context: WorkerContext) -> list[Connection]:
    """The sessions of clients, by number."""
    found = [one for one in context.sessions if isinstance(one, Connection)]
    return sorted(found, key=lambda one: one.number)


def name_of(session: Connection) -> str:
    """Its name for `metad kick`, unique in the hub."""
    return f"{os.getpid()}-{session.number}"


def facts(session: Connection) -> dict[str, Any]:
    """`since`: seconds since the epoch, to about a second; `user`: of POP3 once logged in; `from`:
    of SMTP in a transaction."""
    age = session._context.loop.time() - session.since
    found: dict[str, Any] = {
        "session": name_of(session),
        "protocol": _protocol(session),
        "client": session._client,
        "user": "",
        "from": "",
        "tls": session._tls,
        "since": round(time.time() - age, 1),
        "state": _state(session),
    }
    if isinstance(session, Pop3Session):
        found["user"] = session._user if session._machine.authorized else ""
    elif isinstance(session, SmtpSession) and session._machine.in_transaction:
        found["from"] = session._sender
    return found


def _protocol(session: Connection) -> str:
    if isinstance(session, SmtpSession):
        return "lmtp" if session._service.settings.lmtp else "smtp"
    return "pop3"


def _state(session: Connection) -> str:
    """The stage, and what the session waits for, if not simply for the client."""
    stage = session._machine.stage
    stage = _STAGES.get(stage, stage)
    if session._ended:
        return "closing"
    if session._paused:
        return f"{stage}, client does not read"
    if isinstance(session, Pop3Session) and session._transfer is not None:
        return f"{stage}, sending"
    return f"{stage}, hub works" if session._busy else stage


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of sessions; every given condition must hold; without conditions, all match."""

    sessions: frozenset[str] = frozenset()
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    user: str = ""
    protocol: str = ""

    @classmethod
    def parse(cls, request: dict[str, Any]) -> Selection:
        """Raises ValueError."""
        network = request.get("client")
        names = request.get("sessions") or ()
        return cls(
            frozenset(map(str, names)),
            ipaddress.ip_network(str(network), strict=False) if network else None,
            str(request.get("user") or "").lower(),
            str(request.get("protocol") or ""),
        )

    def choose(self, sessions: Iterable[Connection]) -> Iterable[Connection]:
        return (one for one in sessions if self._matches(one))

    def _matches(self, session: Connection) -> bool:
        if self.sessions and name_of(session) not in self.sessions:
            return False
        if self.network is not None and not self._is_near(session._client):
            return False
        if self.user and facts(session)["user"].lower() != self.user:
            return False
        return not self.protocol or _protocol(session) == self.protocol

    def _is_near(self, client: str) -> bool:
        try:
            return ipaddress.ip_address(client) in (self.network or ())
        except ValueError:  # a Unix socket's peer
            return False
