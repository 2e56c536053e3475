"""A real hub for the end-to-end tests: `metad start` on free ports of the loopback.

Rules of this file:

* Nothing waits by sleeping: the ready line, a pidfd or a closed pipe signals each condition.
* The hub has its own directory, with a blank in its name, accessible to the user that it becomes
  when the tests run as root (pytest's directories are not).
* A test that ends a hub checks that it leaves no process, no shared memory, no semaphore, and no
  traceback in its log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Self

from metad.cli.context import become_owner
from metad.control_client import request
from metad.errors import UnavailableError
from metad.users.database import UserDatabase
from tests.support import prepared
from tests.support.forked import forked

DEADLINE = 30.0  # seconds for anything that takes a fraction of one
PASSWORD = "secret"
HOSTNAME = "hub.example.test"
USER = "nobody"  # what a hub started by root becomes
SHARED = Path("/dev/shm")
METAD = str(Path(sys.executable).with_name("metad"))


class HubError(AssertionError):
    """The hub failed; `str()` shows its log."""


def address(name: str) -> str:
    return f"{name}@example.test"


class Hub:
    """One data directory, and the hub that runs on it between `start` and `stop` or `kill`."""

    def __init__(self, mailboxes: Iterable[str] = ("alice",), settings: str = "", **store: object):
        """`settings`: more TOML, of tables not given here; `store`: keys of [store]."""
        self.home = Path(tempfile.mkdtemp(prefix="metad hub "))
        self.home.chmod(0o711)
        self.data = self.home / "data"
        self.config = self.home / "metad.toml"
        self.log = self.home / "log"
        self.options: list[str] = []  # more of `metad start`
        self.environ: dict[str, str] | None = None  # of its programs; None: of this process
        self.process: subprocess.Popen[str] | prepared.Started | None = None
        self.shared: set[Path] = set()
        self.configure(settings, **store)
        try:
            self.add_all(list(mailboxes))
        except BaseException:
            shutil.rmtree(self.home)
            raise

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            shutil.rmtree(self.home)
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close(failed=kind is not None)
        finally:
            shutil.rmtree(self.home)

    def configure(self, settings: str = "", **store: object) -> None:
        """Write the configuration: loopback, any free port, small logs."""
        keys = {"workers": 2, "log_size": "8MiB"} | store
        lines = [f'hostname = "{HOSTNAME}"', f"data = {json.dumps(str(self.data))}"]
        if os.geteuid() == 0:
            lines.append(f'user = "{USER}"')
        self.smtp_port, self.pop3_port = free_ports(2)
        for protocol, port in (("smtp", self.smtp_port), ("pop3", self.pop3_port)):
            lines += ["[[listen]]", f'protocol = "{protocol}"', f'address = "127.0.0.1:{port}"']
        lines += ["[store]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        self.config.write_text("\n".join([*lines, settings, ""]))
        self.config.chmod(0o644)

    # -- commands

    def run(
        self, *arguments: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command of metad's, with this hub's configuration."""
        command = [METAD, *arguments, "--config", str(self.config)]
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env=self.environ,
        )
        return judged(done, check=check)

    def run_forked(
        self, *arguments: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """As `run`, without the cost of a new interpreter: in a forked child."""
        if self.environ is not None:
            return self.run(*arguments, given=given, check=check)
        return judged(forked([*arguments, "--config", str(self.config)], given), check=check)

    def add(self, name: str, password: str = PASSWORD) -> None:
        self.run_forked("user", "add", address(name), "--password-stdin", given=f"{password}\n")

    def add_all(self, names: list[str]) -> None:
        """Many mailboxes at the price of one: the first by the command, which makes the data
        directory, the others by a child that becomes its owner as the command does."""
        if not names:
            return
        self.add(names[0])
        pid = os.fork()
        if pid == 0:
            os._exit(_add_rest(self.data, names[1:]))
        if os.waitpid(pid, 0)[1]:
            raise HubError("the mailboxes could not be made")

    def status(self) -> dict:
        return json.loads(self.run_forked("status", "--json").stdout)

    # -- its life

    def announced(self) -> list[str]:
        """Its output before it is ready."""
        ports = {"smtp": self.smtp_port, "pop3": self.pop3_port}
        return [f"listening {kind} 127.0.0.1:{port}" for kind, port in ports.items()]

    def wrapper(self) -> list[str]:
        """What to start the hub through; it must exec."""
        return []

    def start(self) -> Self:
        """Start and wait for the ready line.  Raises HubError with the log if it does not come."""
        arguments = ["start", "--config", str(self.config), *self.options]
        with self.log.open("ab") as log:
            if self.environ is None and not self.wrapper():
                self.process = prepared.start(arguments, log)
            if self.process is None:
                self.process = self._executed(arguments, log)
        said = []
        for line in lines_of(self.process.stdout.fileno(), DEADLINE):
            said.append(line)
            if line == "metad: ready":
                self.shared |= shared_files(self.process.pid)
                assert said[:-1] == self.announced()
                return self
        self.kill()
        raise HubError(f"no hub got ready; its log:\n{self.log.read_text()}")

    def _executed(self, arguments: list[str], log: IO[bytes]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.wrapper(), METAD, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=self.environ,
        )

    def pids(self) -> list[int]:
        """Every process of this hub: those of its session."""
        return [] if self.process is None else session_pids(self.process.pid)

    def workers(self) -> list[int]:
        """The processes that serve: neither the master nor the collector."""
        try:
            return [one["pid"] for one in request(self.data, "status")["workers"] if one["pid"]]
        except UnavailableError:
            return []

    def stop(self, *, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit status, once all its processes are gone."""
        process = self.process
        with watching(self.pids()) as gone:
            process.send_signal(number)
            gone(DEADLINE)
        return self.finished()

    def kill(self) -> None:
        """kill -9 of all its processes at once; wait until none is left."""
        with watching(self.pids()) as gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            gone(DEADLINE)
        self.finished()

    def kill_master(self) -> None:
        """kill -9 of the first process alone; the others die with it."""
        with watching(self.pids()) as gone:
            self.process.kill()
            gone(DEADLINE)
        self.finished()

    def finished(self) -> int:
        """Reap a hub that has ended by itself or is just ending; its exit status."""
        process, self.process = self.process, None
        status = process.wait(DEADLINE)
        process.stdout.close()
        if left := session_pids(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
            raise HubError(f"the hub ended and left processes {left}")
        return status

    def restart(self) -> Hub:
        self.stop()
        return self.start()

    def close(self, *, failed: bool = False) -> None:
        """The end of a test: stop what runs, look for what is left.  A killed hub may leave its
        shared memory to the next start; without a next start it is removed here."""
        clean = self.process is not None
        if self.process is not None:
            status = self.stop()
        left = {path for path in self.shared if path.exists()}
        for path in left:
            path.unlink()
        log = self.log.read_text() if self.log.exists() else ""
        if failed:
            print(f"the hub's log:\n{log}")
            return
        assert not (wrong := wrong_lines(log)), wrong
        if clean:
            assert status == 0, f"the hub ended with {status}:\n{log}"
            assert not left, f"the hub left {left}"


def judged(
    done: subprocess.CompletedProcess[str], *, check: bool
) -> subprocess.CompletedProcess[str]:
    """A command that has ended, unless it failed and may not, or has shown a bug."""
    if "Traceback" in done.stderr or (check and done.returncode):
        raise HubError(f"{done.args} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done


def _add_rest(data: Path, names: list[str]) -> int:
    """The whole of a forked child; its exit status."""
    try:
        become_owner(data)
        with UserDatabase(data / "users") as database:
            list(database.add_many((address(name), PASSWORD.encode()) for name in names))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


class Ports:
    """Ports of the loopback for this process alone, however many tests run side by side.

    They lie below those that the kernel gives to clients, so none is taken between its
    choice and its use.  The name of an abstract socket, which goes with the process, keeps the
    block to us.
    """

    BLOCK = 128
    LOWEST = 10_240

    def __init__(self) -> None:
        dynamic = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        blocks = range(self.LOWEST, max(dynamic, 32_768) - self.BLOCK, self.BLOCK)
        self.claim = socket.socket(socket.AF_UNIX)
        for first in random.SystemRandom().sample(blocks, len(blocks)):
            with contextlib.suppress(OSError):
                self.claim.bind(f"\0metad-test-ports-{first}")
                self.numbers = itertools.cycle(range(first, first + self.BLOCK))
                return
        raise HubError("no block of ports is free")

    def free(self) -> int:
        """The next port that no other process on the machine has."""
        for port in itertools.islice(self.numbers, self.BLOCK):
            with contextlib.suppress(OSError), socket.socket() as one:
                one.bind(("127.0.0.1", port))
                return port
        raise HubError("no port of the block is free")


_PORTS = Ports()  # now, and not in some test that has a network namespace of its own


def free_ports(count: int) -> list[int]:
    """Loopback ports that no process has, nor gets by chance."""
    return [_PORTS.free() for _ in range(count)]


def wrong_lines(log: str) -> str:
    """Log lines that no input may cause: tracebacks and panics, with their context."""
    lines = log.splitlines()
    wrong = [number for number, line in enumerate(lines) if re.search("Traceback|panic", line)]
    return "\n".join(line for one in wrong[:3] for line in lines[max(0, one - 2) : one + 60])


# --- Processes ------------------------------------------------------------------------------------


def lines_of(descriptor: int, seconds: float) -> Iterator[str]:
    """Lines as they come, until the other end closes or `seconds` have passed."""
    deadline = time.monotonic() + seconds
    pending = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return
        data = os.read(descriptor, 65536)
        if not data:
            return
        *whole, pending = (pending + data).split(b"\n")
        yield from (line.decode() for line in whole)


def session_pids(session: int) -> list[int]:
    """The processes of a session that are no zombies."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Fields after the command's name, which may hold anything: state, ppid, pgrp, session.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(process.name))
    return found


def shared_files(pid: int) -> set[Path]:
    """The shared memory that a process has mapped, and the semaphore of the same name (which glibc
    maps under a name that is gone at once)."""
    names = re.findall(r" /dev/shm/(metad\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.M)
    return {SHARED / part for name in names for part in (name, f"sem.{name}")}


@contextlib.contextmanager
def watching(pids: Iterable[int]):
    """Gives what waits until all of `pids` have ended: by pidfd, so a number used again is safe."""
    watched = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            watched[os.pidfd_open(pid)] = pid

    def gone(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        waiting = dict(watched)
        while waiting:
            ended = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ended:
                raise HubError(f"processes {sorted(waiting.values())} do not end")
            for descriptor in ended:
                del waiting[descriptor]

    try:
        yield gone
    finally:
        for descriptor in watched:
            os.close(descriptor)
