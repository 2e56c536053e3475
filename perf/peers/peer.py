"""A measured server, and how each kind is started.

Rules of this file:

* Every server delivers into mailboxes of the same users; `undelivered` says how many messages wait
  in its queue, `delivered` how many are in mailboxes.
* Everything is in one temporary directory and on free ports of 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perf.harness import HarnessError, Server
from perf.peers.account import Account
from perf.state import STATE

HERE = Path(__file__).parent
STARTS_WITHIN = 60.0
PASSWORD = "perf"


def _none() -> int:
    return 0


@dataclass(slots=True)
class Peer:
    """A running server.  Ports are 0 where it has none."""

    name: str
    account: Account
    data: Path
    smtp: int = 0
    pop3: int = 0
    lmtp: int = 0
    undelivered: Callable[[], int] = field(default=_none)
    delivered: Callable[[], int] | None = None


def await_greeting(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
            s.settimeout(5)
            if s.recv(512):
                s.sendall(b"QUIT\r\n")
                return
        time.sleep(0.05)
    output = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise HarnessError(f"no server on port {port} (exit {process.poll()}):\n{output}")


@contextlib.contextmanager
def started(
    account: Account, command: list[str], environment: dict[str, str], ports: list[int], log: Path
) -> Iterator[Server]:
    """A process that serves these ports, and is stopped at the end with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        for port in ports:
            await_greeting(port, process, log)
        server = Server(process.pid, ports[0])
        account.adopt(server)
        yield server
    finally:
        # Nothing of it is kept, so it need not end in order; a root's first process ends them all.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def entering(script: str, data: Path, what: str) -> list[str]:
    """The command that runs a peer's script in its own root."""
    root = STATE / "roots" / script
    return ["sh", str(HERE / "enter.sh"), str(root), str(data), str(HERE / f"{script}.sh"), what]


def install(script: str, scratch: Path) -> None:
    """Brings a Debian peer's packages into its root, once."""
    stamp = STATE / "roots" / script / "installed"
    text = (HERE / f"{script}.sh").read_text().partition("configure()")[0]
    if stamp.exists() and stamp.read_text() == text:
        return
    done = subprocess.run(
        entering(script, scratch, "install"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise HarnessError(f"{script} cannot be installed:\n{(done.stdout + done.stderr)[-1500:]}")
    stamp.write_text(text)


def files_below(directory: Path) -> int:
    """Files in a queue; directories that vanish while this looks are taken for empty."""
    found = 0
    for _, _, names in os.walk(directory):
        found += len(names)
    return found


def maildir_count(mail: Path) -> int:
    """Messages in all Maildirs below `mail`, wherever a server puts them."""
    found = 0
    for directory, _, names in os.walk(mail):
        if os.path.basename(directory) in ("new", "cur"):
            found += len(names)
    return found


def mbox_count(mail: Path) -> int:
    """Messages in all mbox files of `mail`."""
    found = 0
    for path in mail.iterdir():
        if path.is_file() and not path.name.endswith(".lock"):
            with path.open("rb") as file:
                found += sum(1 for line in file if line.startswith(b"From load@"))
    return found


def stat_count(port: int, users: tuple[str, ...]) -> int:
    """Messages that POP3 shows in all maildrops."""
    total = 0
    for user in users:
        with socket.create_connection(("127.0.0.1", port), 10) as s, s.makefile("rwb") as wire:
            for line in (b"", f"USER {user}\r\n".encode(), f"PASS {PASSWORD}\r\n".encode()):
                wire.write(line)
                wire.flush()
                reply = wire.readline()
                if not reply.startswith(b"+OK"):
                    raise HarnessError(f"POP3 login of {user}: {reply!r}")
            wire.write(b"STAT\r\n")
            wire.flush()
            total += int(wire.readline().split()[1])
            wire.write(b"QUIT\r\n")
            wire.flush()
            wire.readline()
    return total
