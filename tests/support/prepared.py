"""Starts hubs from a process that has imported metad already.

    Prepared (in the tests) --request, descriptors--> a process of this file --fork--> a hub

Two thirds of what a hub costs to start are imports.  A fork of a process that has done them has the
same directory, environment, session and descriptors as if the program had been executed.

Rules of this file:

* A fork has the namespaces, ids, limits, capabilities and variables for Python that the tests had
  at first.  A test that has changed one of them gets none, and executes the program instead.
* The process imports metad, and nothing of the tests.  It ends with the process that made it.
* Tests of the start itself execute the program, as do all with a wrapper or an environment.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

REQUEST = 1 << 17  # octets at most
SPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "user", "uts")
RIGHTS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp",
          "Cpus_allowed_list")  # fmt: skip
OF_PROGRAMS = ("GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "PATH", "PYTHON")  # read when it begins
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def situation() -> tuple[object, ...]:
    """What a program finds when it begins, besides what a request has."""
    this = Path("/proc/thread-self")
    lines = (this / "status").read_text().splitlines()
    return (
        {name: value for name, value in os.environ.items() if name.startswith(OF_PROGRAMS)},
        tuple(os.readlink(this / "ns" / name) for name in SPACES),
        tuple(line for line in lines if line.startswith(RIGHTS)),
        tuple(map(resource.getrlimit, LIMITS)),
        os.readlink(this / "root"),
    )


class Started:
    """A hub that was forked: what the tests use of subprocess.Popen."""

    def __init__(self, pid: int, pidfd: int, status: int, stdout: int) -> None:
        self.pid = pid
        self.stdout: IO[str] = open(stdout)
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._status = status  # to be read: its exit status

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutExpired."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("metad start", timeout or 0)
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
            os.close(self._pidfd)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Prepared:
    """The process, and how to ask it for hubs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", __file__, str(number)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number])
        atexit.register(self._close, os.getpid())

    def _close(self, maker: int) -> None:
        """It ends when it cannot be asked any more."""
        if os.getpid() == maker:
            self._control.shutdown(socket.SHUT_RDWR)  # also for copies in forks of this process
            self._control.close()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, arguments: list[str], errors: IO[bytes]) -> Started:
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        reader, writer = os.pipe()
        status, its_status = os.pipe()
        with self._lock:
            socket.send_fds(self._control, [request], [writer, errors.fileno(), its_status])
            answer, [pidfd], _, _ = socket.recv_fds(self._control, 100, 1)
        os.close(writer)
        os.close(its_status)
        return Started(int(answer), pidfd, status, reader)


_FIRST = os.getpid(), situation()


@functools.cache
def prepared() -> Prepared:
    """The process of this one, made when it is needed."""
    return Prepared()


def start(arguments: list[str], errors: IO[bytes]) -> Started | None:
    """`metad ARGUMENTS`, in its own session.  None: it must be executed."""
    if (os.getpid(), situation()) != _FIRST:
        return None
    return prepared().start(arguments, errors)


# --- The process ----------------------------------------------------------------------------------


def serve(control: socket.socket) -> list[str]:
    """Fork for each request.  Returns in the child, with its arguments."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    _reap(key.fd, *key.data)
                    continue
                request, descriptors, _, _ = socket.recv_fds(control, REQUEST, 3)
                if not request:
                    os._exit(0)
                arguments, directory, environment = json.loads(request)
                out, errors, status = descriptors
                pid = os.fork()
                if pid == 0:
                    control.detach()
                    _begin(directory, environment, out, errors)
                    return [*arguments]
                os.close(out)
                os.close(errors)
                pidfd = os.pidfd_open(pid)
                selector.register(pidfd, selectors.EVENT_READ, (pid, status))
                socket.send_fds(control, [str(pid).encode()], [pidfd])


def _reap(pidfd: int, pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    os.write(status, str(code).encode())
    os.close(status)


def _begin(directory: str, environment: dict[str, str], out: int, errors: int) -> None:
    """As `exec` and the start of the interpreter leave a process."""
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.dup2(out, 1)
    os.dup2(errors, 2)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def main() -> Any:
    from metad import cli
    from metad.cli import hub  # noqa: F401 - all that `metad start` imports
    from metad.master import start  # noqa: F401
    from metad.workers import collector, worker  # noqa: F401

    gc.collect()
    gc.freeze()  # what is there stays there: no page of it is copied for a collection
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = ["metad", *arguments]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
