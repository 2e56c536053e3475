"""The log file of a hub that is started with --log-file.

Rules of this file:

* Root opens it, possibly in a directory that another user may write to: no link is followed, a file
  with a second name is refused, and ownership goes by descriptor (CVE-2016-1247 was a log file of
  root's behind a link).
* After a rotation by rename, `reopen` continues in a new file of the same name.
* A socket, such as /dev/log, is that of a syslog daemon.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from metad.errors import CannotCreateError
from metad.system import syslog

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o640


def open_log(path: Path, owner: tuple[int, int] | None = None) -> int:
    """The file, created if need be and given to `owner` (uid, gid); its descriptor.

    Raises CannotCreateError: also for a link, a file with several names, a pipe.
    """
    try:
        fd, is_new = _opened(path)
    except OSError as error:
        raise CannotCreateError.of(error, path) from None
    try:
        if is_new:
            os.fchmod(fd, _MODE)  # whatever the umask: after a rotation it is the hub's
        found = os.fstat(fd)
        regular = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if not regular and not stat.S_ISCHR(found.st_mode):
            raise CannotCreateError(
                f"{path}: not a plain file with a single name", remedy="give another path"
            )
        if regular and owner is not None and (found.st_uid, found.st_gid) != owner:
            if found.st_uid != os.geteuid():
                raise CannotCreateError(
                    f"{path}: belongs to another user (uid {found.st_uid})",
                    remedy="give it to the hub's user, or give another path",
                )
            os.fchown(fd, *owner)
    except OSError as error:
        os.close(fd)
        raise CannotCreateError.of(error, path) from None
    except BaseException:
        os.close(fd)
        raise
    os.set_blocking(fd, True)
    return fd


def _opened(path: Path) -> tuple[int, bool]:
    """The file, and whether it was made.  Raises OSError."""
    try:
        return os.open(path, _FLAGS | os.O_EXCL, _MODE), True
    except FileExistsError:
        return os.open(path, _FLAGS, _MODE), False


def _connected(path: Path) -> int:
    try:
        return syslog.connect(path)
    except OSError as error:
        raise CannotCreateError.of(error, path) from None


class LogFile:
    """Standard error of the hub; without a path it is whatever the caller gave."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def take(self, owner: tuple[int, int] | None = None) -> None:
        """Send standard error to the file.  Raises CannotCreateError."""
        if self.path is not None:
            fd = _connected(self.path) if self.path.is_socket() else open_log(self.path, owner)
            os.dup2(fd, 2)
            os.close(fd)

    def reopen(self) -> None:
        """The same after a rotation, as the hub's user.  Raises CannotCreateError."""
        self.take()
