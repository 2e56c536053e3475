"""The mail worker: one log, one loop, every protocol.

boot -> ready (one octet to the master) -> serve -> drain (SIGTERM) or stop (SIGQUIT)
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import uvloop

from metad.config import Config, Listener
from metad.layers.base import Layer, LayerContext
from metad.layers.logs import LogLayer
from metad.layers.null import NullLayer
from metad.loglines import LogLines
from metad.protocol.pop3 import Pop3Settings
from metad.protocol.smtp import SmtpSettings
from metad.shm import Cell, ProcessRow, SharedArea
from metad.store.table import Semaphore
from metad.users.cache import LoginMemory
from metad.users.database import UserDatabase
from metad.workers.context import WorkerContext, is_loopback
from metad.workers.filters import accept
from metad.workers.pop3 import Pop3Session
from metad.workers.smtp import SmtpSession

TICK_SECONDS = 0.25
DRAIN_SECONDS = 10.0
THREADS = 4

LAYERS: dict[str, type[Layer]] = {"log": LogLayer, "null": NullLayer}


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What the master hands to a worker: its sockets, shared memory, and how to say "ready"."""

    config: Config
    sockets: list[tuple[Listener, socket.socket]]
    area: SharedArea
    semaphore: Semaphore
    row: ProcessRow
    ready: Callable[[], None]


class MailWorker:
    """One worker process after its fork."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._loop = uvloop.new_event_loop()
        self._log = LogLines(2, self._loop.call_soon)
        self._servers: list[asyncio.AbstractServer] = []
        self._context = self._boot()
        self._deadline = 0.0

    def _boot(self) -> WorkerContext:
        """Open everything.  Raises MetadError, OSError: the master hears of it."""
        setup, loop = self._setup, self._loop
        asyncio.set_event_loop(loop)
        config = setup.config
        layer = LAYERS[config.store.layer]()
        users = UserDatabase(config.data / "users", create=True)
        context = WorkerContext(
            config=config,
            layer=layer,
            users=users,
            logins=LoginMemory(users),
            filter=accept,
            loop=loop,
            threads=ThreadPoolExecutor(THREADS, "blocking"),
            row=setup.row,
            log=self._log,
            now=loop.time(),
            on_idle=loop.stop,
        )
        layer.start(
            LayerContext(
                config.data,
                config.store,
                setup.area,
                setup.semaphore,
                setup.row,
                loop,
                self._report,
            )
        )
        return context

    def _report(self, text: str) -> None:
        """A line of the store, from whichever thread."""
        self._loop.call_soon_threadsafe(self._log.line, "store", text)

    def run(self) -> int:
        """Serve until told to stop.  The exit code."""
        loop = self._loop
        loop.set_exception_handler(self._unexpected)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_now)
        for listener, sock in self._setup.sockets:
            factory = self._factory(listener)
            self._servers.append(
                loop.run_until_complete(loop.create_server(factory, sock=sock, backlog=4096))
            )
        self._tick()
        quieten_collector()
        self._setup.ready()
        loop.run_forever()
        self._close()
        return 0

    def _factory(self, listener: Listener) -> Callable[[], asyncio.Protocol]:
        """Makes the sessions of a listener; their settings are made once."""
        context, config = self._context, self._setup.config
        if listener.protocol == "pop3":
            readable = Pop3Settings(config.hostname, plaintext=True)
            refused = Pop3Settings(config.hostname, plaintext=False)
            allowed = config.pop3.plaintext

            def settings(client: str) -> Pop3Settings:
                may = allowed == "always" or (allowed == "loopback" and is_loopback(client))
                return readable if may else refused

            return lambda: Pop3Session(context, settings)
        smtp = SmtpSettings(
            hostname=config.hostname,
            message_size=config.limits.message_size,
            recipients=config.limits.recipients,
            errors=config.limits.smtp_errors,
            lmtp=listener.protocol == "lmtp",
        )
        return lambda: SmtpSession(context, smtp)

    def _tick(self) -> None:
        """Heartbeat, deadlines, the layer's odd jobs."""
        context, row = self._context, self._setup.row
        now = context.now = self._loop.time()
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        row[Cell.LOG_LINES_DROPPED] = self._log.dropped
        for session in list(context.sessions):
            session.expire(now)
        context.layer.tick()
        if context.draining and now > self._deadline:
            self._loop.stop()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _drain(self) -> None:
        """Take no connection more; let transactions finish, then say 421."""
        context = self._context
        if context.draining:
            return
        context.draining = True
        self._deadline = self._loop.time() + DRAIN_SECONDS
        for server in self._servers:
            server.close()
        for session in list(context.sessions):
            session.drain()
        if not context.sessions:
            self._loop.stop()

    def _stop_now(self) -> None:
        self._context.draining = True
        self._loop.stop()

    def _close(self) -> None:
        """Every acknowledged message is in the log already; seal it and let go."""
        context = self._context
        context.on_idle = lambda: None
        for server in self._servers:
            server.close()
        for session in list(context.sessions):
            session.abort()
        context.threads.shutdown(wait=True)
        # One more turn: aborted transports close, a commit under way finishes.
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()
        context.layer.stop()
        context.users.close()
        self._log.flush()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, details: dict[str, object]) -> None:
        """An exception that nobody caught: that connection ends, the worker goes on."""
        error = details.get("exception")
        self._log.line("worker", f"panic: {details.get('message')}: {error!r}")
        transport = details.get("transport")
        if isinstance(transport, asyncio.Transport):
            transport.abort()


def quieten_collector() -> None:
    """Cycles are rare here (sessions break theirs when they close): look for them seldom.

    What lives since the boot is never looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def main(setup: WorkerSetup) -> int:
    """The worker's life, in a forked child."""
    setup.row[Cell.PID] = os.getpid()
    return MailWorker(setup).run()
