"""The only access to files, synchronisation, locks and clocks.

Rules of this file:

* The store uses the operating system only through an `Osio`, so that a test can replace it by one
  that records, fails, tears writes, or lies about the time.
* Nothing here retries.  A short write is returned as such: the caller knows what it means.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

Buffer = bytes | bytearray | memoryview
# What no allocation takes: with less, a transaction of the index may fail.
LEFT_FREE = 256 << 10
BLOCK = 512  # bytes of one of st_blocks (stat(2))
_FICLONE = 0x40049409  # ioctl_ficlone(2)


class Osio:
    """The real operating system.  Every method raises OSError as the system call does."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return os.pread(fd, count, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        """Octets read.  With RWF_NOWAIT: BlockingIOError if the data is not in the page cache, or
        the file system does not support the flag (tmpfs, NFS)."""
        try:
            return os.preadv(fd, buffers, offset, flags)
        except OSError as error:
            if flags and error.errno == errno.EOPNOTSUPP:
                raise BlockingIOError(errno.EAGAIN, "no RWF_NOWAIT here") from None
            raise

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fsync_directory(self, path: str) -> None:
        """Make creations, renames and removals in `path` durable."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def allocate(self, fd: int, size: int, offset: int = 0) -> None:
        """Reserve `size` bytes, so that a full disk shows here and not at an append.

        Raises OSError: ENOSPC if less than `LEFT_FREE` would be left, before anything is tried.  A
        file system takes all that it has before it gives up.
        """
        stat, disk = os.fstat(fd), os.fstatvfs(fd)
        blocks, end = stat.st_blocks * BLOCK, offset + size
        is_whole = stat.st_size >= end and blocks >= stat.st_size  # a log that is used again
        # One block lies elsewhere: the header at the end of a log.
        missing = 0 if is_whole else min(size, end - blocks + disk.f_frsize)
        if missing > max(disk.f_bavail * disk.f_frsize - LEFT_FREE, 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(fd, offset, size)

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file; an extension is a hole."""
        os.ftruncate(fd, size)

    def clone(self, source: int, target: int) -> None:
        """Make `target` share all blocks of `source`, copy on write (FICLONE).

        Raises OSError where the file system cannot.
        """
        fcntl.ioctl(target, _FICLONE, source)

    def copy_range(self, source: int, target: int, count: int, offset: int) -> int:
        """Copy within the kernel, to the same offset; octets copied.  Raises OSError where the
        file systems cannot."""
        return os.copy_file_range(source, target, count, offset, offset)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def touch(self, fd: int) -> None:
        """Set the time of change of a file to now."""
        os.utime(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def free_space(self, path: str) -> int:
        """Octets that an unprivileged process may still use on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def total_space(self, path: str) -> int:
        """The size of the file system of `path`, in bytes."""
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize

    def block_size(self, path: str) -> int:
        """The block of the file system of `path`, in bytes."""
        return os.statvfs(path).f_frsize

    def sector_size(self, path: str) -> int:
        """The physical sector of the disk below `path`; 0 if there is none, or if it cannot be
        seen (in a chroot, or under Landlock)."""
        device = os.stat(path).st_dev
        place = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        for queue in (f"{place}/queue", f"{place}/../queue"):  # a disk, or a part of one
            try:
                with open(f"{queue}/physical_block_size", "rb") as file:
                    return int(file.read())
            except (OSError, ValueError):
                continue
        return 0

    def try_lock(self, fd: int, *, shared: bool = False) -> bool:
        """flock without waiting; True if held now.  The lock dies with the open description."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock_shared(self, fd: int) -> None:
        """Wait for a shared flock."""
        fcntl.flock(fd, fcntl.LOCK_SH)

    def lock(self, fd: int) -> None:
        """Wait for an exclusive flock."""
        fcntl.flock(fd, fcntl.LOCK_EX)

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def make_lock(self) -> AbstractContextManager[object]:
        """A lock between threads of this process."""
        return threading.Lock()

    # The clocks, for tests to replace.  Plain functions, because every message reads one.
    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)
    # As the monotonic clock, and it goes on while the machine is suspended.
    boottime_ns = staticmethod(partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))


def write_file(osio: Osio, path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace the file `path` by `data`, durably and atomically: write aside, sync, rename.

    Raises OSError; then `path` is as it was.
    """
    aside = f"{path}.new"
    fd = osio.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        if osio.pwrite(fd, data, 0) != len(data):
            raise OSError(f"short write to {aside}")
        osio.fsync(fd)
    finally:
        osio.close(fd)
    osio.rename(aside, path)
    osio.fsync_directory(os.path.dirname(path) or ".")


def read_file(osio: Osio, path: str, limit: int = 1 << 20) -> bytes:
    """The whole of a small file.  Raises OSError."""
    fd = osio.open(path, os.O_RDONLY)
    try:
        return osio.pread(fd, limit, 0)
    finally:
        osio.close(fd)


@contextmanager
def locked(osio: Osio, path: str) -> Iterator[None]:
    """The lock of a small file that several processes replace, for the time.  Raises OSError."""
    fd = osio.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    try:
        osio.lock(fd)
        yield
    finally:
        osio.close(fd)
