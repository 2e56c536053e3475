"""TLS on the loop: certificates that are renewed while the worker runs, and the handshake.

Rules of this file:

* A handshake that fails costs one line in the log and that connection.
* During the handshake the session hears nothing: what stands in for it drops what it is given, so
  that nothing from before can reach it behind TLS.  It hears of the end exactly once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from metad import limits
from metad.config.model import Config
from metad.errors import ConfigError
from metad.sessions.context import Client, WorkerContext
from metad.tls import store as tls_store
from metad.tls.store import TlsContexts

Report = Callable[[str, str], None]


class Certificates:
    """DATA/tls as this worker has it.  `look` now and then: what is new is taken."""

    def __init__(self, config: Config, report: Report) -> None:
        """Raises ConfigError: there is nothing, or it is bad."""
        self._config = config
        self._report = report
        self._stamp = tls_store.stamp(config.data)
        self._contexts: TlsContexts = tls_store.required(config)

    @property
    def context(self) -> ssl.SSLContext:
        return self._contexts.default

    def look(self) -> None:
        """Take what was installed since.  What cannot be used is reported, and the old is kept."""
        stamp = tls_store.stamp(self._config.data)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._contexts = tls_store.required(self._config)
        except ConfigError as error:
            self._report("tls", f"warning: certificates are kept as they were: {error}")
        else:
            names = ", ".join(one.name for one in self._contexts.certificates)
            self._report("tls", f"certificates loaded: {names}")
            for bad in self._contexts.bad:
                self._report("tls", f"warning: not loaded: {bad}")


def say_failed(context: WorkerContext, client: Client, error: OSError) -> None:
    """A line for a handshake that failed; none for a client that just went away."""
    if not isinstance(error, ConnectionResetError):
        reason = getattr(error, "reason", None) or error.strerror or error
        text = str(reason).replace("_", " ").lower()
        context.log.line("tls", f"client={client.address}: no handshake: {text}")


class Handshake(asyncio.Protocol):
    """A TLS handshake as the server, on a connection that began in the clear.

    `begun` is called with the new transport, or `lost` when the connection is gone.
    """

    def __init__(
        self,
        context: WorkerContext,
        transport: asyncio.Transport,
        client: Client,
        begun: Callable[[asyncio.Transport], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._context = context
        self._transport = transport
        self._client = client
        self._begun = begun
        self._lost = lost
        context.sessions.add(self)
        # Nothing more is read in the clear from here on.
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
        self._begun(secure)

    def _end(self, error: OSError | None) -> None:
        if error is not None:
            say_failed(self._context, self._client, error)
        self._transport.abort()
        self._lost(error)
        self._context.forget(self)

    def expire(self, now: float) -> None:
        """The handshake has its own deadline."""

    def drain(self) -> None:
        self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()
