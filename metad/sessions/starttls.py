"""The TLS handshake of a connection that began in the clear.

Rules of this file:

* A failed handshake ends only its connection, with one line in the log.
* During the handshake a stand-in replaces the session on the transport and drops its input: nothing
  sent in the clear can take effect under TLS.  The session is notified of the end of the connection
  exactly once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from metad import limits
from metad.sessions.client import Client
from metad.sessions.context import WorkerContext
from metad.system.shared_memory import Cell
from metad.tls.certificates import Certificates


def log_failed_handshake(context: WorkerContext, client: Client, error: OSError) -> None:
    """Count and log a handshake that failed; a client that only hung up is not logged."""
    context.row.add(Cell.TLS_FAILED)
    if not isinstance(error, ConnectionResetError):
        reason = getattr(error, "reason", None) or error.strerror or error
        text = str(reason).replace("_", " ").lower()
        text = f"client={client.address}: handshake failed: {text}"
        context.log.limited_line(client.network, "tls", text)


class Handshake(asyncio.Protocol):
    """A TLS handshake with the worker as server.

    Calls `secured` with the new transport, or `lost` when the connection is gone.
    """

    def __init__(
        self,
        context: WorkerContext,
        transport: asyncio.Transport,
        client: Client,
        secured: Callable[[asyncio.Transport], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._context = context
        self._transport = transport
        self._client = client
        self._secured = secured
        self._lost = lost
        context.sessions.add(self)
        # Nothing is read in the clear from here on.
        transport.pause_reading()
        self._task = context.loop.create_task(self._run())

    async def _run(self) -> None:
        context = self._context
        try:
            secure = await context.loop.start_tls(
                self._transport,
                self,
                cast(Certificates, context.certificates).context,
                server_side=True,
                ssl_handshake_timeout=limits.TLS_HANDSHAKE,
                ssl_shutdown_timeout=limits.TLS_SHUTDOWN,
            )
        except OSError as error:  # ssl.SSLError is one
            self._end(error)
            return
        if secure is None or secure.is_closing():
            self._end(None)
            return
        context.forget(self)
        self._secured(secure)

    def _end(self, error: OSError | None) -> None:
        if error is not None:
            log_failed_handshake(self._context, self._client, error)
        self._transport.abort()
        self._lost(error)
        self._context.forget(self)

    def expire(self, now: float) -> None:
        """The handshake has a timeout of its own."""

    def drain(self) -> None:
        self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()
