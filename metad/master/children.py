"""The table of the master's children: fork, list, reap.

Rules of this file:

* A child has a row of shared memory from its fork until its death has been handled, and a pipe
  for one message: that it is ready, or why it cannot start.
* Signals are blocked across a fork, so that none is lost between the master's handlers and the
  child's own.
* waitpid reports that a child is stopped (SIGSTOP); this works in a chroot without /proc.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from metad.errors import EX_SOFTWARE, OsError
from metad.system.privileges import descends_from
from metad.system.shared_memory import PROCESSES, Cell, ProcessRow, Role, SharedArea
from metad.workers.child import SIGNALS, ChildHandle, run_child

MASTER_ROW = 0
_WORD = 8192
Main = Callable[[ProcessRow, ChildHandle], int]


@dataclass(slots=True)
class Child:
    """A child process.  Times are monotonic seconds, 0 if the event has not happened."""

    pid: int
    role: Role
    slot: int
    row: ProcessRow
    started: float
    generation: int = 0
    word_fd: int = -1
    channel: socket.socket | None = None
    ready: bool = False
    boot_error: str = ""
    boot_error_code: int = EX_SOFTWARE
    aborted: float = 0.0
    stopped: float = 0.0
    retired: float = 0.0
    killed: bool = False

    @property
    def name(self) -> str:
        slot = f" {self.slot}" if self.role == Role.WORKER else ""
        return f"{self.role.name.lower()}{slot} (pid {self.pid})"

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Ends(NamedTuple):
    """One side of what connects master and child: the pipe for the message, and the channel."""

    word: int
    channel: socket.socket | None

    def close(self) -> None:
        os.close(self.word)
        if self.channel is not None:
            self.channel.close()

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_ends(channel: bool) -> tuple[Ends, Ends]:
    """The master's and the child's; neither ever waits at a channel.  Raises OSError."""
    word_r, word_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    if not channel:
        return Ends(word_r, None), Ends(word_w, None)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        os.close(word_r)
        os.close(word_w)
        raise
    ours.setblocking(False)
    theirs.setblocking(False)
    return Ends(word_r, ours), Ends(word_w, theirs)


class ChildSpec(NamedTuple):
    """How to make a child.  `places`: the directories it keeps under Landlock; none: all files.

    `connects`: it may make TCP connections, under Landlock too.  `channel`: the master passes
    connections of commands to it (metad.master.attach).
    """

    role: Role
    slot: int
    main: Main
    places: Sequence[Path] = ()
    generation: int = 0
    connects: bool = False
    channel: bool = False


def _main(spec: ChildSpec, row: ProcessRow, handle: ChildHandle) -> int:
    row[Cell.LANDLOCK] = handle.landlock
    return spec.main(row, handle)


class ChildTable:
    """All children of the master.  Each of them calls `close` after its fork."""

    def __init__(self, area: SharedArea, close: Callable[[], None]) -> None:
        self._area = area
        self._close = close
        self._children: dict[int, Child] = {}
        # Rows of dead processes whose logs have not been recovered yet.
        self.kept_rows: set[int] = set()

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    def of(self, role: Role) -> list[Child]:
        return [child for child in self if child.role == role]

    def free_rows(self) -> int:
        return sum(1 for _ in self._free_rows())

    def descends(self, pid: int) -> bool:
        """Whether a process is a child, or a child's descendant: orphans are adopted."""
        if any(child.pid == pid for child in self):
            return True
        return pid != os.getpid() and descends_from(pid, os.getpid())

    # -- fork

    def fork(self, spec: ChildSpec) -> Child:
        """Fork a child.  Raises OsError if there is no free row, descriptor or process."""
        row = next(self._free_rows(), None)
        if row is None:
            raise OsError("no free row in shared memory for another process")
        row.clear()
        self._area.use_row(row)
        row[Cell.ROLE] = spec.role
        row[Cell.SLOT] = spec.slot
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            ours, theirs = make_ends(spec.channel)
            with theirs:
                pid = self._fork(ours)
                if pid == 0:
                    row[Cell.PID] = os.getpid()
                    self._run(
                        spec,
                        row,
                        ChildHandle(parent, self._close_all, theirs.word, channel=theirs.channel),
                    )
        except OSError as error:
            row.clear()
            raise OsError(f"cannot fork: {error.strerror}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        row[Cell.PID] = pid
        child = Child(pid, spec.role, spec.slot, row, time.monotonic())
        child.generation = spec.generation
        child.word_fd, child.channel = ours.word, ours.channel
        self._children[pid] = child
        return child

    @staticmethod
    def _fork(ours: Ends) -> int:
        """The child closes our ends, and so do we if there is no child.  Raises OSError."""
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            ours.close()
        return pid

    def _run(self, spec: ChildSpec, row: ProcessRow, handle: ChildHandle) -> NoReturn:
        """The whole life of a child."""
        handle.name, handle.places = spec.role.name.lower(), spec.places
        handle.connects = spec.connects
        run_child(handle, lambda: _main(spec, row, handle))

    def _free_rows(self) -> Iterator[ProcessRow]:
        used = {child.row.index for child in self} | self.kept_rows | {MASTER_ROW}
        return (row for row in map(self._area.process, range(PROCESSES)) if row.index not in used)

    def _close_all(self) -> None:
        """In a child: close what belongs to the master and to other children."""
        self._close()
        for child in self:
            if child.word_fd >= 0:
                os.close(child.word_fd)
            if child.channel is not None:
                child.channel.close()

    # -- messages from children

    def pipes(self) -> dict[int, Child]:
        return {child.word_fd: child for child in self if child.word_fd >= 0}

    def hear(self, child: Child) -> None:
        """Read its message.  A pipe closed without one: the child ended without a reason."""
        word = b""
        with suppress(OSError):
            word = os.read(child.word_fd, _WORD)
        self._hang_up(child)
        if word == b"R":
            child.ready = True
        elif word:
            code, _, text = word[1:].decode("utf-8", "replace").partition(" ")
            child.boot_error = text or "no reason given"
            child.boot_error_code = int(code) if code.isascii() and code.isdigit() else EX_SOFTWARE

    def _hang_up(self, child: Child) -> None:
        if child.word_fd >= 0:
            os.close(child.word_fd)
            child.word_fd = -1

    # -- reaping

    def _forget(self, child: Child) -> None:
        del self._children[child.pid]
        if child.channel is not None:
            child.channel.close()

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Each dead child with its exit code or negative signal.  It still owns its row: release
        the row or add it to `kept_rows`.  Records which children are stopped or continued."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.get(pid)
            if child is None:
                continue
            if os.WIFSTOPPED(status):
                child.stopped = time.monotonic()
            elif os.WIFCONTINUED(status):
                child.stopped = 0.0
            else:
                if child.word_fd >= 0:
                    self.hear(child)
                self._forget(child)
                yield child, os.waitstatus_to_exitcode(status)

    def kill_all(self) -> None:
        """Kill every child with SIGKILL and wait for it."""
        for child in self:
            child.signal(signal.SIGKILL)
        for child in self:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            self._hang_up(child)
            self._forget(child)
