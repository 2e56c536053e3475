"""The nanny: all that ever runs as root, and only where ports below 1024 or a chroot are wanted.

    bind the ports -> make the data directory -> [fork -> become the user -> exec the master] -> ...

Rules of this file:

* It imports next to nothing, parses nothing but its own arguments, and never reads an octet that
  came from a client, a mail or a socket.
* Signals are blocked and waited for: no handler ever runs.
* It ends when its master ends by its own will; a master that was killed, or that failed after it
  had been ready, is started again, later each time.  The bound sockets stay open meanwhile.
* Where the user cannot read Python itself (an interpreter below /root), the master is imported
  before root is given up, and runs without an exec.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from metad import privileges, sockets
from metad.errors import EX_OK, EX_SOFTWARE, EX_TEMPFAIL, MetadError, OsError
from metad.pidfile import PidFile
from metad.privileges import Identity

MASTER = "metad.master.entry"
WAITED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
LONG_LIFE_SECONDS = 60.0
MOST_BACKOFF_SECONDS = 30.0
_SOCKETS_FROM = 3  # sd_listen_fds(3)


class Order(NamedTuple):
    """What a nanny is for.  `listen` are (host, port) with ports below 1024."""

    user: Identity
    chroot: bool
    data: str
    config_fd: int
    slots: int
    pid_file: str
    listen: tuple[tuple[str, int], ...]

    def arguments(self) -> list[str]:
        """As `parse` reads them."""
        name, uid, gid, groups = self.user
        return [
            name, str(uid), str(gid), ",".join(map(str, groups)), "chroot" if self.chroot else "-",
            self.data, str(self.config_fd), str(self.slots), self.pid_file,
            *(f"{host}:{port}" for host, port in self.listen),
        ]  # fmt: skip

    @classmethod
    def parse(cls, given: list[str]) -> Order:
        groups = tuple(map(int, given[3].split(",")))
        user = Identity(given[0], int(given[1]), int(given[2]), groups)
        places = (address.rpartition(":") for address in given[9:])
        listen = tuple((host, int(port)) for host, _, port in places)
        chroot, data, fd, slots = given[4] == "chroot", given[5], int(given[6]), int(given[7])
        return cls(user, chroot, data, fd, slots, given[8], listen)


class Nanny:
    """Holds the sockets, and one master after another."""

    def __init__(self, order: Order) -> None:
        """Raises MetadError."""
        self._order = order
        self._pid_file = PidFile(Path(order.pid_file) if order.pid_file else None)
        self._fds = [fd for host, port in order.listen for fd in _bind(host, port, order.slots)]
        privileges.give_data_to(Path(order.data), order.user)
        self._master = 0
        self._ready_fd = -1
        self._was_ready = False
        self._stopping = False
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)

    def run(self) -> int:
        """The exit code of the last master."""
        delay = 0.0
        while True:
            if self._wait_for_stop(delay):
                return EX_OK
            started = time.monotonic()
            self._start()
            code = self._attend()
            if self._is_final(code):
                self._pid_file.remove()
                return code if code >= 0 else EX_SOFTWARE
            lived = time.monotonic() - started
            delay = 0.1 if lived > LONG_LIFE_SECONDS else min(delay * 2 + 0.1, MOST_BACKOFF_SECONDS)
            _say(f"warning: the master ended ({code}); the next in {delay:.1f} s")

    def _is_final(self, code: int) -> bool:
        return self._stopping or not self._was_ready or code in (EX_OK, EX_TEMPFAIL)

    def _wait_for_stop(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            found = signal.sigtimedwait(WAITED, left)
            if found is not None and found.si_signo in STOPS:
                self._pid_file.remove()
                return True
        return False

    def _attend(self) -> int:
        """Wait for the master's end, pass signals on; its exit code, or the negative signal."""
        while True:
            found = signal.sigtimedwait(WAITED, 0.2 if self._ready_fd >= 0 else 3600)
            self._listen()
            if found is None or found.si_signo == signal.SIGCHLD:
                pid, status = os.waitpid(self._master, os.WNOHANG)
                if pid:
                    self._listen()
                    return os.waitstatus_to_exitcode(status)
            else:
                self._stopping = self._stopping or found.si_signo in STOPS
                os.kill(self._master, found.si_signo)

    def _listen(self) -> None:
        """Whether the master said that it is ready, or never will."""
        if self._ready_fd < 0:
            return
        try:
            word = os.read(self._ready_fd, 1)
        except BlockingIOError:
            return
        os.close(self._ready_fd)
        self._ready_fd = -1
        if word:
            self._was_ready = True
            self._pid_file.write()

    def _start(self) -> None:
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
        nanny = os.getpid()
        self._ready_fd, ready = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._master = os.fork()
        if self._master == 0:
            code = EX_SOFTWARE
            try:
                code = self._be_master(nanny, ready)
            except MetadError as error:
                code = _fatal(error)
            finally:
                os._exit(code)
        os.close(ready)

    def _be_master(self, nanny: int, ready: int) -> int:
        """In the fork: root is given up, and this is the master."""
        order = self._order
        module = None if _can_exec(order.user) else _imported()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED)
        arguments = [str(_up(order.config_fd)), str(_up(ready)), str(nanny), order.data]
        for number, fd in enumerate([_up(fd) for fd in self._fds]):
            os.dup2(fd, _SOCKETS_FROM + number, inheritable=True)
            os.close(fd)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(self._fds)))
        privileges.become(order.user, (privileges.CAP_SYS_CHROOT,) if order.chroot else ())
        if module is not None:
            return int(module.main(arguments))
        return os.execv(sys.executable, [sys.executable, "-P", "-m", MASTER, *arguments])  # noqa: S606


def _up(fd: int) -> int:
    """A copy out of the way of the sockets, kept over an exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, _SOCKETS_FROM + 1024)


def _can_exec(user: Identity) -> bool:
    """Whether that user can read Python and what it needs.  Tried by a fork that becomes it."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


def _imported() -> ModuleType:
    """The master's code, while root can still read it."""
    module = importlib.import_module(MASTER)
    module.prepare()
    return module


def _bind(host: str, port: int, slots: int) -> list[int]:
    try:
        return [sock.detach() for sock in sockets.bind_slots(host, port, slots)]
    except OSError as error:
        raise OsError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"metad: {text}\n".encode("utf-8", "replace"))


def _fatal(error: MetadError) -> int:
    _say(f"fatal: {error}")
    return error.exit_code


def main(arguments: list[str]) -> int:
    try:
        return Nanny(Order.parse(arguments)).run()
    except MetadError as error:
        return _fatal(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
