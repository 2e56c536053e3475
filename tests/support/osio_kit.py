"""Implementations of `Osio` for tests: recording, failing, and with false time.

Rules of this file:

* `KitOsio` does the same as the real one, on real files (tests put them on a tmpfs).  It also
  records every change (`ops`), asks `faults` whether a call may succeed, and takes the time from
  `clock` if it has one.
* Faults are by ordinal: the n-th call of a kind fails, once or from then on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from metad.system.osio import Buffer, Osio
from tests.support.sizes import SEED, scaled  # noqa: F401 - most that need a door need these too

BLOCK = 4096


class Op(NamedTuple):
    """One recorded change.  `kind`: create, write, size, sync, bad-sync, rename, unlink, dir-sync,
    or a note of the test's own ("note", with `data` as it likes)."""

    kind: str
    path: str = ""
    offset: int = 0
    data: Any = b""


class FakeClock:
    """Clocks controlled by the test.  Nanoseconds."""

    def __init__(self, monotonic: int = 10**12, real: int = 1_700_000_000 * 10**9) -> None:
        self.monotonic = monotonic
        self.real = real
        self.step = 1_000_000

    def monotonic_ns(self) -> int:
        self.monotonic += self.step
        return self.monotonic

    def time_ns(self) -> int:
        self.real += self.step
        return self.real


@dataclass
class Faults:
    """Fail the `ordinal`-th call (from 1) of `kind`, and the `times` - 1 after it; `persistent`:
    all later ones; `dead`: from then on whatever would change the disk.

    `short` writes that share of the octets instead of raising.  kind "" fails nothing: then the
    counts tell how many ordinals there are.
    """

    kind: str = ""
    ordinal: int = 0
    error: int = errno.EIO
    persistent: bool = False
    short: bool = False
    only: str = ""
    times: int = 1
    dead: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    hit_paths: list[str] = field(default_factory=list)

    def strikes(self, kind: str, path: str) -> bool:
        if self.only not in path:
            return False
        self.counts[kind] += 1
        if self.dead and self.hits and kind not in ("open", "pread", "unlink"):
            return True
        if kind != self.kind:
            return False
        past = self.counts[kind] - self.ordinal
        if past >= 0 and (past < self.times or self.persistent):
            self.hits += 1
            self.hit_paths.append(path)
            return True
        return False


class KitOsio(Osio):
    """The real operating system, watched.  `watch` limits recording and faults to a directory."""

    def __init__(
        self,
        watch: str = "",
        *,
        record: bool = False,
        faults: Faults | None = None,
        clock: FakeClock | None = None,
    ) -> None:
        self.watch = watch
        self.recording = record
        self.ops: list[Op] = []
        self.faults = faults
        self.clock = clock
        self.space: int | None = None
        self.names: dict[int, str] = {}
        self.syncs: list[tuple[str, bool]] = []
        self.failed: set[str] = set()
        self.retried: list[str] = []
        # Blocks that the disk cannot read, by path: EIO, over every restart, until written to.
        self.unreadable: dict[str, set[int]] = {}
        # Files that the disk cannot write to: EIO, over every restart.
        self.unwritable: set[str] = set()
        # Files that cannot even be opened: EIO, over every restart, until they are replaced.
        self.unopenable: dict[str, int] = {}
        # Files of which the disk does not take what was written: EIO at each sync.
        self.unsyncable: set[str] = set()

    def note(self, what: object) -> None:
        """Put a remark of the test among the recorded changes."""
        self.ops.append(Op("note", data=what))

    # -- the machinery

    def _path(self, fd: int) -> str:
        return self.names.get(fd, "")

    def _watched(self, path: str) -> bool:
        return path.startswith(self.watch)

    def _strike(self, kind: str, path: str) -> bool:
        """True: write short.  Raises OSError: fail."""
        faults = self.faults
        if faults is None or not self._watched(path) or not faults.strikes(kind, path):
            return False
        if faults.short and kind == faults.kind:
            return True
        raise OSError(faults.error, os.strerror(faults.error), path)

    def _record(self, kind: str, path: str, offset: int = 0, data: Any = b"") -> None:
        if self.recording and self._watched(path):
            self.ops.append(Op(kind, path, offset, data))

    # -- files

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._strike("open", path)
        if path in self.unopenable and _inode(path) == self.unopenable[path]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        new = bool(flags & os.O_CREAT) and not os.path.exists(path)
        fd = super().open(path, flags, mode)
        self.names[fd] = path
        if new:
            self._record("create", path)
        elif flags & os.O_TRUNC:
            self._record("size", path)
        return fd

    def close(self, fd: int) -> None:
        self.names.pop(fd, None)
        super().close(fd)

    def close_all(self) -> None:
        """The kernel closes what a dead process left open."""
        self.failed.clear()
        for fd in list(self.names):
            self.close(fd)

    def spoil(self, path: str, offset: int) -> None:
        """The block at `offset` becomes unreadable."""
        self.unreadable.setdefault(path, set()).add(offset // BLOCK)

    def make_unopenable(self, path: str) -> None:
        self.unopenable[path] = _inode(path)

    def _forget_damage(self, path: str) -> None:
        """The name has another file now, or none: what lay under it is not reached any more."""
        self.unreadable.pop(path, None)
        self.unopenable.pop(path, None)

    def _reach(self, path: str, offset: int, count: int) -> None:
        """Raises OSError if a read meets a block that cannot be read."""
        blocks = self.unreadable.get(path)
        if blocks and not blocks.isdisjoint(
            range(offset // BLOCK, (offset + count - 1) // BLOCK + 1)
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        path = self._path(fd)
        self._strike("pread", path)
        if path in self.unreadable:
            size = os.fstat(fd).st_size
            self._reach(path, offset, max(min(count, size - offset), 1))
        return super().pread(fd, count, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        self._strike("pread", self._path(fd))
        self._reach(self._path(fd), offset, sum(map(len, buffers)))
        return super().preadv(fd, buffers, offset)  # a tmpfs knows no RWF_NOWAIT

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        return self._write(fd, bytes(data), offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if len(buffers) > 1024:
            raise OSError(errno.EINVAL, "more buffers than IOV_MAX")
        return self._write(fd, b"".join(buffers), offset)

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        path = self._path(fd)
        if path in self.unwritable:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self._strike("write", path):
            data = data[: len(data) * 2 // 3]
        written = super().pwrite(fd, data, offset)
        if blocks := self.unreadable.get(path):  # a sector written whole is mapped again
            blocks.difference_update(range(-(-offset // BLOCK), (offset + written) // BLOCK))
        self._record("write", path, offset, data[:written])
        return written

    def copy_range(self, source: int, target: int, count: int, offset: int) -> int:
        self._reach(self._path(source), offset, count)
        return super().copy_range(source, target, count, offset)

    # -- synchronisation

    def fdatasync(self, fd: int) -> None:
        self._sync(fd)

    def fsync(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        path = self._path(fd)
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        kind = "dir-sync" if directory else "sync"
        if path in self.failed:
            self.retried.append(path)
        try:
            self._strike(kind, path)
            if path in self.unsyncable:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        except OSError:
            self.syncs.append((path, False))
            if not directory:
                self.failed.add(path)
                self._record("bad-sync", path)
            raise
        self.syncs.append((path, True))
        self._record(kind, path)

    def allocate(self, fd: int, size: int, offset: int = 0) -> None:
        self._strike("allocate", self._path(fd))
        super().allocate(fd, size, offset)
        self._record("size", self._path(fd), offset + size)

    # -- names

    def rename(self, old: str, new: str) -> None:
        self._strike("rename", new)
        super().rename(old, new)
        self._forget_damage(new)
        if (spoiled := self.unreadable.pop(old, None)) is not None:
            self.unreadable[new] = spoiled
        for fd, path in self.names.items():
            if path == old:
                self.names[fd] = new
        self._record("rename", new, data=old)

    def unlink(self, path: str) -> None:
        self._strike("unlink", path)
        super().unlink(path)
        self._forget_damage(path)
        self.failed.discard(path)
        self._record("unlink", path)

    def free_space(self, path: str) -> int:
        return 1 << 40 if self.space is None else self.space

    # -- clocks

    def monotonic_ns(self) -> int:
        return self.clock.monotonic_ns() if self.clock else super().monotonic_ns()

    def boottime_ns(self) -> int:
        return self.clock.monotonic_ns() if self.clock else super().boottime_ns()

    def time_ns(self) -> int:
        return self.clock.time_ns() if self.clock else super().time_ns()


def _inode(path: str) -> int:
    """0: there is no such file."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


class QuietOsio(KitOsio):
    """For states that are only judged: no faults, no records, nothing waits for a disk."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = Osio.open(self, path, flags, mode)
        self.names[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self.names.pop(fd, None)
        Osio.close(self, fd)

    def preadv(self, fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        return os.preadv(fd, buffers, offset)  # a tmpfs knows no RWF_NOWAIT

    def allocate(self, fd: int, size: int, offset: int = 0) -> None:
        os.ftruncate(fd, max(os.fstat(fd).st_size, offset + size))

    def fsync_directory(self, path: str) -> None:
        """Every existing file is readable."""

    def fdatasync(self, fd: int) -> None:
        """Everything written is durable."""

    fsync = fdatasync
    pread, pwrite, pwritev = Osio.pread, Osio.pwrite, Osio.pwritev
    rename, unlink = Osio.rename, Osio.unlink
