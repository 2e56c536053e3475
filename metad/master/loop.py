"""The master: forks, watches, replaces, reloads, drains.  One thread, no event loop.

    RECOVERING -> STARTING -> SERVING -> DRAINING -> CLOSING -> ENDED

Rules of this file:

* Signal handlers do nothing: the wakeup descriptor wakes the poll loop, which looks.
* The master opens neither the index nor the users; what must be opened is opened in children.
* It reads no octet of a client.  It waits in one place, and never long.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import posix_ipc

from metad import __version__, config, confine
from metad.config import Config
from metad.control import Connection, ControlServer
from metad.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, MetadError
from metad.listeners import Bound, close_all, rebind
from metad.loglines import LogLines
from metad.master import reload, status
from metad.master.aftercare import Aftercare
from metad.master.children import MASTER_ROW, Child, Family, Wanted
from metad.master.collecting import Collecting
from metad.master.crew import Crew, Generation
from metad.master.options import Options, Snapshot
from metad.master.watch import SemaphoreWatch, Watch
from metad.pidfile import PidFile
from metad.shm import Cell, ProcessRow, Role, SharedArea
from metad.store.table import LogTable
from metad.systemd import Notifier
from metad.workers import collector, mail, upkeep
from metad.workers.base import SIGNALS, Birth, describe

POLL_MILLISECONDS = 250
# What children get beyond the stop deadline before they are killed.
STOP_GRACE_SECONDS = 5.0
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
EXTEND_SECONDS = 30.0


class Phase(Enum):
    """The names are those of the status."""

    RECOVERING = "recovering"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    CLOSING = "closing"
    ENDED = "ended"


@dataclass(slots=True)
class Hub:
    """Everything that a master is given.  `given` is the configuration as its owner wrote it,
    `config` the same as seen from inside a chroot."""

    given: Config
    config: Config
    bound: list[Bound]
    area: SharedArea
    semaphore: posix_ipc.Semaphore
    control: ControlServer
    notifier: Notifier
    boot: str
    options: Options
    pid_file: PidFile
    log: LogLines = field(default_factory=LogLines)


class Master:
    """A running hub's first process."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._given = hub.given
        self._config = hub.config
        self._control = hub.control
        self._phase = Phase.RECOVERING
        self._started = time.monotonic()
        self._stop_deadline = 0.0
        self._extended = 0.0
        self._exit_code = EX_OK
        self._clean = False  # whether the index will be all there when the last worker has ended
        self._failure: MetadError | None = None
        self._announced = False
        self._turn: reload.Turn | None = None
        self._job: Child | None = None  # the first recovery, or the closing of the index
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._family = Family(hub.area, self._close_in_child)
        self._crew = Crew(
            self._family, Generation(1, hub.config, hub.bound), self._worker, self._report
        )
        self._aftercare = Aftercare(self._family, self._recovery_of, self._report)
        self._collecting = Collecting(self._family, hub.area, self._collector, self._report)
        self._watch = Watch(self._report)
        self._semaphore_watch = SemaphoreWatch(hub.semaphore, hub.area, self._report)

    def _report(self, text: str) -> None:
        self._hub.log.line("master", text)

    # -- the whole life

    def run(self) -> int:
        """Until it is stopped; the exit code.  Raises MetadError if it never got ready."""
        self._catch_signals()
        try:
            self._recover()
            while self._phase is not Phase.ENDED:
                self._step()
        finally:
            self._family.kill_all()
            signal.set_wakeup_fd(-1)
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
        if self._failure is not None:
            raise self._failure
        self._report("stopped")
        return self._exit_code

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _step(self) -> None:
        """One turn of the loop."""
        now = time.monotonic()
        for child, code in self._family.reap():
            self._mourn(child, code)
        if self._phase in (Phase.STARTING, Phase.SERVING) and self._turn is None:
            self._crew.tend(now)
        if self._phase in (Phase.STARTING, Phase.SERVING) and self._has_logs:
            self._collecting.tend(now)
        if self._phase is not Phase.RECOVERING:
            self._aftercare.tend(now)
        self._watch.look(self._family, self._config.limits.heartbeat)
        self._semaphore_watch.look(self._family, now)
        self._crew.end_overdue(self._retire_seconds(), now)
        self._look_at_deadlines(now)
        self._advance()
        self._notify(now)
        if self._phase is not Phase.ENDED:
            self._poll()

    def _retire_seconds(self) -> float:
        limits = self._config.limits
        return limits.reload_deadline + limits.stop_deadline

    def _look_at_deadlines(self, now: float) -> None:
        if self._turn is not None and now > self._turn.deadline:
            self._abandon(MetadError("the new workers did not get ready in time"))
        if self._phase is Phase.DRAINING and now > self._stop_deadline:
            self._report("warning: drain deadline passed; killing what is left")
            self._clean = False
            self._exit_code = EX_TEMPFAIL
            self._family.kill_all()

    def _advance(self) -> None:
        """From one phase to the next, when it is time."""
        if self._phase is Phase.STARTING and self._crew.all_ready():
            self._announce()
        elif self._phase is Phase.DRAINING and not len(self._family):
            self._close_index()
        if self._turn is not None and self._crew.successors_ready():
            self._complete(self._turn)

    def _announce(self) -> None:
        """The hub is ready: told to whoever waits for it."""
        self._phase = Phase.SERVING
        if not self._announced:
            self._announced = True
            with suppress(OSError):
                for bound in self._hub.bound:
                    print(f"listening {bound.listener.protocol} {bound.name}")  # noqa: T201
                print("metad: ready", flush=True)  # noqa: T201
            self._hub.pid_file.write()
            self._hub.options.ready()
        self._hub.notifier.ready(f"serving with {len(self._crew.slots)} workers")

    def _notify(self, now: float) -> None:
        notifier = self._hub.notifier
        notifier.watchdog(now)
        if self._phase is not Phase.SERVING and now > self._extended + EXTEND_SECONDS / 2:
            self._extended = now
            notifier.extend(EXTEND_SECONDS)

    # -- children

    def _close_in_child(self) -> None:
        """What a child must not have."""
        self._control.close_descriptors()
        self._hub.notifier.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _places(self) -> list[Path]:
        return mail.places(self._config) if self._config.landlock else []

    def _setup(self) -> upkeep.Setup:
        hub = self._hub
        return upkeep.Setup(self._config.data, hub.area, hub.semaphore, hub.boot)

    def _child(self, role: Role, main: Any) -> Wanted:
        return Wanted(role, 0, lambda row, _: int(main(row)), self._places())

    @property
    def _has_logs(self) -> bool:
        return self._config.store.layer == "log"

    def _collector(self, done: int) -> Wanted:
        """The collector; `done` is the last round that was asked for and done."""
        config, area, semaphore = self._config, self._hub.area, self._hub.semaphore
        asked = self._collecting.asked

        def main(row: ProcessRow, birth: Birth) -> int:
            row[Cell.ROUND] = done
            return collector.main(collector.Setup(config, area, semaphore, row, asked, birth.ready))

        return Wanted(Role.COLLECTOR, 0, main, self._places())

    def _recover(self) -> None:
        """The first child, alone."""
        if self._config.store.layer != "log":
            self._hub.area.clock_offset = time.time_ns() - time.monotonic_ns()
            self._phase = Phase.STARTING
            return
        setup = self._setup()
        wanted = self._child(Role.RECOVERY, lambda row: upkeep.recover_hub(setup, row))
        self._job = self._family.fork(wanted)

    def _recovery_of(self, dead: ProcessRow) -> Wanted:
        setup = self._setup()
        return self._child(
            Role.RECOVERY, lambda row: upkeep.recover_process(setup, row, dead.index)
        )

    def _close_index(self) -> None:
        """Note that the index is clean, if every worker ended as it should."""
        if not self._clean or len(self._aftercare) or self._config.store.layer != "log":
            self._phase = Phase.ENDED
            return
        self._phase = Phase.CLOSING
        setup = self._setup()
        wanted = self._child(Role.RECOVERY, lambda _: upkeep.close_index(setup))
        self._job = self._family.fork(wanted)

    def _worker(self, slot: int, generation: Generation) -> Wanted:
        slots = len(self._crew.slots)
        mine = [
            (one.listener, sock) for one in generation.bound for sock in one.of_slot(slot, slots)
        ]
        area, semaphore = self._hub.area, self._hub.semaphore

        def main(row: ProcessRow, birth: Birth) -> int:
            keep = {sock.fileno() for _, sock in mine}
            for one in {*self._hub.bound, *generation.bound}:
                for sock in one.sockets:
                    if sock.fileno() not in keep:
                        sock.close()
            return mail.main(
                mail.WorkerSetup(generation.config, mine, area, semaphore, row, birth.ready)
            )

        return Wanted(Role.WORKER, slot, main, self._places(), generation.number)

    # -- deaths

    def _mourn(self, child: Child, code: int) -> None:
        self._semaphore_watch.died(child)
        status.keep_figures(self._hub.area, child.row)
        if child is self._job:
            self._job_done(child, code)
        elif child.role == Role.WORKER:
            self._worker_died(child, code)
        elif not self._helper_died(child, code, time.monotonic()) and code:
            self._report(f"warning: {child.name} died: {describe(code)}")
        self._release(child)

    def _helper_died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was one that somebody waits for or replaces."""
        return self._collecting.died(child, code, now) or self._aftercare.died(child, code, now)

    def _release(self, child: Child) -> None:
        """Its row is free, unless logs in the table are still called by it."""
        if self._table().owned_by(child.row.index):
            self._aftercare.add(child)
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
            self._clean = True
            self._phase = Phase.STARTING
        elif self._phase is Phase.RECOVERING:
            self._fail(child, "recovery failed", code)

    def _worker_died(self, child: Child, code: int) -> None:
        successor = child in self._crew.successors
        stopping = self._phase is Phase.DRAINING
        # One that was told to stop before it could listen has no mail: that is its quickest end.
        told = stopping and not child.ready and -code in (signal.SIGTERM, signal.SIGQUIT)
        code = 0 if told else code
        if stopping and code:
            self._clean = False
            self._exit_code = self._exit_code or EX_TEMPFAIL
        self._crew.died(child, code, expected=stopping)
        if successor and self._turn is not None:
            why = child.trouble or describe(code)
            self._abandon(MetadError(f"a new worker cannot start: {why}"))
        elif self._phase is Phase.STARTING and not self._announced and child.trouble:
            self._fail(child, f"worker {child.slot} cannot start", code)

    def _fail(self, child: Child, what: str, code: int) -> None:
        """The start has failed: end everything, and say why."""
        why = child.trouble or describe(code)
        self._failure = MetadError(f"{what}: {why}")
        self._failure.exit_code = child.trouble_code if child.trouble else max(code, EX_SOFTWARE)
        self._report(f"fatal: {self._failure}; stopping")
        self._exit_code = self._failure.exit_code
        self._stop(now=True)

    # -- stopping

    def _stop(self, *, now: bool) -> None:
        """Drain, or end at once.  A second call may only make it quicker."""
        if self._phase in (Phase.CLOSING, Phase.ENDED):
            return
        if self._phase is not Phase.DRAINING:
            self._report("stopping" if now else "draining")
            self._hub.notifier.stopping()
        if self._turn is not None:
            self._abandon(MetadError("the hub is stopping"))
        if self._job is not None:
            self._job.signal(signal.SIGKILL)  # a recovery may be cut off anywhere
        self._phase = Phase.DRAINING
        self._stop_deadline = (
            time.monotonic() + self._config.limits.stop_deadline + STOP_GRACE_SECONDS
        )
        for child in self._family:
            if child.role != Role.RECOVERY:
                child.signal(signal.SIGQUIT if now else signal.SIGTERM)

    # -- reloading

    def _reload(self, snapshot: Snapshot, connection: Connection | None) -> None:
        """Begin a change of generation; the answer comes when it has succeeded or failed."""
        if self._phase is not Phase.SERVING or self._turn is not None:
            raise reload.NotNowError("the hub is starting, stopping or reloading; try again")
        old, bound = self._given, self._hub.bound
        plan = reload.plan(old, snapshot.parse(old.data), bound, _may_bind)
        listening, fresh, rest = rebind(bound, plan.config)
        try:
            inner = _inside(plan.config, self._config)
            generation = Generation(self._crew.generation.number + 1, inner, listening)
            self._crew.raise_successors(generation)
        except BaseException:
            close_all(fresh)
            raise
        self._hub.notifier.reloading()
        self._turn = reload.Turn(
            plan, generation, snapshot, fresh, rest, connection, reload.deadline()
        )
        self._report("reloading")

    def _complete(self, turn: reload.Turn) -> None:
        self._turn = None
        self._crew.succeed(turn.generation)
        close_all(turn.rest)
        self._hub.bound = turn.generation.bound
        self._given, self._config = turn.plan.config, turn.generation.config
        self._collecting.renew(signal.SIGTERM)
        if self._hub.options.snapshot is not None:
            self._hub.options.snapshot.write(turn.snapshot)
        for key, why in turn.plan.kept.items():
            self._report(f"warning: {key} needs a restart: {why}")
        self._report(f"reloaded: {', '.join(turn.plan.changed) or 'nothing changed'}")
        self._announce()
        turn.answer()

    def _abandon(self, error: MetadError) -> None:
        turn, self._turn = self._turn, None
        self._crew.kill_successors()
        self._report(f"warning: not reloaded: {error}")
        if turn is not None:
            turn.give_up(error)
            if self._phase is Phase.SERVING:
                self._announce()

    def _reload_by_signal(self) -> None:
        """SIGHUP: nobody hands over a configuration, so it is read as this user."""
        try:
            source, content = config.read(self._given.source)
            self._reload(Snapshot(content, str(source) if source else None), None)
        except MetadError as error:
            hint = "; use metad reload" if self._given.chroot else ""
            self._report(f"warning: not reloaded: {error}{hint}")
            self._announce_again()

    def _announce_again(self) -> None:
        if self._phase is Phase.SERVING and self._turn is None:
            self._hub.notifier.reloading()
            self._announce()

    # -- waiting

    def _poll(self) -> None:
        """Wait for a signal, a client of the control socket, a word of a child."""
        pipes = self._family.pipes()
        poller = select.poll()
        for fd in (self._wake_r, *self._control.filenos(), *pipes):
            poller.register(fd, select.POLLIN)
        for fd in self._control.writers():
            poller.register(fd, select.POLLIN | select.POLLOUT)
        for fd, events in poller.poll(POLL_MILLISECONDS):
            if fd == self._wake_r:
                self._signals()
            elif fd in pipes:
                self._family.hear(pipes[fd])
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
            self._reload_by_signal()

    # -- the control socket

    def _serve(self, connection: Connection | None, events: int) -> None:
        if connection is None:
            return
        if events & select.POLLOUT:
            connection.flush()
        if not events & ~select.POLLOUT or connection.closed:
            return
        for request in connection.feed():
            try:
                self._command(connection, request)
            except MetadError as error:
                connection.reply_error(error)

    def _command(self, connection: Connection, request: dict[str, Any]) -> None:
        command = request["command"]
        if command == "status":
            connection.reply(self._status())
        elif command == "stop":
            connection.reply({"pid": os.getpid()})
            self._stop(now=request.get("now") is True)
        elif command == "reload":
            self._reload(Snapshot.from_json(request), connection)
        elif command == "gc" and self._has_logs:
            connection.reply(self._collecting.ask(full=request.get("full") is True))
        elif command == "gc-progress" and self._has_logs:
            connection.reply(self._collecting.progress())
        else:
            raise MetadError(f"unknown command {command!r}")

    def _status(self) -> dict[str, Any]:
        rows = self._table().rows()
        owned: dict[int, list[int]] = {}
        for row in rows:
            owned.setdefault(row.owner - 1, []).append(row.number)
        options = self._hub.options
        return {
            "pid": os.getpid(),
            **({"nanny": options.nanny} if options.nanny else {}),
            "version": __version__,
            "uptime": round(time.monotonic() - self._started, 1),
            "state": "reloading" if self._turn else self._phase.value,
            "generation": self._crew.generation.number,
            "config": str(self._given.source) if self._given.source else None,
            "data": str(self._given.data),
            "chroot": str(self._given.chroot) if self._given.chroot else None,
            "landlock": _landlock(self._config),
            **status.totals(self._hub.area, self._family),
            "listen": [
                {"protocol": one.listener.protocol, "address": one.name} for one in self._hub.bound
            ],
            "workers": status.workers(self._crew, owned),
            "processes": status.others(self._family),
            "logs": [{**row._asdict(), "state": row.state.name.lower()} for row in rows],
        }


def _landlock(config: Config) -> str:
    found = confine.version()
    if not config.landlock:
        return "off"
    return f"in force (version {found})" if found else "not in this kernel"


def _inside(new: Config, old: Config) -> Config:
    """`new` as seen from where `old` was seen."""
    return replace(new, data=old.data)


def _may_bind(port: int) -> bool:
    """Whether an unprivileged process may."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "rb") as file:
            return port >= int(file.read())
    except (OSError, ValueError):
        return port >= 1024
