"""How a connection ends so that our last words arrive.

Closing a socket on which unread octets lie makes the kernel send a reset, and a reset takes from
the client what it has not read yet: the very reply that says why (RFC 1122 section 4.2.2.13).  So
after a reply that comes while the client may be sending, only our half is closed, and what still
comes is read and thrown away: some seconds, some octets, then it is over.  TLS does the same by
itself while it waits for the client's close_notify.
"""

from __future__ import annotations

import asyncio

from metad import limits
from metad.sessions.context import WorkerContext


def end(
    context: WorkerContext,
    transport: asyncio.Transport,
    session: asyncio.Protocol,
    *,
    abrupt: bool,
) -> None:
    """Close after what is written; `abrupt`: the client may be sending still."""
    if transport.is_closing():
        return
    if abrupt and transport.can_write_eof():
        Lingering(context, transport, session)
    else:
        transport.close()


class Lingering(asyncio.Protocol):
    """Stands in for `session`, which hears when the connection is lost."""

    __slots__ = ("_context", "_left", "_session", "_transport", "_until")

    def __init__(
        self, context: WorkerContext, transport: asyncio.Transport, session: asyncio.Protocol
    ) -> None:
        self._context = context
        self._transport = transport
        self._session = session
        self._left = limits.LINGER_OCTETS
        self._until = context.loop.time() + limits.LINGER
        context.sessions.add(self)
        transport.set_protocol(self)
        transport.write_eof()
        transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.connection_lost(exc)
        self._context.forget(self)

    def expire(self, now: float) -> None:
        if now > self._until:
            self._transport.abort()

    def drain(self) -> None:
        """It is ending as it is."""

    def abort(self) -> None:
        self._transport.abort()
