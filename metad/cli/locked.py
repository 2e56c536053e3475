"""Whether a hub is running on a data directory, by its lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from metad.errors import UnavailableError


def check_unlocked(data: Path) -> None:
    """Raise UnavailableError, naming the pid, if a hub is running.

    A directory that does not exist or cannot be read has no hub; the start itself reports that.
    """
    try:
        fd = os.open(data / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        if _alive(pid):
            raise UnavailableError(
                f"{data}: a hub is already running, pid {pid}", remedy="metad stop ends it"
            ) from None
    finally:
        os.close(fd)


def _alive(pid: str) -> bool:
    """False for a hub that was killed a moment ago: the start waits for its last process."""
    return pid.isdecimal() and os.path.exists(f"/proc/{pid}")
