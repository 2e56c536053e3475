"""Files and locks of one simulated process, its semaphore, and the disk below.

Rules of this file:

* Every call is a switch point, followed by the real call on real files.
* File locks are real: each simulated process has its own descriptors, and a kill closes them.  A
  blocking call waits in the scheduler.
* A dead process does nothing more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import posix_ipc

from metad.system.osio import Buffer
from tests.sim.scheduler import Lock, Scheduler
from tests.support.osio_kit import KitOsio, Op

if TYPE_CHECKING:
    from tests.sim.process import Process

SPACE = 1 << 26  # of the simulated disk


class SimOsio(KitOsio):
    """The operating system, as seen by one simulated process."""

    def __init__(self, process: Process) -> None:
        hub = process.hub
        super().__init__(str(hub.data / "logs"), clock=hub.clock)
        self._process = process
        self._scheduler = hub.sim.scheduler
        self._cluster = str(hub.data / "cluster")
        self._is_group = False
        self._written = -1  # the descriptor that a group was just written to

    def _strike(self, kind: str, path: str) -> bool:
        """Whether to write short.  Raises OSError: the call fails."""
        fault = self._process.hub.sim.faults.strike(self._process.role, kind)
        if kind == "sync" and self._is_group:
            fault = self._process.hub.sim.faults.strike(self._process.role, "group") or fault
        if fault is None or not self._watched(path):
            return False
        self._process.hub.sim.note(f"{kind} fails for {self._process.name}: {path}")
        if fault == "short":
            return True
        raise OSError(fault, os.strerror(int(fault)), path)

    def _watched(self, path: str) -> bool:
        return path.startswith((self.watch, self._cluster))

    def _record(self, kind: str, path: str, offset: int = 0, data: Any = b"") -> None:
        hub = self._process.hub
        if path.startswith(self._cluster):
            hub.cluster_disk.apply(Op(kind, path, offset, data))
        elif path.startswith(self.watch):
            hub.disk.apply(Op(kind, path, offset, data))

    def free_space(self, path: str) -> int:
        return SPACE

    def total_space(self, path: str) -> int:
        return SPACE

    def block_size(self, path: str) -> int:
        return 512

    def sector_size(self, path: str) -> int:
        return 512

    def close(self, fd: int) -> None:
        self._scheduler.point("close")
        super().close(fd)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        self._scheduler.point("pwrite")
        return super().pwrite(fd, data, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._scheduler.point("pwritev")
        self._written = fd
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._scheduler.point("fdatasync")
        if self._process.hub.sync_seconds:
            self._scheduler.pause(self._process.hub.sync_seconds)
        self._is_group, self._written = fd == self._written, -1
        try:
            super().fdatasync(fd)
        finally:
            self._is_group = False

    def make_lock(self) -> AbstractContextManager[object]:
        return Lock(self._scheduler)

    def touch(self, fd: int) -> None:
        """By the simulated clock."""
        self._scheduler.point("touch")
        now = self.monotonic_ns()
        os.utime(fd, ns=(now, now))

    def lock_shared(self, fd: int) -> None:
        self._scheduler.point("lock shared")
        take = KitOsio.try_lock
        self._scheduler.wait(lambda: take(self, fd, shared=True))

    def lock(self, fd: int) -> None:
        self._scheduler.point("lock")
        self._scheduler.wait(lambda: KitOsio.try_lock(self, fd))


def _with_point(name: str) -> Callable[..., Any]:
    real = getattr(KitOsio, name)

    def call(self: SimOsio, *args: Any, **named: Any) -> Any:
        self._scheduler.point(name)
        return real(self, *args, **named)

    return call


for _name in (
    "open", "pread", "preadv", "fsync", "allocate", "truncate",
    "copy_range", "clone", "link", "rename", "unlink", "mkdir", "listdir", "stat",
    "try_lock", "unlock",
):  # fmt: skip
    setattr(SimOsio, _name, _with_point(_name))


class Semaphore:
    """The log table's semaphore.  A kill of its holder does not release it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._value = 1

    def acquire(self, timeout: float | None = None) -> None:
        self._scheduler.point("semaphore")
        if not self._scheduler.wait(lambda: self._value > 0, timeout):
            raise posix_ipc.BusyError
        self._value -= 1

    def release(self) -> None:
        self._scheduler.point("semaphore released")
        self._value += 1


class Faults:
    """Which calls fail: (role, kind, ordinal) -> an errno, or "short".

    Kind "group" is the sync of a group of records, "index" a write transaction of the index.
    """

    def __init__(self) -> None:
        self.planned: dict[tuple[str, str, int], int | str] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.hits = 0
        self.struck: set[str] = set()  # the kinds of calls that failed
        self.off = False

    def strike(self, role: str, kind: str) -> int | str | None:
        count = self.counts[role, kind] = self.counts.get((role, kind), 0) + 1
        fault = None if self.off else self.planned.get((role, kind, count))
        if fault is not None:
            self.hits += 1
            self.struck.add(kind)
        return fault


ENOSPC, EIO = errno.ENOSPC, errno.EIO
