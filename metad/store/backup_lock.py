"""The lock that keeps logs from being freed while a backup or a check reads them, for as long as it
gets on.

It is on the file DATA/run/backup: readers share it, and the collector takes it exclusively for the
moment in which it frees a log.  The kernel releases it when its holder dies.

Rules of this file:

* A holder renews its lease by getting on: it touches the file.  One that was stopped, or that hangs
  in a system call, does not.
* The collector breaks the lock of holders that do not get on: it puts another file in the place of
  this one, locked before it has the name.  It does so before it frees a log, never after.
* A holder that finds another file there has lost its lease: what it read may be of a log's next
  life.  It must look once more when it has read everything, and fail.
* A file that cannot be opened may be held all the same.  The collector treats it as held, and
  replaces it when it was not touched for the lease: then a holder notices, as above.
* Time is counted by the collector alone, from the moment at which it finds the file unchanged: no
  wall clock and no suspend matters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metad import limits
from metad.errors import TemporaryError
from metad.store.identity import Store
from metad.system.osio import Osio

RENEW_NS = 1_000_000_000


class LeaseLostError(TemporaryError):
    """What was read may be wrong."""


def _path(store: Store) -> str:
    return os.path.join(store.data, "run", "backup")


def _open(osio: Osio, path: str) -> int:
    return osio.open(path, os.O_RDWR | os.O_CREAT)


def _is_in_place(osio: Osio, path: str, fd: int) -> bool:
    """Whether the file open at `fd` is the one of that name."""
    try:
        there = osio.stat(path)
    except FileNotFoundError:
        return False
    mine = osio.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


class Pin:
    """A reader's half: no log is freed from its making on, unless the lease is lost."""

    def __init__(self, osio: Osio, store: Store) -> None:
        """Waits a few milliseconds at most."""
        self._osio = osio
        self._path = _path(store)
        while True:
            self._fd = _open(osio, self._path)
            osio.lock_shared(self._fd)
            if _is_in_place(osio, self._path, self._fd):
                break
            osio.close(self._fd)  # replaced while we waited
        self._touch()

    def renew(self) -> None:
        """To be called whenever the reader has got on.  Raises LeaseLostError."""
        if self._osio.monotonic_ns() - self._renewed >= RENEW_NS:
            self.check()
            self._touch()

    def check(self) -> None:
        """To be called when everything was read.  Raises LeaseLostError."""
        if not _is_in_place(self._osio, self._path, self._fd):
            raise LeaseLostError(
                "the hub has freed logs meanwhile, because nothing was read for too long: "
                "what was read is of no use",
                remedy="run it again; [collector] backup_lease allows more",
            )

    def close(self) -> None:
        self._osio.close(self._fd)

    def _touch(self) -> None:
        self._osio.touch(self._fd)
        self._renewed = self._osio.monotonic_ns()


@contextmanager
def pinned(osio: Osio, store: Store) -> Iterator[Pin]:
    """For a reader, which checks the pin when it has read everything."""
    pin = Pin(osio, store)
    try:
        yield pin
    finally:
        pin.close()


class FreeLock:
    """The collector's side: held while a log is being freed.  `lease` in seconds."""

    def __init__(
        self,
        osio: Osio,
        store: Store,
        lease: float = limits.BACKUP_LEASE,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._osio = osio
        self._path = _path(store)
        self._lease = lease
        self._report = report
        self._fd = -1
        self._fault = ""  # why the file cannot be opened
        self._seen = (0, 0)  # when the file was touched, and since when it is so
        self._is_open()  # made now: a full disk may have no room for it later

    def acquire(self) -> bool:
        """False: a backup or a check reads the logs, or may do so.  Raises OSError."""
        if self._is_open() and self._osio.try_lock(self._fd):
            return True
        now, touched = self._osio.monotonic_ns(), self._touched()
        if touched != self._seen[0]:
            self._seen = touched, now
        if now - self._seen[1] < self._lease * 1e9:
            return False
        self._break()
        return True

    def _is_open(self) -> bool:
        """Whether the file of that name is open; if not, it cannot be opened."""
        try:
            if self._fd < 0 or not _is_in_place(self._osio, self._path, self._fd):
                self.close()
                self._fd = _open(self._osio, self._path)
        except OSError as error:
            self.close()
            if not self._fault:
                self._report(
                    f"warning: {self._path} cannot be opened: {error.strerror}; no log is freed "
                    f"before nothing has touched it for {self._lease:g} s, then it is replaced"
                )
            self._fault = error.strerror or str(error)
            return False
        self._fault = ""
        return True

    def _touched(self) -> int:
        if self._fd >= 0:
            return self._osio.fstat(self._fd).st_mtime_ns
        try:
            return self._osio.stat(self._path).st_mtime_ns
        except OSError:
            return -1

    def _break(self) -> None:
        """Put a file of ours in the place of the one that is held."""
        fresh = f"{self._path}.new"
        fd = _open(self._osio, fresh)
        if not self._osio.try_lock(fd):
            self._osio.close(fd)
            raise OSError(f"{fresh} is locked")
        self._osio.rename(fresh, self._path)
        self.close()
        self._fd = fd
        why = (
            f"{self._path} could not be opened ({self._fault}), and was replaced: a backup or a "
            "check that has it"
            if self._fault
            else f"a backup or a check has read nothing for {self._lease:g} s: it"
        )
        self._fault = ""
        self._report(f"warning: {why} no longer keeps logs from being freed, and will fail")

    def release(self) -> None:
        if self._fd >= 0:
            self._osio.unlock(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            self._osio.close(self._fd)
            self._fd = -1
