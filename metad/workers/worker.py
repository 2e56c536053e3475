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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvloop

from metad import layers, limits
from metad.budget import Budget
from metad.config.model import Config, Listener
from metad.errors import MetadError
from metad.layers.base import LayerContext
from metad.loglines import LogLines
from metad.sessions import import_socket, listeners
from metad.sessions.backpressure import Backpressure
from metad.sessions.context import WorkerContext
from metad.sessions.filters import accept
from metad.sessions.rate_limiter import RateLimiter
from metad.sessions.shared_counts import SharedCounts
from metad.sessions.starttls import Certificates
from metad.store.log_table import Semaphore
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.tls import store as tls_store
from metad.users.database import UserDatabase
from metad.users.last_logins import LastLogins
from metad.users.login_cache import LoginMemory
from metad.users.policy import Policies

TICK_SECONDS = 0.25
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
# Every so many ticks: deadlines of sessions, which are coarse, and new certificates.
LOOK_TICKS = 4


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
        self._servers: list[listeners.Server] = []
        self._context = self._boot()
        self._deadline = 0.0
        self._ticks = 0
        self._retirement = 0.0

    def _boot(self) -> WorkerContext:
        """Open everything.  Raises MetadError, OSError: the master hears of it."""
        setup, loop = self._setup, self._loop
        asyncio.set_event_loop(loop)
        config = setup.config
        layer = layers.find(config.store.layer)()
        users = UserDatabase(
            config.data / "users", create=True, iterations=config.users.scram_iterations
        )
        context = WorkerContext(
            config=config,
            layer=layer,
            users=users,
            logins=LoginMemory(users),
            filter=accept,
            loop=loop,
            threads=ThreadPoolExecutor(limits.WORKER_THREADS, "blocking"),
            row=setup.row,
            log=self._log,
            gate=RateLimiter(
                listeners.caps(config),
                SharedCounts(setup.area, setup.row),
                config.limits.message_rate,
            ),
            policies=Policies(config),
            last_logins=LastLogins(config.data / "users"),
            budget=Budget(config.limits.memory // 2),
            waiting=Backpressure(config.limits.memory // 2),
            certificates=Certificates(config, self._log.line) if tls_store.wanted(config) else None,
            now=loop.time(),
            on_idle=self._leave_if_idle,
        )
        self._start_layer(context)
        return context

    def _start_layer(self, context: WorkerContext) -> None:
        """What a layer raises here, whatever it is, is why this worker cannot boot."""
        setup = self._setup
        config = setup.config
        given = LayerContext(
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
            context.layer.start(given)
        except (MetadError, OSError):
            raise
        except Exception as error:
            raise MetadError(f"layer {config.store.layer}: {error!r}") from error

    def _report(self, text: str) -> None:
        """A line of the store, from whichever thread."""
        self._loop.call_soon_threadsafe(self._log.line, "store", text)

    def run(self) -> int:
        """Serve until told to stop.  The exit code."""
        loop = self._loop
        loop.set_exception_handler(self._unexpected)
        sys.unraisablehook = self._unraisable
        loop.add_signal_handler(signal.SIGHUP, self._retire)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGQUIT, self._stop_now)
        for listener, sock in self._setup.sockets:
            self._servers.append(listeners.serve(self._context, listener, sock))
        self._servers.append(import_socket.serve(self._context, self._setup.row[Cell.SLOT]))
        self._tick()
        quieten_collector()
        loop.call_soon(self._begin)
        loop.run_forever()
        self._close()
        return 0

    def _begin(self) -> None:
        """The loop turns.  Not before could it hear a signal: uvloop loses one that comes while
        it stands still."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._setup.ready()

    def _tick(self) -> None:
        """Heartbeat, deadlines, the layer's odd jobs."""
        context, row = self._context, self._setup.row
        now = context.now = self._loop.time()
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        row[Cell.LOG_LINES_DROPPED] = self._log.dropped
        self._ticks += 1
        if self._ticks % LOOK_TICKS == 0:
            self._look(now)
        self._tick_layer()
        if context.draining and now > self._deadline:
            self._loop.stop()
        elif context.retired and now > self._retirement:
            self._drain()
        self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick_layer(self) -> None:
        """A layer that fails here must not stop the heart."""
        try:
            self._context.layer.tick()
        except Exception as error:
            self._log.line("worker", f"warning: layer: {error!r}")

    def _look(self, now: float) -> None:
        """Deadlines, last logins, and certificates that were installed."""
        context = self._context
        if context.last_logins.pending:
            context.threads.submit(context.last_logins.flush)
        context.gate.look()
        for session in list(context.sessions):
            session.expire(now)
        if context.certificates is not None:
            context.certificates.look()

    def _retire(self) -> None:
        """A successor has the sockets: serve who is here to the end, with a deadline."""
        context = self._context
        if context.retired or context.draining:
            return
        context.retired = True
        self._retirement = self._loop.time() + self._setup.config.limits.reload_deadline
        for server in self._servers:
            server.close()
        self._leave_if_idle()

    def _drain(self) -> None:
        """Take no connection more; let transactions finish, then say 421."""
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
        """Leave once nobody is here.  Asked a turn later: whoever the loop had accepted by now has
        shown itself then, and nobody comes any more."""

        def leave() -> None:
            if self._context.is_idle:
                self._loop.stop()

        self._loop.call_soon(leave)

    def _stop_now(self) -> None:
        self._context.draining = True
        self._loop.stop()

    def _close(self) -> None:
        """Every acknowledged message is in the log already; seal it and let go."""
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
        context.layer.stop()
        context.last_logins.close()
        context.users.close()
        self._log.flush()

    def _unraisable(self, details: sys.UnraisableHookArgs) -> None:
        """Where nobody can catch: in a callback of OpenSSL, for a server name that is no ASCII."""
        self._log.line("worker", f"warning: {details.exc_value!r}")

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


def places(config: Config) -> list[Path]:
    """The directories that a worker may use, under Landlock: its layer may name more."""
    return [config.data, *layers.directories(config)]


def main(setup: WorkerSetup) -> int:
    """The worker's life, in a forked child."""
    setup.row[Cell.PID] = os.getpid()
    # Before any thread: none but the loop's is to get a signal, and that one only when it turns.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    return MailWorker(setup).run()
