"""The master: spawns, watches, replaces, reloads, drains.  One thread, no event loop.

    RECOVERING -> STARTING -> SERVING -> DRAINING -> CLOSING -> ENDED
         ^--------- REBUILDING <-|

Rules of this file:

* Signal handlers do nothing: the wakeup descriptor wakes the poll loop, which reads the signals.
* The master opens neither the index nor the users database; only children do.
* It reads no byte from a mail client.  It waits in one place, and never for long.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import Any

from metad.control import Connection
from metad.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, MetadError, OsError
from metad.master import attach, control_loop, status
from metad.master.certificate_watch import CertificateWatch
from metad.master.children import MASTER_ROW, Child, ChildTable
from metad.master.collector_control import CollectorControl
from metad.master.health_watch import HealthWatch
from metad.master.hub import Hub
from metad.master.index_watch import IndexWatch
from metad.master.phase import Phase
from metad.master.recovery_jobs import RecoveryJobs
from metad.master.reload import Reloading
from metad.master.single_children import SingleChildren
from metad.master.spawn import ChildSpecs
from metad.master.watchdog import BOOT_SECONDS, SemaphoreWatch, Watchdog
from metad.master.worker_pool import Generation, WorkerPool
from metad.store import hub_time
from metad.store.log_table import LogTable
from metad.system.osio import Osio
from metad.system.privileges import adopt_orphans
from metad.system.shared_memory import Role
from metad.workers.child import SIGNALS, describe

POLL_MILLISECONDS = 250
# How long children may pass the stop deadline before they are killed.
STOP_GRACE_SECONDS = 5.0
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
EXTEND_SECONDS = 30.0


class Master:
    """The life of a running hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._control = hub.control
        self._phase = Phase.RECOVERING
        self._started = time.monotonic()
        self._stop_deadline = 0.0
        self._extended = 0.0
        self._exit_code = EX_OK
        self._clean = False  # the index will be complete when the last worker has ended
        self._failure: MetadError | None = None
        self._announced = False
        self._job: Child | None = None  # the first recovery, or the closing of the index
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._children = ChildTable(hub.area, self._close_in_child)
        self._control.is_ours = self._children.descends
        self._specs = specs = ChildSpecs(hub)
        first = Generation(1, hub.config, hub.bound)
        self._pool = WorkerPool(self._children, first, specs.worker, self._report)
        self._recovery_jobs = RecoveryJobs(self._children, specs.recovery_of, self._report)
        self._collector = CollectorControl(self._children, hub.area, specs.collector, self._report)
        self._reloading = Reloading(hub, self._pool, self._reloaded, self._report)
        self._watchdog = Watchdog(self._report)
        self._index_watch = IndexWatch(hub, self._report)
        self._certificates = CertificateWatch(hub, self._report)
        self._health = HealthWatch(hub, lambda: self._table().rows(), self._report)
        self._singles = SingleChildren(hub, self._children, specs, self._report)
        self._hub_time = hub_time.HubTime(Osio(), hub.area, self._report)
        self._semaphore_watch = SemaphoreWatch(hub.semaphore, hub.area, self._report)

    def _report(self, text: str) -> None:
        self._hub.log.line("master", text)

    # -- the main loop

    def run(self) -> int:
        """Run until stopped; the exit code.  Raises MetadError if the hub never became ready."""
        self._catch_signals()
        adopt_orphans()
        try:
            self._recover()
            while self._phase is not Phase.ENDED:
                self._step()
        finally:
            self._children.kill_all()
            signal.set_wakeup_fd(-1)
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
        if self._failure is not None:
            raise self._failure
        self._report("executing the program again" if self._hub.takeover.wanted else "stopped")
        return self._exit_code

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked since the start began

    def _step(self) -> None:
        """One turn of the loop."""
        now = time.monotonic()
        for child, code in self._children.reap():
            self._reap(child, code)
        if self._phase in (Phase.STARTING, Phase.SERVING) and self._reloading.change is None:
            self._pool.manage(now)
        if self._phase in (Phase.STARTING, Phase.SERVING) and self._hub.has_logs:
            self._collector.manage(now)
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._singles.manage(now)
            self._hub_time.look()
        if self._phase not in (Phase.RECOVERING, Phase.REBUILDING):
            self._recovery_jobs.manage(now)
        self._watchdog.look(self._children, self._heartbeat())
        self._semaphore_watch.look(self._children, now)
        self._pool.end_overdue(self._retire_seconds(), now)
        self._look_at_deadlines(now)
        if self._phase is Phase.SERVING and self._index_watch.is_suspect(now):
            self._index_watch.end_children(self._children, now)
            self._phase = Phase.REBUILDING
        self._certificates.look(now)
        self._health.look(now, self._busy)
        self._hub.log.tick()
        self._reloading.advance(now)
        self._advance()
        self._notify(now)
        if self._phase is not Phase.ENDED:
            self._poll()

    def _heartbeat(self) -> float:
        """The limit in seconds.  A draining worker writes its seal without a heartbeat."""
        least = BOOT_SECONDS if self._phase is Phase.DRAINING else 0.0
        return max(self._hub.config.limits.heartbeat, least)

    def _retire_seconds(self) -> float:
        limits = self._hub.config.limits
        return limits.reload_deadline + limits.stop_deadline

    def _look_at_deadlines(self, now: float) -> None:
        if self._phase is Phase.DRAINING and now > self._stop_deadline:
            self._report("warning: drain deadline passed; killing the remaining processes")
            self._clean = False
            self._exit_code = EX_TEMPFAIL
            self._children.kill_all()

    def _advance(self) -> None:
        """Enter the next phase when its condition holds."""
        if self._phase is Phase.STARTING and self._pool.all_ready():
            self._announce()
        elif self._phase is Phase.REBUILDING and self._index_watch.all_ended(self._children):
            self._recovery_jobs.forget()
            self._phase = Phase.RECOVERING
            self._recover()
        elif self._phase is Phase.DRAINING and not len(self._children):
            self._close_index()

    def _reloaded(self) -> None:
        """A reload has ended: a new configuration is in force, or the old one stays."""
        self._collector.renew(signal.SIGTERM)
        self._singles.renew()
        if self._phase is Phase.SERVING:
            self._announce()

    def _announce(self) -> None:
        """The hub is ready: tell the caller, systemd and the PID file."""
        self._phase = Phase.SERVING
        if not self._announced:
            self._announced = True
            options = self._hub.options
            options.pid_file.write(options.nanny or os.getpid())
            with suppress(OSError):
                for bound in self._hub.bound:
                    print(f"listening {bound.listener.protocol} {bound.name}")  # noqa: T201
                print("metad: ready", flush=True)  # noqa: T201
            options.ready()
        status = f"serving with {len(self._pool.slots)} workers"
        self._hub.notifier.ready(status, self._hub.options.nanny or os.getpid())

    def _notify(self, now: float) -> None:
        notifier = self._hub.notifier
        notifier.watchdog(now)
        if self._phase is not Phase.SERVING and now > self._extended + EXTEND_SECONDS / 2:
            self._extended = now
            notifier.extend(EXTEND_SECONDS)

    # -- children

    def _close_in_child(self) -> None:
        """Close what a child must not have."""
        self._control.close_descriptors()
        self._hub.notifier.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        options = self._hub.options
        for fd in (options.pid_file.fileno(), options.snapshot.fd if options.snapshot else -1):
            if fd >= 0:
                os.close(fd)

    def _recover(self) -> None:
        """Start the recovery that runs first, alone."""
        if not self._hub.has_logs:
            hub_time.begin(Osio(), self._hub.area, 0)
            self._phase = Phase.STARTING
        else:
            self._job = self._children.fork(self._specs.first_recovery())

    def _close_index(self) -> None:
        """Record that the index is clean, if every worker ended properly."""
        self._phase = Phase.ENDED
        if self._clean and not len(self._recovery_jobs) and self._hub.has_logs:
            try:
                self._job = self._children.fork(self._specs.closing())
                self._phase = Phase.CLOSING
            except OsError as error:  # the next start checks the index
                self._report(f"warning: cannot record that the index is clean: {error}")
                self._exit_code = EX_TEMPFAIL

    # -- dead children

    def _reap(self, child: Child, code: int) -> None:
        self._semaphore_watch.died(child)
        status.keep_figures(self._hub.area, child.row, code)
        self._index_watch.died(child, code)
        child.row.forget_clients()
        if child is self._job:
            self._job_done(child, code)
        elif child.role == Role.WORKER:
            self._worker_died(child, code)
        elif not self._helper_died(child, code, time.monotonic()) and code:
            self._report(f"warning: {child.name} died: {describe(code)}")
        self._release(child)

    def _helper_died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was the collector, a recovery, the monitor or the directory."""
        helpers = (self._collector, self._singles, self._recovery_jobs)
        return any(one.died(child, code, now) for one in helpers)

    def _release(self, child: Child) -> None:
        """Free its row, unless the log table still names it as an owner."""
        if self._table().owned_by(child.row.index):
            self._recovery_jobs.add(child)
        else:
            child.row.clear()

    def _table(self) -> LogTable:
        area = self._hub.area
        return LogTable(area, self._hub.semaphore, area.process(MASTER_ROW))

    def _job_done(self, child: Child, code: int) -> None:
        self._job = None
        if self._phase is Phase.CLOSING:
            self._phase = Phase.ENDED
        elif code == EX_OK and self._phase is Phase.RECOVERING:
            self._clean, self._phase = True, Phase.STARTING
        elif self._phase is Phase.RECOVERING and self._index_watch.recovers_again(child, code):
            self._recover()
        elif self._phase is Phase.RECOVERING:
            self._fail(child, "recovery failed", code)

    def _worker_died(self, child: Child, code: int) -> None:
        successor = child in self._pool.successors
        stopping = self._phase is Phase.DRAINING
        # A worker stopped before it was ready has no mail: dying by the signal is a proper end.
        told = stopping and not child.ready and -code in (signal.SIGTERM, signal.SIGQUIT)
        code = 0 if told else code
        if stopping and code:
            self._clean = False
            self._exit_code = self._exit_code or EX_TEMPFAIL
        self._pool.died(child, code, expected=stopping)
        if successor:
            self._reloading.failed(child.boot_error or describe(code))
            return
        hopeless = child.boot_error or self._pool.cannot_begin(child.slot)
        if hopeless and self._phase is Phase.STARTING and not self._announced:
            self._fail(child, f"worker {child.slot} cannot start", code)

    def _fail(self, child: Child, what: str, code: int) -> None:
        """The start has failed: report why and stop."""
        remedy = "" if child.boot_error else "the lines above say more"
        failure = MetadError(f"{what}: {child.boot_error or describe(code)}", remedy=remedy)
        failure.exit_code = child.boot_error_code if child.boot_error else max(code, EX_SOFTWARE)
        self._report(f"fatal: {failure.line}; stopping")
        self._failure, self._exit_code = failure, failure.exit_code
        self._stop(now=True)

    # -- stopping

    def _stop(self, *, now: bool, takeover: bool = False) -> None:
        """Drain, or stop at once.  A second call can only make it quicker."""
        if not takeover:
            self._hub.stopping()
        if self._phase in (Phase.CLOSING, Phase.ENDED):
            return
        if self._phase is not Phase.DRAINING:
            self._report("stopping" if now else "draining")
            limits = self._hub.config.limits
            self._stop_deadline = time.monotonic() + limits.stop_deadline + STOP_GRACE_SECONDS
        self._reloading.abandon(MetadError("the hub is stopping", remedy="metad start, later"))
        if self._job is not None:
            self._job.signal(signal.SIGKILL)  # a recovery may be killed at any point
        self._phase = Phase.DRAINING
        for child in self._children:
            if child.role != Role.RECOVERY:
                child.signal(signal.SIGQUIT if now else signal.SIGTERM)

    # -- waiting

    def _poll(self) -> None:
        """Wait for a signal, a client of the control socket or a message from a child."""
        pipes = self._children.pipes()
        poller = select.poll()
        for fd in (self._wake_r, *self._control.filenos(), *pipes):
            poller.register(fd, select.POLLIN)
        for fd in self._control.writers():
            poller.register(fd, select.POLLIN | select.POLLOUT)
        for fd, events in poller.poll(POLL_MILLISECONDS):
            if fd == self._wake_r:
                self._signals()
            elif fd in pipes:
                self._children.hear(pipes[fd])
            elif fd == self._control.fileno():
                self._control.accept()
            else:
                self._serve(self._control.connection(fd), events)
        self._control.sweep()

    def _signals(self) -> None:
        caught: set[int] = set()
        with suppress(BlockingIOError):
            caught = set(os.read(self._wake_r, 512))
        if signal.SIGQUIT in caught:
            self._stop(now=True)
        elif caught & STOP_SIGNALS:
            self._stop(now=False)
        elif signal.SIGHUP in caught:
            self._reloading.by_signal(self._phase is Phase.SERVING)

    # -- the control socket

    def _serve(self, connection: Connection | None, events: int) -> None:
        if connection is None:
            return
        if events & select.POLLOUT:
            connection.flush()
        if not events & ~select.POLLOUT or connection.closed:
            return
        for request in connection.feed():
            control_loop.carry_out(connection, request, self._command, self._report)

    def _command(self, connection: Connection, request: dict[str, Any]) -> None:
        command = request["command"]
        if command == "status":
            connection.reply(self._status())
        elif command == "stop":
            connection.reply({"pid": os.getpid()})
            self._stop(now=request.get("now") is True)
        elif command == "reload":
            if self._reloading.request(connection, request, self._phase is Phase.SERVING):
                self._stop(now=False, takeover=True)
        elif command in ("gc", "gc-progress") and self._hub.has_logs:
            connection.reply(self._collector.answer(request))
        elif command == "attach":
            attach.reply(connection, self._children)
        elif command == "figures":
            figures = status.figures(self._hub, self._table().rows())
            connection.reply(figures | self._health.facts(self._busy))
        elif command == "config":
            connection.reply(status.configuration(self._hub))
        elif command == "time":
            connection.reply(self._hub_time.answer(accept=request.get("accept") is True))
        else:
            raise MetadError(f"unknown command {command!r}", remedy="metad reload")

    @property
    def _busy(self) -> str:
        """What the hub is doing instead of simply serving; empty if it serves."""
        return "reloading" if self._reloading.change else self._phase.busy

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 1),
            **self._health.facts(self._busy),
            **status.of_hub(self._hub, self._children, self._pool, self._table().rows()),
        }
