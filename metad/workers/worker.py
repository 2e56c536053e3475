"""The mail worker: one log, one loop, every protocol.

boot -> ready (one word to the master) -> serve -> retire (SIGHUP), drain (SIGTERM), stop (SIGQUIT)
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from metad import filters, layers, limits
from metad.budget import Budget
from metad.config.model import Config, Listener
from metad.errors import MetadError
from metad.layers.base import LayerContext
from metad.loglines import LogLines
from metad.sessions import import_socket, listeners
from metad.sessions.backpressure import Backpressure
from metad.sessions.context import WorkerContext
from metad.sessions.filters import make_chain
from metad.sessions.give_way import give_way
from metad.sessions.inspector import Inspectors
from metad.sessions.rate_limiter import RateLimiter
from metad.sessions.shared_counts import SharedCounts
from metad.sessions.unfinished import Unfinished
from metad.store.log_table import Semaphore
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.tls import store as tls_store
from metad.tls.certificates import Certificates
from metad.users.dev import open_users
from metad.users.last_logins import LastLogins
from metad.users.login_cache import LoginMemory
from metad.users.policy import Policies

if TYPE_CHECKING:
    from metad.workers.user_mirror import UserMirroring

TICK_SECONDS = 0.25
NULL = Path(os.devnull)
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
# Once a second: the deadlines of sessions, which are coarse, the layer's tick, new certificates.
SECOND_TICKS = 4


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What the master gives to a worker: sockets, shared memory, and how to report readiness."""

    config: Config
    sockets: list[tuple[Listener, socket.socket]]
    area: SharedArea
    semaphore: Semaphore
    row: ProcessRow
    ready: Callable[[], None]
    channel: socket.socket | None = None  # over which the master passes connections of commands


class MailWorker:
    """One worker process after its fork."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._loop = uvloop.new_event_loop()
        self._log = LogLines(2, self._loop.call_soon, as_json=setup.config.log_format == "json")
        self._servers: list[listeners.Server] = []
        self._context = self._boot()
        self._deadline = 0.0
        self._ticks = 0
        self._retirement = 0.0

    def _boot(self) -> WorkerContext:
        """Open everything.  Raises MetadError, OSError, which are reported to the master."""
        setup, loop = self._setup, self._loop
        asyncio.set_event_loop(loop)
        config = setup.config
        layer = layers.of_worker(config)()
        users = open_users(config)
        context = WorkerContext(
            config=config,
            layer=layer,
            users=users,
            logins=LoginMemory(users),
            loop=loop,
            threads=ThreadPoolExecutor(limits.WORKER_THREADS, "blocking"),
            row=setup.row,
            log=self._log,
            limiter=RateLimiter(
                listeners.caps(config),
                SharedCounts(setup.area, setup.row),
                config.limits.message_rate,
            ),
            policies=Policies(config),
            last_logins=LastLogins(config.data / "users"),
            budget=Budget(config.limits.memory // 2),
            backpressure=Backpressure(config.limits.memory // 2),
            unfinished=Unfinished(
                config.limits.unfinished, config.limits.memory // 4 if config.cluster.address else 0
            ),
            certificates=Certificates(config, self._log.line) if tls_store.wanted(config) else None,
            now=loop.time(),
            on_idle=self._leave_if_idle,
        )
        self._start_layer(context)
        context.filters = make_chain(config, loop, setup.row, self._log)
        self._user_mirroring = self._mirror_users(context) if config.cluster.peers else None
        return context

    def _mirror_users(self, context: WorkerContext) -> UserMirroring:
        from metad.workers.user_mirror import UserMirroring

        asks = self._setup.row[Cell.SLOT] == 0
        return UserMirroring(context.layer, context.users, self._report, asks=asks)

    def _start_layer(self, context: WorkerContext) -> None:
        """Any exception of a layer here is the reason why this worker cannot boot."""
        setup = self._setup
        config = setup.config
        layer_context = LayerContext(
            data=config.data,
            settings=config.store,
            area=setup.area,
            semaphore=setup.semaphore,
            row=setup.row,
            loop=self._loop,
            report=self._report,
            hostname=config.hostname,
            options=layers.check(config),
            address_of=context.users.address_of,
            budget=context.budget,
        )
        try:
            context.layer.start(layer_context)
        except (MetadError, OSError):
            raise
        except Exception as error:
            raise MetadError(f"layer {config.store.layer}: {error!r}") from error

    def _report(self, text: str) -> None:
        """Log a line of the store, from any thread."""
        self._loop.call_soon_threadsafe(self._log.line, "store", text)

    def run(self) -> int:
        """Serve until told to stop.  The exit code."""
        loop = self._loop
        loop.set_exception_handler(self._unexpected)
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._thread_failed
        loop.add_signal_handler(signal.SIGHUP, self._retire)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_now)
        for listener, sock in self._setup.sockets:
            self._servers.append(listeners.serve(self._context, listener, sock))
        self._servers.append(import_socket.serve(self._context, self._setup.row[Cell.SLOT]))
        if self._setup.channel is not None:
            Inspectors(self._context, self._setup.channel)
        self._note_lost_users()
        self._tick()
        quieten_collector()
        loop.call_soon(self._begin)
        loop.run_forever()
        self._close()
        return 0

    def _begin(self) -> None:
        """The loop runs now.  Signals stayed blocked until here, because uvloop loses one that
        arrives while it is not running."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._setup.ready()

    def _tick(self) -> None:
        """Heartbeat, deadlines, and the layer's periodic work."""
        context, row = self._context, self._setup.row
        now = context.now = self._loop.time()
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        row[Cell.LOG_LINES_DROPPED] = self._log.dropped
        self._log.tick()
        self._ticks += 1
        if self._ticks % SECOND_TICKS == 0:
            self._every_second(now)
        if context.draining and now > self._deadline:
            self._loop.stop()
        elif context.retired and now > self._retirement:
            self._drain()
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick_layer(self) -> None:
        """A layer that fails here must not stop the heartbeat."""
        try:
            self._context.layer.tick()
        except Exception as error:
            self._log.line("worker", f"warning: layer: {error!r}")

    def _every_second(self, now: float) -> None:
        """Deadlines, last logins, the layer, and certificates that were installed."""
        context = self._context
        self._tick_layer()
        if self._user_mirroring is not None:
            self._user_mirroring.tick()
        self._note_lost_users()
        if context.last_logins.pending:
            context.threads.submit(context.last_logins.flush)
        context.limiter.refresh()
        for session in list(context.sessions):
            session.expire(now)
        give_way(context, now)
        context.unfinished.refresh(str(context.config.data))
        if context.certificates is not None:
            context.certificates.refresh()
        if context.filters is not None:
            context.filters.tick()

    def _note_lost_users(self) -> None:
        with suppress(MetadError):  # the next recipient will show it
            self._setup.row[Cell.USERS_LOST] = self._context.users.lost

    def _retire(self) -> None:
        """A successor accepts now: serve the open sessions to their end, within a deadline."""
        context = self._context
        if context.retired or context.draining:
            return
        context.retired = True
        self._retirement = self._loop.time() + self._setup.config.limits.reload_deadline
        for server in self._servers:
            server.close()
        self._leave_if_idle()

    def _drain(self) -> None:
        """Stop accepting connections; let transactions finish, then answer 421."""
        context = self._context
        if context.draining:
            return
        context.draining = True
        self._deadline = self._loop.time() + self._setup.config.limits.stop_deadline
        for server in self._servers:
            server.close()
        for session in list(context.sessions):
            session.drain()
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        """Exit when no client is connected.

        Checked one turn of the loop later: connections that the loop has accepted by now have
        their sessions then, and there are no new ones.
        """

        def leave() -> None:
            if self._context.is_idle:
                self._loop.stop()

        self._loop.call_soon(leave)

    def _stop_now(self) -> None:
        self._context.draining = True
        self._loop.stop()

    def _close(self) -> None:
        """Every acknowledged message is in the log already: seal it and close everything."""
        context = self._context
        context.on_idle = lambda: None
        self._ticking.cancel()
        for server in self._servers:
            server.close()
        for session in list(context.sessions):
            session.abort()
        context.threads.shutdown(wait=True)
        # One more turn: aborted transports close, a commit under way finishes.
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()
        if context.filters is not None:
            context.filters.stop()
        context.layer.stop()
        context.last_logins.close()
        context.users.close()
        self._log.flush()

    def _unraisable(self, details: sys.UnraisableHookArgs) -> None:
        """An exception in a callback of OpenSSL, for a server name that is not ASCII."""
        self._log.line("worker", f"warning: {details.exc_value!r}")

    def _thread_failed(self, details: threading.ExceptHookArgs) -> None:
        """An uncaught exception in a thread; one of the store's goes on with its next job."""
        name = details.thread.name if details.thread is not None else ""
        self._report(f"panic: thread {name}: {details.exc_value!r}")

    def _unexpected(self, loop: asyncio.AbstractEventLoop, details: dict[str, object]) -> None:
        """An uncaught exception: its connection is dropped, the worker goes on."""
        if is_of_a_handshake(details):
            return
        error = details.get("exception")
        self._log.line("worker", f"panic: {details.get('message')}: {error!r}")
        transport = details.get("transport")
        if isinstance(transport, asyncio.Transport):
            transport.abort()


def quieten_collector() -> None:
    """Run the garbage collector rarely: cycles are rare (sessions break theirs when they close).

    Objects made at boot are never examined again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def places(config: Config) -> list[Path]:
    """What a worker may use under Landlock; its layer and filters may name more."""
    # libuv opens it once as a spare descriptor.  If it cannot, it tries again at every accept.
    spare = [NULL] if NULL.exists() else []
    return [config.data, *spare, *layers.directories(config), *filters.places(config)]


def main(setup: WorkerSetup) -> int:
    """The worker's life, in a forked child."""
    setup.row[Cell.PID] = os.getpid()
    # Before any thread starts: only the loop's thread gets signals, and only while it runs.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    return MailWorker(setup).run()


def is_of_a_handshake(details: Mapping[str, object]) -> bool:
    """Whether it is only that a connection ended in its TLS handshake: uvloop notes that in a
    future of its own, which nothing waits for.  `details`: as a loop's exception handler gets it.
    """
    is_future = str(details.get("message")).startswith("Future exception was never retrieved")
    return is_future and isinstance(details.get("exception"), ConnectionError)
