"""The common part of sessions of all protocols: arrival, flow control, TLS, the end.

    connection_made -> rejected, or greeted -> … -> connection_lost

Rules of this file:

* A client over a limit, or not listed, gets a reply that says so; its input is not read.
* Every connection that was counted is uncounted once, however it ends.
* The server stops reading from a client that does not read its replies, or that sends far ahead
  while an answer is pending.
* `_busy`: the session waits for the store, a thread, a handshake or a delay.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

from metad import limits
from metad.sessions.client import Client, client_of
from metad.sessions.context import WorkerContext
from metad.sessions.lingering import end
from metad.sessions.networks import LOCAL, Networks
from metad.sessions.starttls import Handshake
from metad.system.refusals import count_reason
from metad.system.shared_memory import Cell

_TLS_COUNTERS = {"TLSv1.2": Cell.TLS_1_2, "TLSv1.3": Cell.TLS_1_3}


@dataclass(frozen=True, slots=True)
class Service:
    """A listener, as its sessions see it.

    `clients`: the networks that may connect; empty: all.  `too_many`, `not_listed`: the replies to
    the others.  `proxied`: connections without a command are a proxy's health checks.
    """

    context: WorkerContext
    tls: str
    clients: Networks
    connections: Cell
    open: Cell
    too_many: bytes
    not_listed: bytes
    proxied: bool = field(default=False, kw_only=True)

    def make(self, client: Client | None = None) -> Connection:
        """Make a session.  `client`: known and admitted already."""
        raise NotImplementedError

    def admit(self, client: Client) -> bytes | None:
        """Admit and count a client, or return the reply that rejects it."""
        limiter = self.context.limiter
        if not limiter.enter(client.network):
            return self._reject(client, "too many connections", self.too_many)
        if not limiter.has_room(self.open):
            limiter.leave(client.network)
            return self._reject(client, "too many connections of this protocol", self.too_many)
        if self.clients and client.address != LOCAL and client.address not in self.clients:
            limiter.leave(client.network)
            return self._reject(client, "not in smtp.clients", self.not_listed)
        return None

    def _reject(self, client: Client, reason: str, reply: bytes) -> bytes:
        count_reason(self.context.row, Cell.REFUSED_CONNECTION)
        text = f"reject: client={client.address}: {reason}"
        self.context.log.limited_line(client.network, "connect", text)
        return reply


class Machine(Protocol):
    """What a connection needs from any protocol's machine."""

    closed: bool
    abrupt: bool
    tls: bool

    @property
    def stage(self) -> str:
        """The name of its state."""

    @property
    def buffered(self) -> int:
        """Octets received and not yet processed."""

    def eof(self) -> None:
        """The client has sent everything."""

    def fail(self, reply: Any, /) -> None:
        """End the session with this reply."""


class Connection(asyncio.Protocol):
    """One connection.  `client`: known and admitted, if an acceptor took the connection."""

    __slots__ = (
        "_ahead",
        "_busy",
        "_client",
        "_context",
        "_ended",
        "_has_hung_up",
        "_holds",
        "_known",
        "_lost",
        "_network",
        "_paused",
        "_reason",
        "_service",
        "_tls",
        "_transport",
        "has_begun",
        "number",
        "since",
    )
    _machine: Machine
    _transport: asyncio.Transport
    _client: str
    _network: str
    # The protocol's replies at shutdown, to an idle client that must give way, and to a session
    # ended by `metad kick`.
    _draining: ClassVar[Any]
    _crowded: ClassVar[Any]
    _kicked: ClassVar[Any]
    _last: float  # when the client last did something, as of the last check of the deadlines

    def __init__(self, service: Service, client: Client | None) -> None:
        self._service = service
        self._context = service.context
        self._known = client
        self._busy = False
        self._paused = False  # the client does not read its replies
        self._ended = False
        self._has_hung_up = False  # it has closed its side
        self._lost = False
        self._holds = False  # octets held for the client are counted
        self._reason = ""  # why the connection ended, if known
        self._tls = "no"  # the version of TLS
        self._ahead = False  # it sent so far ahead that reading is paused
        self.has_begun = False

    # -- defined by each protocol

    def _set_up(self, client: Client, *, secure: bool) -> None:
        """Make the machine; `secure`: TLS is active already."""
        raise NotImplementedError

    def _start(self) -> None:
        """Queue the greeting."""
        raise NotImplementedError

    def _tls_started(self) -> None:
        """Tell the machine that TLS is active now."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """Process all events of the machine, and write all replies at once."""
        raise NotImplementedError

    def _gone(self) -> None:
        """The connection is lost: release the session's resources."""
        raise NotImplementedError

    # -- arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        context, service = self._context, self._service
        client = self._known
        if client is None:
            client = self._known = client_of(transport)
            reply = service.admit(client)
            if reply is not None:
                # No lingering: a client that is waiting for the greeting has sent nothing.
                self._ended = True
                self._transport.write(reply)
                self._transport.close()
                return
        self.has_begun = True
        self.number = next(context.numbers)  # with the worker's pid: the session's name
        self.since = context.now
        self._client = client.address
        self._network = client.network
        self._set_up(client, secure=service.tls == "implicit")
        context.sessions.add(self)
        cells = context.row.cells
        cells[service.connections] += 1
        cells[service.open] += 1
        self._start()
        if context.watch is not None:
            context.watch(self)
        self._begin()

    def _begin(self) -> None:
        """Begin to serve, in the clear or under TLS; not while the hub shuts down."""
        if self._machine.tls:
            secured = self._transport.get_extra_info("ssl_object")
            self._tls = secured.version() if secured is not None else "yes"
            if self._tls in _TLS_COUNTERS:
                self._context.row.add(_TLS_COUNTERS[self._tls])
        if self._context.draining:
            self._reason = "service shutting down"
            self._machine.fail(self._draining)
        self._go_on()

    # -- flow control

    def eof_received(self) -> bool:
        machine = self._machine
        if not machine.closed:
            self._has_hung_up = True
        machine.eof()
        self._go_on()
        # TLS has no half-closed connections.
        return not (machine.closed or machine.tls)

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if not self._ahead:
            self._transport.resume_reading()
        self._go_on()

    @property
    def _is_blocked(self) -> bool:
        """Whether input must wait."""
        return self._busy or self._paused

    def _count_held(self) -> None:
        """Count waiting input and unread output; pause a client that is far ahead."""
        octets = unsent = 0
        if self._is_blocked:
            octets = self._machine.buffered
        if self._paused:
            unsent = self._transport.get_write_buffer_size()
        if octets or unsent or self._holds:
            self._holds = octets + unsent > 0
            self._context.backpressure.hold(self, octets + unsent)
        ahead = octets > limits.READ_AHEAD
        if ahead is not self._ahead and not self._ended:
            self._ahead = ahead
            if ahead:
                self._transport.pause_reading()
            elif not self._paused:
                self._transport.resume_reading()

    def drop(self) -> None:
        """Memory is short, and this client has been blocked longest."""
        self._ended = True
        self._reason = "dropped: memory is short"
        self._context.log.limited_line(
            self._network,
            "connect",
            f"client={self._client}: dropped: memory is short; it sends ahead or does not read",
        )
        self._transport.abort()

    # -- TLS

    def _start_tls(self) -> None:
        """All output is written; only the handshake is read from now on."""
        self._busy = True
        client = cast(Client, self._known)
        bare = getattr(self._transport, "inner", self._transport)  # without a tap
        Handshake(self._context, bare, client, self._secured, self.connection_lost)

    def _secured(self, transport: asyncio.Transport) -> None:
        transport.set_protocol(self)
        self._transport = transport
        self._busy = False
        if self._context.watch is not None:
            self._context.watch(self)
        self._tls_started()
        self._begin()

    # -- the end

    def _fail(self, reply: Any) -> None:
        """End the session; without a reply if the client does not even read the previous ones."""
        # The reason without POP3's response code.
        self._reason = getattr(reply, "text", None) or str(reply).rpartition("] ")[2]
        self._machine.fail(reply)
        if self._paused:
            self._transport.abort()
        else:
            self._go_on()

    def _end(self, *, abrupt: bool) -> None:
        if not self._ended:
            self._ended = True
            end(self._context, self._transport, self, abrupt=abrupt)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        # `has_begun` stays set: an acceptor may check it only later, and would uncount the client
        # again.
        if not self.has_begun or self._lost:
            return
        self._lost = True
        if not self._reason:
            self._reason = self._why(exc)
        self._gone()
        context = self._context
        context.backpressure.hold(self, 0)
        context.limiter.leave(self._network)
        context.row.add(self._service.open, -1)
        context.forget(self)

    def _why(self, exc: Exception | None) -> str:
        """The reason for the end of a connection for which the session has set none."""
        if self._machine.closed and not self._has_hung_up:
            return "too many errors" if self._machine.abrupt else "quit"
        return "connection lost" if exc is not None else "client hung up"

    # -- for the worker

    @property
    def _may_drain(self) -> bool:
        """Whether the session can end now without cutting a transaction short."""
        raise NotImplementedError

    def drain(self) -> None:
        if not self._busy and self._may_drain:
            self._fail(self._draining)

    @property
    def idle_since(self) -> float | None:
        """Since when the client has been idle with nothing to lose; None: not so."""
        return self._last if self._may_drain and not (self._busy or self._ended) else None

    @property
    def has_ended(self) -> bool:
        """The last reply is given, and the connection is closing."""
        return self._ended

    def kick(self) -> None:
        """End the session now, whatever it is doing; with a reply if possible."""
        if self._busy or self._ended:
            self._reason = self._reason or "ended by the administrator"
            self._transport.abort()
        else:
            self._fail(self._kicked)

    def give_way(self) -> None:
        """End the session because connections are scarce."""
        self._fail(self._crowded)

    def abort(self) -> None:
        self._transport.abort()

    def expire(self, now: float) -> None:
        raise NotImplementedError
