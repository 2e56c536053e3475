"""The nanny: all that ever runs as root, and only where ports below 1024 or a chroot are wanted.

    bind the ports -> make the data directory -> [fork -> become the user -> exec the master] -> ...

Rules of this file:

* It imports next to nothing, parses nothing but its own order, and never reads an octet that came
  from a client, a mail or a socket.
* Signals are blocked and waited for: no handler ever runs.  They stay blocked over the exec, so
  that the master hears what comes too early, once it listens.
* It ends when its master ends by its own will, and when the first one says by its exit code why it
  cannot start.  Any other end is followed by another master, later each time; the bound sockets
  stay open meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from metad.errors import EX_OK, EX_OSERR, EX_TEMPFAIL, EX_USAGE, MetadError, OsError
from metad.system import privileges, sockets

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
WAITED = (*STOPS, signal.SIGHUP, signal.SIGCHLD)
LONG_LIFE_SECONDS = 60.0
MOST_BACKOFF_SECONDS = 30.0
FIRST_SOCKET = 3  # sd_listen_fds(3)


class Spec(NamedTuple):
    """What a nanny is for, as JSON on its command line.  `keep`: capabilities of the master, whose
    command `master` is; `listen`: host and port, each of `slots` sockets.  A descriptor that is to
    survive lies above those of the sockets."""

    user: privileges.Identity
    keep: Sequence[int]
    data: str
    slots: int
    listen: Sequence[tuple[str, int]]
    master: list[str]


def bind(spec: Spec) -> int:
    """Bind what was ordered, to descriptors from 3 on; how many.  Raises OsError."""
    wanted = range(FIRST_SOCKET, FIRST_SOCKET + len(spec.listen) * spec.slots)
    os.closerange(wanted.start, wanted.stop)  # whatever came from whoever started us
    for host, port in spec.listen:
        try:
            for sock in sockets.bind_slots(host, port, spec.slots):
                os.set_inheritable(sock.detach(), True)
        except OSError as error:
            raise OsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return len(wanted)


def start(spec: Spec, count: int) -> int:
    """Fork a master that has `count` sockets; its pid.  Raises OSError."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
            privileges.become(spec.user, spec.keep)
            os.execv(spec.master[0], spec.master)  # noqa: S606
        except (MetadError, OSError) as error:
            say(f"fatal: {error}")
        finally:
            os._exit(EX_OSERR)
    return pid


def wait_child(master: int) -> tuple[int, bool]:
    """Wait for its end, pass signals on; exit code or negative signal, and whether it was told."""
    told = False
    while True:
        number = signal.sigwait(WAITED)
        if number != signal.SIGCHLD:
            told = told or number in STOPS
            os.kill(master, number)
        elif (ended := os.waitpid(master, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1]), told


def supervise(spec: Spec, count: int) -> int:
    """One master after another; the exit code of the last."""
    delay, first = 0.0, True
    while (found := signal.sigtimedwait(WAITED, delay)) is None or found.si_signo not in STOPS:
        started = time.monotonic()
        try:
            code, told = wait_child(start(spec, count))
        except OSError:  # no fork
            code, told = EX_OSERR, False
        if told or code in (EX_OK, EX_TEMPFAIL) or (first and code >= EX_USAGE):
            return code if code >= 0 else EX_TEMPFAIL
        lived, first = time.monotonic() - started, False
        delay = 0.1 if lived > LONG_LIFE_SECONDS else min(delay * 2 + 0.1, MOST_BACKOFF_SECONDS)
        say(f"warning: the master ended ({code}); the next in {delay:.1f} s")
    return EX_OK


def say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"metad: {text}\n".encode("utf-8", "replace"))


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
        say(f"fatal: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
