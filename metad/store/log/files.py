"""Log files: made, reused, freed.

A log file has two locks, which do not conflict:

* flock, exclusive: "this log has a living writer".  It is held on a descriptor opened after the
  fork, so the kernel releases it with the process.  No process recovers, seals, frees or reuses a
  log without it.
* an OFD lock on octet 0: shared by a reader while it sends a message larger than one buffer, taken
  exclusively before a file's next life, so that no such transfer is overwritten.  (The reader
  cannot use flock: an active log's writer holds it.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from metad.errors import MetadError
from metad.store.log import header, record
from metad.store.log.header import LogHeader, log_path
from metad.system.osio import Osio

_FLOCK = struct.Struct("hhqqi4x")


class LogBusyError(MetadError):
    """Another process holds the lock that this needs, or the file failed: leave that log alone."""


def create(
    osio: Osio,
    directory: str,
    new: LogHeader,
    fill: Callable[[int], None] = lambda fd: None,
    first: int | None = None,
) -> int:
    """Make the file of a new log; the header and its name are durable.  Locked; the descriptor.

    `first`: the number of bytes for which it gets blocks (None: all); the writer reserves more.
    `fill` may write more through the descriptor, before the log has a name.

    It gets its name only when its headers are durable, so that after a power cut every log has one;
    a file left under the temporary name is overwritten when the number is used.

    Raises OSError (full disk above all); then there is no such log.
    """
    path = log_path(directory, new.number)
    unfinished = f"{path}.new"
    _must_not_exist(osio, path)
    fd = osio.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    made = unfinished
    try:
        if not osio.try_lock(fd):
            raise LogBusyError(path)
        osio.truncate(fd, new.size)
        osio.allocate(fd, new.size if first is None else min(first, new.size))
        header.write_first(osio, fd, new)
        header.write_last(osio, fd, new)
        fill(fd)
        osio.fsync(fd)
        osio.rename(unfinished, path)
        made = path
        osio.fsync_directory(directory)
    except BaseException:
        osio.close(fd)
        osio.unlink(made)
        raise
    return fd


def is_there(osio: Osio, directory: str, number: int) -> bool:
    """Whether a file of that log exists, or one that cannot be examined."""
    try:
        osio.stat(log_path(directory, number))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _must_not_exist(osio: Osio, path: str) -> None:
    with suppress(FileNotFoundError):
        osio.stat(path)
        raise FileExistsError(errno.EEXIST, "there is such a log already", path)


def reuse(
    osio: Osio, directory: str, new: LogHeader, old_life: int, first: int | None = None
) -> int:
    """Begin the next life of a free log.  Locked; the descriptor.

    A file of another size (the setting was changed), or one with a second name (a backup), is
    replaced, not written to.

    Raises LogBusyError if a writer or a long transfer still holds it, if its own header does not
    say that it is free in the life `old_life`, or if it cannot be written to (a failed write is
    never retried on the same file); OSError if there is no such file.
    """
    fd = lock_free(osio, directory, new, old_life)
    try:
        if not try_reader_lock(fd, exclusive=True):
            raise LogBusyError(f"log {new.number} is being read")
        stat = osio.fstat(fd)
        if stat.st_size == new.size and stat.st_nlink == 1:
            header.rewrite(osio, fd, new)
            release_reader_lock(fd)
            return fd
        osio.unlink(log_path(directory, new.number))
    except OSError as error:
        osio.close(fd)
        raise LogBusyError(f"log {new.number} cannot be written to: {error}") from error
    except BaseException:
        osio.close(fd)
        raise
    osio.close(fd)
    return create(osio, directory, new, first=first)


def lock_log(osio: Osio, directory: str, number: int) -> int:
    """Open a log with its writer's lock.  Raises LogBusyError if a living process has it."""
    fd = osio.open(log_path(directory, number), os.O_RDWR)
    if not osio.try_lock(fd):
        osio.close(fd)
        raise LogBusyError(f"log {number} has a living writer")
    return fd


def lock_free(osio: Osio, directory: str, new: LogHeader, old_life: int) -> int:
    """Open the log of that number with its writer's lock; its own header says that it is free.

    The table alone is not enough: overwritten data cannot be recovered.  Raises LogBusyError.
    """
    fd = lock_log(osio, directory, new.number)
    try:
        log = header.read(osio, fd, new.secret)
    except OSError as error:
        osio.close(fd)
        raise LogBusyError(f"log {new.number} cannot be read: {error}") from error
    if log is None or (log.state, log.number, log.life) != (header.FREE, new.number, old_life):
        osio.close(fd)
        raise LogBusyError(f"log {new.number} is not marked free in its own header")
    return fd


def mark_free(osio: Osio, fd: int, old: LogHeader) -> None:
    """Rewrite both headers as free, durably: from then on nothing in the log counts.

    A record in place of the seal says the same, in case both headers are damaged one day: the other
    records still verify, and must not come back.  (It does not replace a mail record, which may be
    being read.)
    """
    free = old._replace(state=header.FREE, seal_offset=0, seal_size=0)
    header.write_first(osio, fd, free)
    osio.fdatasync(fd)
    if old.seal_offset:
        freed = record.make_freed(old.secret, old.number, old.life).ljust(old.align, b"\0")
        if osio.pwrite(fd, freed, old.seal_offset) != old.align:
            raise OSError(errno.EIO, f"short write to log {old.number}")
    header.write_last(osio, fd, free)
    osio.fdatasync(fd)


def free(osio: Osio, directory: str, fd: int, old: LogHeader) -> bool:
    """Make a log free, durably; one that cannot be written to is unlinked.  True if its file still
    exists.

    A header whose sync failed may say "free" only in the page cache: if trusted, deletion records
    would be dropped whose messages a power cut brings back.  Raises OSError.
    """
    try:
        mark_free(osio, fd, old)
    except OSError:
        osio.unlink(log_path(directory, old.number))
        osio.fsync_directory(directory)
        return False
    return True


def try_reader_lock(fd: int, *, exclusive: bool = False) -> bool:
    """Take the reader's lock on an open log without waiting."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def release_reader_lock(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0))
