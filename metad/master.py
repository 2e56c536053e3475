"""The master: binds, makes shared memory, forks, watches, drains.  One thread, no event loop.

    start -> lock DATA -> bind -> shared memory -> recovery child -> workers -> ready
          -> poll (signals, control socket, heartbeats) -> drain -> closing child -> gone

Rules of this file:

* Signal handlers do nothing: the wakeup descriptor wakes the poll loop, which looks.
* The master opens neither the index nor the users; what must be opened is opened in children.
* It reads no octet of a client.  Whatever it waits for has a deadline.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import posix_ipc

from metad import __version__, privileges, shm
from metad.config import Config
from metad.control import Connection, ControlServer
from metad.errors import (
    EX_OK,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    ConfigError,
    MetadError,
    OsError,
    UnavailableError,
)
from metad.listeners import Bound, bind_all, close_all
from metad.loglines import LogLines
from metad.osio import Osio, read_file, write_file
from metad.shm import Cell, ProcessRow, Role, SharedArea
from metad.store import table
from metad.store.identity import open_or_make_store
from metad.store.table import LogTable, State
from metad.workers import mail, upkeep
from metad.workers.base import EXIT_BOOT, run_child

POLL_SECONDS = 0.25
LOCK_SECONDS = 3.0
DRAIN_SECONDS = mail.DRAIN_SECONDS + 5.0
HEARTBEAT_SECONDS = float(os.environ.get("METAD_HEARTBEAT", "30"))
ABORT_SECONDS = 2.0
QUICK_DEATH_SECONDS = 5.0
MOST_BACKOFF_SECONDS = 10.0
MASTER_ROW = 0


@dataclass(slots=True)
class Child:
    """A process of ours: what it is, since when, and whether it said that it is ready."""

    pid: int
    role: Role
    slot: int
    row: ProcessRow
    started: float
    ready_fd: int = -1
    ready: bool = False
    aborted: float = 0.0


@dataclass(slots=True)
class Slot:
    """A place for one worker: when the next may start, how often the last ones died quickly."""

    number: int
    child: Child | None = None
    not_before: float = 0.0
    quick_deaths: int = 0


@dataclass(slots=True)
class Hub:
    """Everything that the master holds."""

    config: Config
    osio: Osio = field(default_factory=Osio)
    log: LogLines = field(default_factory=LogLines)
    bound: list[Bound] = field(default_factory=list)
    lock_fd: int = -1


def start(config: Config) -> int:
    """Run a hub until it is stopped; the exit code.  Raises MetadError before it is up."""
    hub = Hub(config)
    user = None
    if os.geteuid() == 0:
        if config.user is None:
            raise ConfigError("user: not set; the hub does not run as root")
        user = privileges.find_user(config.user)
        privileges.give_data_to(config.data, user)
    hub.bound = bind_all(config)
    try:
        if user is not None:
            privileges.become(user)
        _prepare_data(config.data)
        hub.lock_fd = take_lock(config.data)
        return Master(hub).run()
    finally:
        close_all(hub.bound)
        if hub.lock_fd >= 0:
            os.close(hub.lock_fd)


def _prepare_data(data: Path) -> None:
    os.umask(0o077)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
            raise OsError(f"{data}: not writable by this user")
    except OSError as error:
        raise OsError(f"{data}: {error.strerror}") from None


def take_lock(data: Path) -> int:
    """The lock that says "a hub lives here".  Its descriptor; every child inherits it.

    Raises UnavailableError, naming the pid of the living hub.  A hub that was killed this moment
    is given a little time to be gone.
    """
    path = data / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            if time.monotonic() > deadline or _is_alive(pid):
                os.close(fd)
                raise UnavailableError(f"{data}: a hub runs here already, pid {pid}") from None
            select.select([], [], [], 0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _is_alive(pid: str) -> bool:
    """Whether that process still runs (a zombie does not)."""
    try:
        with open(f"/proc/{int(pid)}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, ValueError, IndexError):
        return False


class Master:
    """A running hub's first process."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._config = hub.config
        self._log = hub.log
        self._children: dict[int, Child] = {}
        self._slots = [Slot(number) for number in range(hub.config.store.workers)]
        self._started = time.monotonic()
        self._stopping = False
        self._stop_deadline = 0.0
        self._exit_code = EX_OK
        self._announced = False
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._suspect_semaphore = False

    # -- the whole life

    def run(self) -> int:
        self._catch_signals()
        store = open_or_make_store(self._hub.osio, self._config.data)
        self._clean_leftovers()
        self._area, self._semaphore = self._make_shared(table.segment_name(store.store_id))
        try:
            self._control = ControlServer(self._config.data / "run" / "control")
            try:
                self._recover()
                self._loop()
                self._close_index()
            finally:
                self._kill_children()
                self._control.close()
        finally:
            self._area.unlink()
            with suppress(FileNotFoundError):
                self._segment_file.unlink()
        self._log.line("master", "stopped")
        return self._exit_code

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    @property
    def _segment_file(self) -> Path:
        return self._config.data / "run" / "segment"

    def _clean_leftovers(self) -> None:
        """We hold DATA/lock: whatever segment is noted here belonged to a dead hub."""
        with suppress(FileNotFoundError):
            name = read_file(self._hub.osio, str(self._segment_file)).decode("ascii", "replace")
            if name.startswith("/metad-"):
                shm.unlink(name)

    def _make_shared(self, name: str) -> tuple[SharedArea, posix_ipc.Semaphore]:
        try:
            shm.unlink(name)
            write_file(self._hub.osio, str(self._segment_file), name.encode())
            area = SharedArea.create(name)
            semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=1)
        except (OSError, posix_ipc.Error) as error:
            shm.unlink(name)
            raise OsError(f"shared memory: {error}") from None
        return area, semaphore

    # -- children

    def _fork(self, role: Role, slot: int, main: Callable[[ProcessRow], int]) -> Child:
        row = self._free_row()
        row.clear()
        row[Cell.ROLE] = role
        row[Cell.SLOT] = slot
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            row[Cell.PID] = os.getpid()
            run_child(parent, self._close_in_child, lambda: main(row))
        row[Cell.PID] = pid
        child = Child(pid, role, slot, row, time.monotonic())
        self._children[pid] = child
        return child

    def _free_row(self) -> ProcessRow:
        used = {child.row.index for child in self._children.values()} | {MASTER_ROW}
        for index in range(shm.PROCESSES):
            if index not in used and not self._area.process(index)[Cell.PID]:
                return self._area.process(index)
        raise OsError("no row left for a process")

    def _close_in_child(self) -> None:
        """What a child must not have: control socket, wakeup pipe, other children's pipes."""
        self._control.close_descriptors()
        os.close(self._wake_r)
        os.close(self._wake_w)
        for child in self._children.values():
            if child.ready_fd >= 0:
                os.close(child.ready_fd)

    def _recover(self) -> None:
        """Recovery runs first and alone.  Raises MetadError if it fails."""
        if self._config.store.layer != "log":
            self._area.clock_offset = time.time_ns() - time.monotonic_ns()
            return
        setup = upkeep.Setup(self._config.data, self._area, self._semaphore)
        child = self._fork(Role.RECOVERY, 0, lambda row: upkeep.recover_hub(setup, row))
        code = self._wait_for(child)
        if code != 0:
            raise MetadError(f"recovery failed (exit {code}); see the log")
        child.row.clear()

    def _close_index(self) -> None:
        """Note that the index is clean, if every worker ended as it should."""
        if self._exit_code == EX_OK and self._config.store.layer == "log":
            setup = upkeep.Setup(self._config.data, self._area, self._semaphore)
            child = self._fork(Role.RECOVERY, 0, lambda row: upkeep.close_index(setup))
            self._wait_for(child)

    def _wait_for(self, child: Child) -> int:
        """Wait for a child that does a bounded job; a stop request meanwhile kills it."""
        while True:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self._children[pid]
                return os.waitstatus_to_exitcode(status)
            select.select([self._wake_r], [], [], POLL_SECONDS)
            if self._drain_wakeups() & {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
                os.kill(child.pid, signal.SIGKILL)

    def _start_worker(self, slot: Slot) -> None:
        ready_r, ready_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def ready() -> None:
            os.write(ready_w, b"R")

        def main(row: ProcessRow) -> int:
            os.close(ready_r)
            for one in self._hub.bound:
                for sock in one.sockets:
                    if sock is not one.of_slot(slot.number):
                        sock.close()
            return mail.main(
                mail.WorkerSetup(
                    self._config,
                    [(one.listener, one.of_slot(slot.number)) for one in self._hub.bound],
                    self._area,
                    self._semaphore,
                    row,
                    ready,
                )
            )

        slot.child = self._fork(Role.WORKER, slot.number, main)
        slot.child.ready_fd = ready_r
        os.close(ready_w)

    # -- the loop

    def _loop(self) -> None:
        while True:
            self._reap()
            if self._stopping and not self._workers():
                return
            self._tend_slots()
            self._watch()
            self._poll()

    def _workers(self) -> list[Child]:
        return list(self._children.values())

    def _tend_slots(self) -> None:
        """Start a worker wherever one is missing and may start."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None and not self._stopping and now >= slot.not_before:
                self._start_worker(slot)

    def _poll(self) -> None:
        """Wait for a signal, a client of the control socket, a worker that is ready."""
        pipes = {c.ready_fd: c for c in self._children.values() if c.ready_fd >= 0}
        readers = [self._wake_r, *self._control.filenos(), *pipes]
        readable, writable, _ = select.select(readers, self._control.writers(), [], POLL_SECONDS)
        for fd in writable:
            connection = self._control.connection(fd)
            if connection is not None:
                connection.flush()
        for fd in readable:
            if fd == self._wake_r:
                self._signals()
            elif fd in pipes:
                self._hear(pipes[fd])
            elif fd == self._control.fileno():
                self._control.accept()
            else:
                self._serve(self._control.connection(fd))
        self._control.sweep()

    def _drain_wakeups(self) -> set[int]:
        with suppress(BlockingIOError):
            return set(os.read(self._wake_r, 512))
        return set()

    def _signals(self) -> None:
        caught = self._drain_wakeups()
        if signal.SIGQUIT in caught:
            self._stop(now=True)
        elif caught & {signal.SIGTERM, signal.SIGINT}:
            self._stop(now=False)

    def _hear(self, child: Child) -> None:
        """A worker is ready, or its end of the pipe is closed: it died before."""
        with suppress(OSError):
            child.ready = os.read(child.ready_fd, 1) == b"R"
        os.close(child.ready_fd)
        child.ready_fd = -1
        ready = [slot.child.ready for slot in self._slots if slot.child is not None]
        if not self._announced and len(ready) == len(self._slots) and all(ready):
            self._announced = True
            for bound in self._hub.bound:
                print(f"listening {bound.listener.protocol} {bound.name}")  # noqa: T201
            print("metad: ready", flush=True)  # noqa: T201

    # -- deaths

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._mourn(child, os.waitstatus_to_exitcode(status))

    def _mourn(self, child: Child, code: int) -> None:
        if child.ready_fd >= 0:
            os.close(child.ready_fd)
        if child.row[Cell.SEMAPHORE] != table.IDLE:
            self._suspect_semaphore = True
        if child.role != Role.WORKER:
            if code:
                self._log.line("master", f"warning: {child.role.name.lower()} ended with {code}")
            return self._free(child)
        slot = self._slots[child.slot]
        slot.child = None
        if code or not self._stopping:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            self._log.line("master", f"warning: worker {child.slot} (pid {child.pid}) died: {how}")
            self._after_death(slot, child, code)
        self._free(child)
        return None

    def _after_death(self, slot: Slot, child: Child, code: int) -> None:
        now = time.monotonic()
        if self._stopping:
            self._exit_code = EX_TEMPFAIL
        elif code == EXIT_BOOT and not self._announced:
            self._log.line("master", "fatal: a worker cannot start; stopping")
            self._exit_code = EX_SOFTWARE
            self._stop(now=True)
        quick = now - child.started < QUICK_DEATH_SECONDS
        slot.quick_deaths = slot.quick_deaths + 1 if quick else 0
        delay = min(0.1 * 2**slot.quick_deaths, MOST_BACKOFF_SECONDS) if quick else 0.0
        slot.not_before = now + delay

    def _free(self, child: Child) -> None:
        """Keep a dead process's figures, recover its logs, give its row free."""
        total = self._area.process(MASTER_ROW)
        for cell in range(Cell.SMTP_CONNECTIONS, Cell.COMMIT_FAILURES + 1):
            if cell not in (Cell.SMTP_OPEN, Cell.POP3_OPEN):
                total.add(cell, child.row[cell])
        owned = self._table().owned_by(child.row.index)
        if child.role == Role.WORKER and any(row.state != State.SEALED for row in owned):
            self._recover_logs_of(child.row)
        else:
            child.row.clear()

    def _recover_logs_of(self, dead: ProcessRow) -> None:
        setup = upkeep.Setup(self._config.data, self._area, self._semaphore)

        def main(row: ProcessRow) -> int:
            code = upkeep.recover_process(setup, row, dead.index)
            dead.clear()
            return code

        self._fork(Role.RECOVERY, 0, main)

    def _table(self) -> LogTable:
        return LogTable(self._area, self._semaphore, self._area.process(MASTER_ROW))

    def _watch(self) -> None:
        """Heartbeats, the semaphore, the deadline of a drain."""
        now = time.monotonic()
        for child in self._children.values():
            if child.role == Role.WORKER:
                self._watch_heartbeat(child, now)
        if self._suspect_semaphore:
            living = [(c.row.index, c.pid) for c in self._children.values()]
            if table.repair(self._semaphore, self._area, living):
                self._log.line("master", "warning: semaphore of a dead process released")
            self._suspect_semaphore = False
        if self._stopping and now > self._stop_deadline:
            self._log.line("master", "warning: drain deadline passed; killing what is left")
            self._exit_code = EX_TEMPFAIL
            self._kill_children()

    def _watch_heartbeat(self, child: Child, now: float) -> None:
        """SIGABRT to a hung worker (for its trace), unless it is stopped; then SIGKILL."""
        age = (time.monotonic_ns() - child.row[Cell.HEARTBEAT]) / 1e9
        if age < HEARTBEAT_SECONDS:
            return
        if child.aborted and now - child.aborted > ABORT_SECONDS:
            os.kill(child.pid, signal.SIGKILL)
        elif not child.aborted:
            child.aborted = now
            self._log.line(
                "master", f"warning: worker {child.slot} (pid {child.pid}) hangs for {age:.1f} s"
            )
            stopped = table.is_stopped(child.pid)
            os.kill(child.pid, signal.SIGKILL if stopped else signal.SIGABRT)

    def _stop(self, *, now: bool) -> None:
        if not self._stopping:
            self._log.line("master", "stopping" if now else "draining")
        self._stopping = True
        self._stop_deadline = time.monotonic() + DRAIN_SECONDS
        for child in self._children.values():
            if child.role == Role.WORKER:
                os.kill(child.pid, signal.SIGQUIT if now else signal.SIGTERM)

    def _kill_children(self) -> None:
        for pid in list(self._children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            self._children.pop(pid, None)

    # -- the control socket

    def _serve(self, connection: Connection | None) -> None:
        for request in connection.feed() if connection is not None else []:
            if connection is None:
                break
            command = request.get("command")
            if command == "status":
                connection.reply(self._status())
            elif command == "stop":
                connection.reply({"pid": os.getpid()})
                self._stop(now=request.get("now") is True)
            else:
                connection.reply_error(MetadError(f"unknown command {command!r}"))

    def _status(self) -> dict[str, Any]:
        workers = [self._worker_status(slot) for slot in self._slots]
        totals = self._area.process(MASTER_ROW)
        rows = [slot.child.row for slot in self._slots if slot.child is not None]
        sums = {
            name: totals[cell] + sum(row[cell] for row in rows) for name, cell in _TOTALS.items()
        }
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime": round(time.monotonic() - self._started, 1),
            "state": "draining" if self._stopping else "serving" if self._announced else "starting",
            "data": str(self._config.data),
            **sums,
            "listen": [
                {"protocol": bound.listener.protocol, "address": bound.name}
                for bound in self._hub.bound
            ],
            "workers": workers,
            "logs": [
                {**row._asdict(), "state": row.state.name.lower()} for row in self._table().rows()
            ],
        }

    def _worker_status(self, slot: Slot) -> dict[str, Any]:
        child = slot.child
        if child is None:
            return {"slot": slot.number, "pid": 0, "state": "starting"}
        figures = {name: child.row[cell] for name, cell in _PER_WORKER.items()}
        logs = [row.number for row in self._table().owned_by(child.row.index)]
        state = "serving" if child.ready else "starting"
        return {"slot": slot.number, "pid": child.pid, "state": state, "logs": logs, **figures}


_PER_WORKER = {
    "smtp_open": Cell.SMTP_OPEN,
    "pop3_open": Cell.POP3_OPEN,
    "messages": Cell.MESSAGES,
    "refused": Cell.REFUSED,
    "retrieved": Cell.RETRIEVED,
}
_TOTALS = {
    "messages": Cell.MESSAGES,
    "octets": Cell.MESSAGE_OCTETS,
    "recipients": Cell.RECIPIENTS,
    "refused": Cell.REFUSED,
    "groups": Cell.GROUPS,
    "commit_failures": Cell.COMMIT_FAILURES,
    "logins": Cell.LOGINS,
    "login_failures": Cell.LOGIN_FAILURES,
    "retrieved": Cell.RETRIEVED,
    "deleted": Cell.DELETED,
    "damaged": Cell.DAMAGED,
}
