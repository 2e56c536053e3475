"""How `metad start` becomes a hub: detached or not, with or without a nanny.

metad start ── [fork, with --detach] ── [exec the nanny, as root with ports below 1024 or a
                                         chroot] ── master
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from metad import nanny
from metad.cli.context import HubLocation
from metad.cli.locked import check_unlocked
from metad.config.model import Config
from metad.config.parse import read
from metad.errors import EX_SOFTWARE, MetadError, OsError, UsageError
from metad.system import privileges, systemd
from metad.system.log_file import LogFile
from metad.system.log_output import own_terminal
from metad.system.pidfile import PidFile
from metad.system.privileges import Identity

READY = b"metad: ready\n"
UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class NotStartedError(MetadError):
    """A detached hub did not become ready; its log has the reason."""


class Launch(NamedTuple):
    """The options of `metad start`."""

    place: HubLocation
    detach: bool = False
    pid_file: Path | None = None
    log_file: Path | None = None

    def absolute(self) -> Launch:
        """Independent of the current directory, which a detached hub leaves."""
        files = (path and path.absolute() for path in (self.pid_file, self.log_file))
        return Launch(self.place, self.detach, *files)


def launch(spec: Launch) -> int:
    """Run the hub; the exit code.  Raises MetadError if it never becomes ready."""
    _undo_inherited()
    close_inherited()
    spec = spec.absolute()
    if spec.detach and spec.log_file is None and os.isatty(2):
        raise UsageError("--detach on a terminal", remedy="give --log-file FILE")
    # Before standard error is redirected to the log, and before a nanny finds the ports in use.
    check_unlocked(spec.place.config.data)
    if spec.detach:
        return _detached(lambda: _run(spec), spec.log_file)
    return _run(spec)


def _run(spec: Launch) -> int:
    config = spec.place.config
    if config.source is not None:
        config = replace(config, source=config.source.absolute())
    pid_file = PidFile(spec.pid_file)
    log_file = LogFile(spec.log_file)
    log_file.take(_log_owner(config))
    own_terminal()
    if needs_nanny(config):
        _become_nanny(config, spec, pid_file)
    # Imported here, because modules that only the hub needs must not slow down other commands.
    from metad import master

    return master.start(config, master.Options(pid_file=pid_file, log_file=log_file))


def _undo_inherited() -> None:
    """Undo a careless parent's settings: ignored SIGCHLD, which makes waiting for children fail,
    and closed standard streams, which would send log lines to another file with the same number."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def close_inherited() -> None:
    """Close every descriptor but the standard streams and passed sockets: a worker must not have
    files of the shell that started the hub."""
    first = systemd.FIRST_FD + systemd.passed_count()
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _log_owner(config: Config) -> tuple[int, int] | None:
    """Give the log file to the hub's user, which reopens it after a rotation."""
    if os.geteuid() != 0 or config.user is None:
        return None
    user = privileges.find_user(config.user)
    return user.uid, user.gid


# --- Detached -------------------------------------------------------------------------------------


def _detached(run: Callable[[], int], log_file: Path | None) -> int:
    """Run in a child with its own session; return when it is ready, or with its exit code."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        if _relay(reader):
            return 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = code if code >= 0 else EX_SOFTWARE  # killed before it was ready
        if log_file is not None:  # where the reason is; without one it is on standard error
            failed = NotStartedError(
                "the hub did not start", remedy=f"the last lines of the log {log_file} say why"
            )
            failed.exit_code = code
            raise failed
        return code
    os.close(reader)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(writer, 1)
    for fd in (null, writer):
        os.close(fd)
    return run()


def _relay(reader: int) -> bool:
    """Copy the hub's standard output until it is ready.  Returns whether it became ready."""
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            os.write(1, line)
            if line == READY:
                return True
    return False


# --- The nanny ------------------------------------------------------------------------------------


def needs_nanny(config: Config) -> bool:
    """Whether root is needed for more than creating the data directory."""
    if os.geteuid() != 0 or systemd.are_passed():
        return False
    return config.chroot is not None or bool(_privileged(config))


def _privileged(config: Config) -> tuple[tuple[str, int], ...]:
    try:
        first = int(UNPRIVILEGED.read_text())
    except (OSError, ValueError):
        first = 1024
    places = ((one.host, one.port) for one in config.listeners if one.port is not None)
    return tuple((host, port) for host, port in places if 0 < port < first)


def _become_nanny(config: Config, launch: Launch, pid_file: PidFile) -> None:
    """Exec the nanny, so that root runs as little code as possible.  Raises MetadError."""
    user = privileges.find_user(config.user or "")
    listen = _privileged(config)
    above = nanny.FIRST_SOCKET + len(listen) * config.store.workers
    try:
        fds = [_moved(fd, above) for fd in (_snapshot(launch.place), pid_file.fileno())]
        facts = [*map(str, fds), str(os.getpid()), str(config.data), str(launch.log_file or "")]
        master = [sys.executable, "-P", "-m", "metad.master.entry", *facts]
        keep = [privileges.CAP_SYS_CHROOT] if config.chroot is not None else []
        if not _can_read(user):
            keep.append(_reading())
        log = str(launch.log_file or "")
        spec = nanny.Spec(user, keep, str(config.data), config.store.workers, listen, master, log)
        sys.stdout.flush()
        command = [sys.executable, "-P", "-m", "metad.nanny", json.dumps(spec)]
        os.execv(sys.executable, command)  # noqa: S606
    except OSError as error:
        raise OsError.of(error, sys.executable) from None


def _snapshot(place: HubLocation) -> int:
    """The configuration as root read it, for all future masters."""
    from metad.master.options import Snapshot, SnapshotFile

    source, content = read(place.file)
    return SnapshotFile.make(Snapshot(content, str(source.absolute()) if source else None)).fd


def _moved(fd: int, above: int) -> int:
    """An inheritable copy of the descriptor, above those of the nanny's sockets."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, above) if fd >= 0 else fd


def _can_read(user: Identity) -> bool:
    """Whether that user can read Python and its modules.  A forked child becomes that user and
    tries."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(nanny.__file__)))
    needed = [sys.executable, package, *filter(os.path.isdir, sys.path)]
    pid = os.fork()
    if pid == 0:
        able = False
        try:
            privileges.become(user)
            able = all(os.access(path, os.R_OK | os.X_OK) for path in needed)
        finally:
            os._exit(not able)
    return os.waitpid(pid, 0)[1] == 0


def _reading() -> int:
    """The capability to read a Python below /root; a container may lack the lesser one."""
    lesser = privileges.CAP_DAC_READ_SEARCH
    return lesser if privileges.has_capability(lesser) else privileges.CAP_DAC_OVERRIDE
