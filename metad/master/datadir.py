"""The data directory of a starting hub: its checks and its lock."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from contextlib import suppress
from pathlib import Path

from metad.errors import CannotCreateError, NotPermittedError, UnavailableError
from metad.store import machine
from metad.store.identity import open_store
from metad.system.osio import Osio

LOCK_SECONDS = 3.0


def prepare_data(data: Path) -> None:
    """Create it if need be.  Raises CannotCreateError (73), NotPermittedError (77)."""
    os.umask(0o077)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = data.stat()
    except OSError as error:
        failed = CannotCreateError.of(error, error.filename or data)
        if error.errno == errno.EROFS:
            failed.remedy = _read_only_remedy(data)
        raise failed from None
    if found.st_uid != os.geteuid():
        raise NotPermittedError(
            f"{data}: belongs to another user (uid {found.st_uid})",
            remedy="run this as that user, or give the directory to this one",
        )
    if os.statvfs(data).f_flag & os.ST_RDONLY:
        raise CannotCreateError(f"{data}: Read-only file system", remedy=_read_only_remedy(data))
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        raise CannotCreateError(f"{data}: not writable by this user", remedy=f"chmod 700 {data}")


def _read_only_remedy(data: Path) -> str:
    """What to do about it where systemd has made it so (ProtectSystem=strict)."""
    if "INVOCATION_ID" not in os.environ:
        return "mount it for writing"
    return f"add ReadWritePaths={data} to the unit: systemctl edit metad"


def take_lock(data: Path) -> int:
    """The lock that means "a hub runs here".  Its descriptor, which every child inherits.

    Raises UnavailableError, naming the pid of the running hub.  A hub that was killed a moment ago
    gets a little time to disappear.
    """
    path = data / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreateError.of(error, path) from None
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            if time.monotonic() > deadline or _is_alive(pid):
                os.close(fd)
                raise UnavailableError(
                    f"{data}: a hub is already running, pid {pid}", remedy="metad stop ends it"
                ) from None
            select.select([], [], [], 0.05)
    with suppress(OSError):  # only shown; a full disk must not prevent a start
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


def note_machine(data: Path) -> list[str]:
    """Note where the store is used now; a warning if it comes from another machine."""
    osio = Osio()
    store = open_store(osio, data)
    warning = machine.note(osio, store, machine.this_machine(store))
    return [warning] if warning else []
