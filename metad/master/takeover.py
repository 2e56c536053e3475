"""A newer release takes over: the hub drains, then its process executes the program again.

    metad reload of another release -> drain -> close all but the listening sockets -> exec

Rules of this file:

* The process stays the same, so systemd, a nanny and the PID file still name the right one.
* The listening sockets stay open.  The kernel queues new connections until the new program accepts
  them, so none is refused.
* The new release has checked the configuration before this begins; the old one need not understand
  it.
* What one release passes to the next is the command line of metad.master.entry and the environment
  of sd_listen_fds(3), and nothing else: neither may change (docs/upgrade.md).
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence

import metad
from metad.errors import MetadError, OsError
from metad.listeners import Bound, name_of
from metad.master.options import Options, Snapshot, SnapshotFile
from metad.system.systemd import FIRST_FD


class TakeoverError(MetadError):
    """This hub can only be restarted (exit 70)."""


class Takeover:
    """`wanted`: the hub is to be executed again once it has drained."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._sockets: list[int] = []
        self._names: list[str] = []
        self._command: list[str] = []

    @property
    def wanted(self) -> bool:
        return self._snapshot is not None

    def begin(self, snapshot: Snapshot, *, chroot: bool) -> None:
        """Raises TakeoverError if the program could not be executed; then nothing has changed."""
        if chroot:
            raise TakeoverError(
                "Python cannot be executed in the chroot", remedy="restart the hub instead"
            )
        if not all(os.access(path, os.R_OK) for path in (sys.executable, metad.__file__)):
            raise TakeoverError(
                "the hub's user cannot read Python", remedy="restart the hub instead"
            )
        self._snapshot = snapshot

    def cancel(self) -> None:
        """The hub is to stop instead."""
        self._snapshot = None

    def keep(self, bound: Sequence[Bound], options: Options, data: str) -> None:
        """Keep what the new program gets, when everything else is about to be closed."""
        if self._snapshot is None:
            return
        pairs = [(sock.fileno(), name_of(one)) for one in bound for sock in one.sockets]
        above = FIRST_FD + len(pairs)
        self._sockets = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd, _ in pairs]
        self._names = [name for _, name in pairs]
        file = options.snapshot or SnapshotFile.make(self._snapshot)
        file.write(self._snapshot)
        fds = [_inheritable(fd, above) for fd in (file.fd, options.pid_file.fileno())]
        options.pid_file.leave()
        log_file = str(options.log_file.path or "")
        facts = [*map(str, fds), str(options.nanny), data, log_file]
        self._command = [sys.executable, "-P", "-m", "metad.master.entry", *facts]

    def execute(self) -> None:
        """Execute the new program if one is to take over.  Raises OsError."""
        if not self._command:
            return
        for place, fd in enumerate(self._sockets, FIRST_FD):
            os.dup2(fd, place)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(self._sockets))
        os.environ["LISTEN_FDNAMES"] = ":".join(self._names)
        try:
            os.execv(self._command[0], self._command)  # noqa: S606
        except OSError as error:
            raise OsError.of(error, self._command[0]) from None


def _inheritable(fd: int, above: int) -> int:
    """A copy that survives the exec, out of the way of the sockets; -1 stays -1."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, above) if fd >= 0 else fd
