"""`metad trace` in a worker: a tap on the sessions that a command follows.

    transport <-> Tap <-> session          while at least one command follows
    transport <---------> session          otherwise

Rules of this file:

* Without a following command it costs nothing: a session tests one attribute when it begins.
* The session behaves as without a tap, which first forwards data and then looks at it.
* A command that does not read loses lines, which are counted, and slows down no session.
* An open session is tapped between two commands, so that no dialogue begins inside a message.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from metad.sessions.connection import Connection
from metad.sessions.context import WorkerContext
from metad.sessions.dialog import Pop3Dialog, SmtpDialog, joined
from metad.sessions.facts import connections, name_of
from metad.sessions.pop3 import Pop3Session
from metad.system.osio import Buffer

# Lines of a session kept until one shows that it is to be followed.
KEPT = 40
RETRY_SECONDS = 0.05
# After this many new sessions, ended ones are removed.
SWEEP = 64
_WITHIN = ("data", "chunks", "challenge")  # stages at which a tap cannot begin

Line = dict[str, Any]


class Follower:
    """The target of one command: a client network, or a user or address.

    `send` takes a line, and returns whether the command keeps up.
    """

    def __init__(self, request: dict[str, Any], send: Callable[[Line], bool]) -> None:
        """Raises KeyError, ValueError."""
        self._send = send
        self._network = None
        self._pattern = None
        self._dropped = 0
        if request.get("client"):
            self._network = ipaddress.ip_network(str(request["client"]), strict=False)
        else:
            local, _, domain = str(request["address"]).rpartition("@")
            tag = r"(?:\+[^@\s>]*)?" if local else ""
            text = f"{re.escape(local)}{tag}@{re.escape(domain)}" if local else re.escape(domain)
            self._pattern = re.compile(rf"(?<![\w.+@-]){text}(?![\w@-]|\.\w)", re.IGNORECASE)
        self._kept: dict[Tap, deque[Line] | None] = {}  # None: it is followed

    def begin(self, tap: Tap) -> bool:
        """Whether the session of `tap` may be followed."""
        if self._network is not None:
            try:
                if ipaddress.ip_address(tap.session._client) not in self._network:
                    return False
            except ValueError:  # a Unix socket's peer
                return False
            self._kept[tap] = None
        else:
            self._kept[tap] = deque(maxlen=KEPT)
        return True

    def take(self, tap: Tap, line: Line) -> None:
        kept = self._kept.get(tap)
        if tap not in self._kept:
            return
        if kept is None:
            self._give(line)
            return
        kept.append(line)
        user = tap.session._user if isinstance(tap.session, Pop3Session) else ""
        if self._pattern is not None and self._pattern.search(f"{line['text']}\n{user}"):
            self._kept[tap] = None
            for one in kept:
                self._give(one)

    def end(self, tap: Tap) -> None:
        self._kept.pop(tap, None)

    def _give(self, line: Line) -> None:
        if self._dropped:
            if not self._send({"dropped": self._dropped}):
                self._dropped += 1
                return
            self._dropped = 0
        if not self._send(line):
            self._dropped += 1


class Tap(asyncio.Protocol):
    """Replaces the session on its transport, and the transport in the session."""

    def __init__(self, watch: Watch, session: Connection) -> None:
        self.session = session
        self._watch = watch
        self._dialog = Pop3Dialog() if isinstance(session, Pop3Session) else SmtpDialog()
        self._name = name_of(session)
        self.attach()

    def attach(self) -> None:
        """On the session's present transport, which TLS replaces."""
        inner = self.session._transport
        self.session._transport = cast(asyncio.Transport, TappedTransport(inner, self))
        inner.set_protocol(self)

    def detach(self) -> None:
        """Restore both.  A lingering connection has its own protocol by now."""
        tapped = cast(Any, self.session._transport)
        if isinstance(tapped, TappedTransport):
            self.session._transport = tapped.inner
            if tapped.inner.get_protocol() is self:
                tapped.inner.set_protocol(self.session)

    def tell(self, side: str, text: str) -> None:
        """`side`: C, S, or - for events of the connection."""
        line = {
            "time": round(time.time(), 3),
            "session": self._name,
            "client": self.session._client,
            "side": side,
            "text": text,
        }
        for one in self._watch.followers:
            one.take(self, line)

    # -- for the transport

    def data_received(self, data: bytes) -> None:
        for text in self._dialog.client(data):
            self.tell("C", text)
        self.session.data_received(data)

    def eof_received(self) -> bool | None:
        self.tell("-", "the client sends no more")
        return self.session.eof_received()

    def pause_writing(self) -> None:
        self.session.pause_writing()

    def resume_writing(self) -> None:
        self.session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.connection_lost(exc)
        self.tell("-", f"closed: {self.session._reason or 'connection lost'}")
        self._watch.forget(self)

    # -- for the session

    def written(self, data: bytes) -> None:
        for side, text in self._dialog.server(data):
            self.tell(side, text)

    def left(self) -> None:
        """Another protocol reads from now on, while the connection lingers after the last reply."""
        self.tell("-", f"closing: {self.session._reason or 'the last reply is given'}")
        self._watch.forget(self)


class TappedTransport:
    """A transport that reports writes; everything else is passed to the inner one."""

    def __init__(self, inner: asyncio.Transport, tap: Tap) -> None:
        self.inner = inner
        self._tap = tap

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, data: Buffer) -> None:
        self._tap.written(bytes(data))
        self.inner.write(data)

    def writelines(self, parts: Iterable[Buffer]) -> None:
        pieces = list(parts)
        self._tap.written(joined(pieces))
        self.inner.writelines(pieces)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._tap.left()
        self.inner.set_protocol(protocol)


class Watch:
    """The followers of one worker and the taps of its sessions."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.followers: list[Follower] = []
        self._taps: dict[Connection, Tap] = {}

    def add(self, follower: Follower) -> None:
        self.followers.append(follower)
        self._context.watch = self.begin
        for session in connections(self._context):
            tap = self._taps.get(session)
            if tap is not None:
                follower.begin(tap)
            else:
                self._begin_at_rest(session, follower)

    def remove(self, follower: Follower) -> None:
        self.followers.remove(follower)
        if not self.followers:
            self._context.watch = None
            for tap in self._taps.values():
                tap.detach()
            self._taps.clear()

    def begin(self, session: Connection) -> None:
        """A session begins, in the clear or again under TLS."""
        tap = self._taps.get(session)
        if tap is not None:
            tap.attach()
            tap.tell("-", f"secured: {session._transport.get_extra_info('cipher', ('?',))[0]}")
            return
        if len(self._taps) % SWEEP == 0:
            self._sweep()
        self._tap(session, self.followers)

    def _sweep(self) -> None:
        """Remove sessions that ended in a handshake, of which no tap is notified."""
        for tap in [tap for session, tap in self._taps.items() if session._lost]:
            tap.tell("-", "closed within the TLS handshake")
            self.forget(tap)

    def _tap(self, session: Connection, followers: list[Follower]) -> None:
        tap = Tap(self, session)
        followed = [one.begin(tap) for one in followers]  # each one must be notified
        if any(followed):
            self._taps[session] = tap
            tap.tell("-", f"followed since its begin {_ago(self._context, session)}")
        else:
            tap.detach()

    def _begin_at_rest(self, session: Connection, follower: Follower) -> None:
        """Tap an open session as soon as it is between two commands."""
        if follower not in self.followers or session._lost or session._ended:
            return
        if session in self._taps:
            follower.begin(self._taps[session])
        elif _is_at_rest(session):
            self._tap(session, self.followers)
        else:
            self._context.loop.call_later(RETRY_SECONDS, self._begin_at_rest, session, follower)

    def forget(self, tap: Tap) -> None:
        self._taps.pop(tap.session, None)
        for one in self.followers:
            one.end(tap)


def _ago(context: WorkerContext, session: Connection) -> str:
    seconds = int(context.loop.time() - session.since)
    return f"{seconds} s ago" if seconds > 1 else "now"


def _is_at_rest(session: Connection) -> bool:
    machine = cast(Any, session._machine)
    if session._busy or session._paused or machine.buffered or machine.output:
        return False
    if isinstance(session, Pop3Session) and session._transfer is not None:
        return False
    return machine.stage not in _WITHIN
