"""The nanny: the only process that keeps root, and only for ports below 1024 or a chroot.

    bind the ports -> make the data directory -> [fork -> become the user -> exec the master] -> ...

Rules of this file:

* It imports almost nothing, parses only its own specification, and never reads a byte from a
  client, a message or a socket.
* Signals are blocked and waited for: no handler ever runs.  They stay blocked across the exec, so
  that the master receives an early one as soon as it listens for signals.
* It exits when its master exits deliberately, and when the first master reports by its exit code
  why it cannot start.  After any other end it starts another master, with back-off; the bound
  sockets stay open in the meantime.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metad import __version__
from metad.errors import EX_OK, EX_OSERR, EX_TEMPFAIL, EX_USAGE, MetadError, OsError
from metad.system import log_file, log_output, privileges, sockets, systemd
from metad.system.backoff import Backoff

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
WAITED = (*STOPS, signal.SIGHUP, signal.SIGCHLD)
LONG_LIFE_SECONDS = 60.0
BACKOFF = Backoff(0.1, 30.0)
FIRST_SOCKET = 3  # sd_listen_fds(3)


class Spec(NamedTuple):
    """What a nanny does, as JSON on its command line.  `master`: the command of the master, which
    keeps the capabilities `keep`; `listen`: hosts and ports, each with `slots` sockets.
    Descriptors to be inherited lie above those of the sockets.  `log`: the log file, if any."""

    user: privileges.Identity
    keep: Sequence[int]
    data: str
    slots: int
    listen: Sequence[tuple[str, int]]
    master: list[str]
    log: str = ""


def bind(spec: Spec) -> int:
    """Bind the addresses to descriptors from 3 on.  Returns their number.  Raises OsError."""
    wanted = range(FIRST_SOCKET, FIRST_SOCKET + len(spec.listen) * spec.slots)
    os.closerange(wanted.start, wanted.stop)  # descriptors that the caller left open
    for host, port in spec.listen:
        try:
            for sock in sockets.bind_slots(host, port, spec.slots):
                os.set_inheritable(sock.detach(), True)
        except OSError as error:
            raise OsError.of(error, f"cannot listen on {host}:{port}") from None
    return len(wanted)


def start(spec: Spec, count: int) -> int:
    """Fork a master with `count` sockets.  Returns its pid.  Raises OSError."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
            os.environ[systemd.NANNY_VERSION] = __version__
            privileges.become(spec.user, spec.keep)
            os.execv(spec.master[0], spec.master)  # noqa: S606
        except (MetadError, OSError) as error:
            say(f"fatal: {error}")
        finally:
            os._exit(EX_OSERR)
    return pid


def wait_child(master: int, spec: Spec) -> tuple[int, bool]:
    """Wait for the master to end and pass signals on to it.  After a rotation of the log, SIGHUP
    arrives; the old file would take space as long as it is open.

    Returns its exit code or negative signal, and whether it was asked to stop.
    """
    told = False
    while True:
        number = signal.sigwait(WAITED)
        if number != signal.SIGCHLD:
            told = told or number in STOPS
            if number == signal.SIGHUP:
                reopen_log(spec)
            os.kill(master, number)
        elif (ended := os.waitpid(master, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1]), told


def supervise(spec: Spec, count: int) -> int:
    """Run one master after another.  Returns the exit code of the last."""
    failures, first = 0, True
    delay = 0.0
    while (found := signal.sigtimedwait(WAITED, delay)) is None or found.si_signo not in STOPS:
        started = time.monotonic()
        try:
            code, told = wait_child(start(spec, count), spec)
        except OSError:  # no fork
            code, told = EX_OSERR, False
        if told or code in (EX_OK, EX_TEMPFAIL) or (first and code >= EX_USAGE):
            return code if code >= 0 else EX_TEMPFAIL
        lived, first = time.monotonic() - started, False
        failures = 1 if lived > LONG_LIFE_SECONDS else failures + 1
        delay = BACKOFF.delay(failures)
        reopen_log(spec)  # a reload by command has signalled only the master
        say(f"warning: the master died ({code}); starting another in {delay:.1f} s")
    return EX_OK


def reopen_log(spec: Spec) -> None:
    """Continue in the file that has the log's name now."""
    if not spec.log:
        return
    try:
        log_file.LogFile(Path(spec.log)).take((spec.user.uid, spec.user.gid))
    except MetadError as error:
        say(f"warning: the log was not reopened: {error}")


def say(text: str) -> None:
    """A log that is not read must not block the nanny: lines that do not fit are lost."""
    mark = systemd.priority(text) if systemd.to_journal() else ""
    log_output.LogOutput().write(f"{mark}metad: {text}\n".encode("utf-8", "replace"))


def main(text: str) -> int:
    """The exit code."""
    user, *rest = json.loads(text)
    spec = Spec(privileges.Identity(*user), *rest)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    try:
        count = bind(spec)
        privileges.give_data_to(Path(spec.data), spec.user)
        return supervise(spec, count)
    except MetadError as error:
        say(f"fatal: {error.line}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
