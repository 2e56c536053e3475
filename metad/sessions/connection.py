"""What a session of either protocol is to the loop: it arrives, it may turn to TLS, it ends.

    connection_made -> turned away, or greeted -> … -> connection_lost

Rules of this file:

* Whoever is over a cap or not on the list hears why, and is not read from.
* Every connection that was counted in is counted out, once, however it ends.
* `_busy`: somebody else (the store, a thread, a handshake, a delay) has the next move.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol, cast

from metad import limits
from metad.sessions.context import Client, WorkerContext, client_of
from metad.sessions.lingering import end
from metad.sessions.networks import LOCAL, Networks
from metad.sessions.starttls import Handshake
from metad.system.shared_memory import Cell


@dataclass(frozen=True, slots=True)
class Service:
    """A listener, as its sessions need it.

    `clients`: who may connect; empty: everybody.  `too_many`, `not_listed`: what the others hear.
    """

    context: WorkerContext
    tls: str
    clients: Networks
    connections: Cell
    open: Cell
    too_many: bytes
    not_listed: bytes

    def make(self, client: Client | None = None) -> Connection:
        """A session.  `client`: known and counted in already."""
        raise NotImplementedError

    def admit(self, client: Client) -> bytes | None:
        """Count a client in; or what it is told who may not come in."""
        gate = self.context.gate
        if not gate.enter(client.network):
            return self._turned_away(client, "too many connections", self.too_many)
        if self.clients and client.address != LOCAL and client.address not in self.clients:
            gate.leave(client.network)
            return self._turned_away(client, "not one of smtp.clients", self.not_listed)
        return None

    def _turned_away(self, client: Client, reason: str, words: bytes) -> bytes:
        self.context.row.add(Cell.REFUSED)
        self.context.log.line("gate", f"client={client.address}: turned away: {reason}")
        return words


class Machine(Protocol):
    """What any protocol's machine is here."""

    @property
    def buffered(self) -> int:
        """Octets received and not yet understood."""


class Connection(asyncio.Protocol):
    """One connection.  `client`: known, and counted in, if somebody else accepted it."""

    __slots__ = (
        "_ahead",
        "_busy",
        "_client",
        "_context",
        "_ended",
        "_gone_already",
        "_known",
        "_network",
        "_paused",
        "_service",
        "_transport",
        "_waits",
        "has_begun",
    )
    _machine: Machine
    _transport: asyncio.Transport
    _client: str
    _network: str

    def __init__(self, service: Service, client: Client | None) -> None:
        self._service = service
        self._context = service.context
        self._known = client
        self._busy = False
        self._paused = False
        self._ended = False
        self._gone_already = False
        self._waits = False  # something waits for the client, and counts
        self._ahead = False  # it sent so much ahead that it is not read from
        self.has_begun = False

    # -- what a protocol says of itself

    def _set_up(self, client: Client, *, secure: bool) -> None:
        """Make the machine; `secure`: TLS runs already."""
        raise NotImplementedError

    def _greet(self) -> None:
        """Say hello."""
        raise NotImplementedError

    def _upgraded(self) -> None:
        """TLS runs now, on a connection that had begun without."""
        raise NotImplementedError

    def _gone(self) -> None:
        """The connection is lost."""
        raise NotImplementedError

    # -- arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        context, service = self._context, self._service
        client = self._known
        if client is None:
            client = self._known = client_of(transport)
            words = service.admit(client)
            if words is not None:
                # No lingering: nobody who waits for the greeting loses these words.
                self._ended = True
                self._transport.write(words)
                self._transport.close()
                return
        self.has_begun = True
        self._client = client.address
        self._network = client.network
        self._set_up(client, secure=service.tls == "implicit")
        context.sessions.add(self)
        cells = context.row.cells
        cells[service.connections] += 1
        cells[service.open] += 1
        self._greet()

    # -- what waits

    def _count_waiting(self) -> None:
        """What was sent before its turn, or is not read, counts, and who is far ahead must wait."""
        octets = unsent = 0
        if self._is_blocked:
            octets = self._machine.buffered
        if self._paused:
            unsent = self._transport.get_write_buffer_size()
        if octets or unsent or self._waits:
            self._waits = octets + unsent > 0
            self._context.waiting.hold(self, octets + unsent)
        ahead = octets > limits.READ_AHEAD
        if ahead is not self._ahead and not self._ended:
            self._ahead = ahead
            if ahead:
                self._transport.pause_reading()
            elif not self._paused:
                self._transport.resume_reading()

    @property
    def _is_blocked(self) -> bool:
        """Whether what comes has to wait."""
        return self._busy or self._paused

    def resume_writing(self) -> None:
        self._paused = False
        if not self._ahead:
            self._transport.resume_reading()
        self._resumed()

    def _resumed(self) -> None:
        """The client reads again."""
        raise NotImplementedError

    def shed(self) -> None:
        """Memory is short, and this client has let something wait for longest."""
        self._ended = True
        self._context.log.line(
            "gate",
            f"client={self._client}: dropped: memory is short, and it sends ahead or does not read",
        )
        self._transport.abort()

    # -- TLS

    def _start_tls(self) -> None:
        """The output is written; from now on only the handshake is read."""
        self._busy = True
        client = cast(Client, self._known)
        Handshake(self._context, self._transport, client, self._secured, self.connection_lost)

    def _secured(self, transport: asyncio.Transport) -> None:
        transport.set_protocol(self)
        self._transport = transport
        self._busy = False
        self._upgraded()

    # -- the end

    def _end(self, *, abrupt: bool) -> None:
        if not self._ended:
            self._ended = True
            end(self._context, self._transport, self, abrupt=abrupt)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        # It stays begun: whoever accepted it may look only now, and would count it out again.
        if not self.has_begun or self._gone_already:
            return
        self._gone_already = True
        self._gone()
        context = self._context
        context.waiting.hold(self, 0)
        context.gate.leave(self._network)
        context.row.add(self._service.open, -1)
        context.forget(self)

    def abort(self) -> None:
        self._transport.abort()

    def expire(self, now: float) -> None:
        raise NotImplementedError

    def drain(self) -> None:
        raise NotImplementedError
