"""Closes a connection so that the last reply arrives.

Closing a socket with unread input makes the kernel send a reset, and a reset destroys what the
client has not read yet: the very reply that explains the end (RFC 1122 section 4.2.2.13).  So after
a reply to a client that may still be sending, only our half is closed, and further input is read
and discarded, within limits of time and octets.  TLS does the same by itself while it waits for the
client's close_notify.
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
    """Close once everything is written; `abrupt`: the client may still be sending."""
    if transport.is_closing():
        return
    if abrupt and transport.can_write_eof():
        Lingering(context, transport, session)
    else:
        transport.close()


class Lingering(asyncio.Protocol):
    """Replaces `session`, which is notified when the connection is lost."""

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
        """Nothing to do: the connection is ending."""

    def abort(self) -> None:
        self._transport.abort()
