"""The cost of a message or a poll in a worker's code alone: real sessions and store, but no
sockets.

A worker is made in this process, on a RAM disk, with sessions whose transport only counts.  Each
round gives every session one message in four pieces, as sent by a client that waits for its
answers, and ends when all have their 250.  This excludes the cost of the kernel's sockets and of a
disk, and shows a change of the code even on a busy machine: the minimum of many rounds counts.
With `--polls` each session is a new one that logs in by POP3, asks STAT and quits; with
`--downloads` one POP3 session retrieves messages of 500 bytes.

    python -m perf.session [--polls | --downloads] [--sessions 50] [--rounds 500] [--layer null]
    python -m perf.session --calls          which functions are called how often per message

Prints microseconds of this process's CPU per message or poll; or its calls of functions and the
instructions of Python, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import posix_ipc

from metad.config.model import Config
from metad.config.parse import parse
from metad.layers.logs import LogLayer
from metad.sessions import listeners
from metad.store import hub_time
from metad.store.identity import open_or_make_store
from metad.store.index.index import Index
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, Role, SharedArea
from metad.users.database import UserDatabase
from metad.workers.worker import MailWorker, WorkerSetup, quieten_collector
from perf.smtp_load import message

RAM_DISK = "/dev/shm"
USERS = tuple(f"user{number}@perf.example" for number in range(20))
SIZE = 500
PASSWORD = b"secret"


# Something with a descriptor that is no socket: nothing waits on it.
_NOTHING = open(os.devnull, "rb")


class Transport:
    """Discards answers; calls `answered` for each."""

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 40000) if name == "peername" else _NOTHING

    def write(self, octets: bytes) -> None:
        self._answered()

    def writelines(self, octets: Sequence[bytes]) -> None:
        self._answered()

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


class Answers(Transport):
    """Keeps them."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.answers: list[bytes] = []

    def write(self, octets: bytes) -> None:
        self.answers.append(octets)

    def writelines(self, octets: Sequence[bytes]) -> None:
        self.answers += octets


class Bench:
    """A worker without sockets.  `on_disk`: not on a RAM disk."""

    on_disk = False

    def __init__(self, config: Config, area: SharedArea, semaphore: Any, each: int) -> None:
        """A round has so many messages or polls."""
        self.each = each
        row = area.process(1)
        row[Cell.ROLE] = Role.WORKER
        self._config = config
        self._worker = MailWorker(WorkerSetup(config, [], area, semaphore, row, lambda: None))
        self._loop = self._worker._loop
        quieten_collector()

    def round(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._worker._tick()
        self._worker._close()


class Messages(Bench):
    """SMTP sessions that stay."""

    def __init__(self, config: Config, area: SharedArea, semaphore: Any, each: int) -> None:
        super().__init__(config, area, semaphore, each)
        self._due = 0
        service = listeners._smtp(self._worker._context, config.listen[0])
        self.sessions = [service.make() for _ in range(each)]
        for session in self.sessions:
            transport = cast(asyncio.Transport, Transport(self._answered))
            session.connection_made(transport)
            session.data_received(b"EHLO load.perf.example\r\n")
        self._recipients = [
            f"RCPT TO:<{USERS[number % len(USERS)]}>\r\n".encode() for number in range(each)
        ]
        self._text = message(SIZE) + b".\r\n"

    def _answered(self) -> None:
        self._due -= 1
        if not self._due:
            self._loop.stop()

    def round(self) -> None:
        """One message for each session."""
        self._due = 4 * len(self.sessions)
        self._give(b"MAIL FROM:<load@perf.example>\r\n")
        for session, octets in zip(self.sessions, self._recipients, strict=True):
            session.data_received(octets)
        self._give(b"DATA\r\n")
        self._give(self._text)
        if self._due:
            self._loop.run_forever()

    def _give(self, octets: bytes) -> None:
        for session in self.sessions:
            session.data_received(octets)


class Polls(Bench):
    """POP3 sessions that log in, find nothing and quit."""

    def __init__(self, config: Config, area: SharedArea, semaphore: Any, each: int) -> None:
        super().__init__(config, area, semaphore, each)
        context = self._worker._context
        self._service = listeners._pop3(context, config.listen[1])
        self._users = [f"USER {user}\r\n".encode() for user in USERS]
        for user in USERS:
            account = context.users.account(user)
            assert account is not None
            context.logins.remember(user, PASSWORD, account)

    def round(self) -> None:
        """Every poll; as many at a time as there are users, because a mailbox takes one session."""
        transport = cast(asyncio.Transport, Transport(lambda: None))
        for start in range(0, self.each, len(USERS)):
            users = self._users[: self.each - start]
            self._together([(transport, user) for user in users])

    def _together(self, polls: Sequence[tuple[asyncio.Transport, bytes]]) -> None:
        """Polls whose QUIT is answered within the same turn of the loop, with their log lines."""
        sessions = []
        for transport, user in polls:
            session = self._service.make()
            session.connection_made(transport)
            session.data_received(user)
            session.data_received(b"PASS " + PASSWORD + b"\r\n")
            session.data_received(b"STAT\r\n")
            session.data_received(b"QUIT\r\n")
            sessions.append(session)
        self._turn()
        for session in sessions:
            session.connection_lost(None)
        self._turn()

    def _turn(self) -> None:
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()

    def poll(self, user: str) -> list[bytes]:
        """One poll of this mailbox; its answers."""
        transport = Answers()
        self._together([(cast(asyncio.Transport, transport), b"USER %s\r\n" % user.encode())])
        return transport.answers

    def mailbox(self, user: str) -> int:
        account = self._worker._context.users.account(user)
        assert account is not None
        return account.id

    @property
    def index(self) -> Index:
        return cast(LogLayer, self._worker._context.layer).index


class Downloads(Bench):
    """A POP3 session that retrieves one message after another, repeatedly.

    Not on a RAM disk, which does not support non-blocking reads.
    """

    on_disk = True

    def __init__(self, config: Config, area: SharedArea, semaphore: Any, each: int) -> None:
        super().__init__(config, area, semaphore, each)
        context = self._worker._context
        account = context.users.account(USERS[0])
        assert account is not None
        context.logins.remember(USERS[0], PASSWORD, account)
        self._due = each
        sender = listeners._smtp(context, config.listen[0]).make()
        sender.connection_made(cast(asyncio.Transport, Transport(self._stored)))
        sender.data_received(b"EHLO load.perf.example\r\n")
        for _ in range(each):
            sender.data_received(
                b"MAIL FROM:<load@perf.example>\r\nRCPT TO:<%s>\r\nDATA\r\n" % USERS[0].encode()
            )
            sender.data_received(message(SIZE) + b".\r\n")
        self._loop.run_forever()
        self._session = listeners._pop3(context, config.listen[1]).make()
        self._session.connection_made(cast(asyncio.Transport, Transport(self._answered)))
        self._session.data_received(b"USER %s\r\n" % USERS[0].encode())
        self._session.data_received(b"PASS " + PASSWORD + b"\r\nUIDL\r\n")
        self._loop.call_later(0.1, self._loop.stop)  # the listing is made in steps
        self._loop.run_forever()
        self._retrieve = [b"RETR %d\r\n" % number for number in range(1, each + 1)]

    def _stored(self) -> None:
        context = self._worker._context
        if context.row[Cell.MESSAGES] >= self._due:
            self._loop.call_later(0.1, self._loop.stop)

    def _answered(self) -> None:
        self._due -= 1
        if not self._due:
            self._loop.stop()

    def round(self) -> None:
        """Every message once."""
        self._due = 0
        for command in self._retrieve:
            self._due += 1
            self._session.data_received(command)
        if self._due:  # a disk was waited for
            self._loop.run_forever()


def timed(bench: Bench, rounds: int) -> list[float]:
    """Microseconds of CPU per message, of each round."""
    found = []
    for _ in range(rounds):
        began = time.process_time_ns()
        bench.round()
        found.append((time.process_time_ns() - began) / bench.each / 1000)
    return found


def calls(bench: Bench, rounds: int) -> Counter[str]:
    """Calls in so many rounds, by function."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            found[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            name = getattr(function, "__qualname__", repr(function))
            found[f"  {name} in {frame.f_code.co_qualname}"] += 1

    sys.setprofile(note)
    for _ in range(rounds):
        bench.round()
    sys.setprofile(None)
    return found


def instructions(bench: Bench, rounds: int) -> int:
    """Python's instructions in so many rounds, on any machine the same."""
    found = 0

    def note(frame: FrameType, event: str, _: object) -> Any:
        nonlocal found
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        found += event == "opcode"
        return note

    sys.settrace(note)
    for _ in range(rounds):
        bench.round()
    sys.settrace(None)
    return found


def show_calls(bench: Bench) -> None:
    rounds = 4
    messages = rounds * bench.each
    found = calls(bench, rounds)
    for name, count in found.most_common():
        if count >= messages / 2:
            print(f"{count / messages:6.2f} {name}")
    total = sum(count for name, count in found.items() if not name.startswith(" "))
    print(f"{total / messages:.1f} calls of Python functions each")
    print(f"{instructions(bench, rounds) / messages:.0f} instructions of Python each")


def show_times(bench: Bench, rounds: int) -> None:
    found = timed(bench, rounds)
    print(
        f"{bench.each} sessions, {rounds} rounds: {min(found):.1f} us of CPU each "
        f"at least, {statistics.median(found):.1f} at the median"
    )


def place(make: type[Bench]) -> str | None:
    """The directory in which to make the store's; None: the usual one for temporary files."""
    return RAM_DISK if Path(RAM_DISK).is_dir() and not make.on_disk else None


B = TypeVar("B", bound=Bench)


def made(make: type[B], layer: str, each: int, where: Path) -> B:
    """A warm worker on an empty store in `where`."""
    data = where / "data"
    for part in ("users", "logs", "run"):
        (data / part).mkdir(parents=True)
    text = f'hostname = "mx.perf.example"\n[store]\nlayer = "{layer}"\n'
    config = parse(text, None, data, {})
    open_or_make_store(Osio(), data)
    with UserDatabase(data / "users", create=True) as users:
        for user in USERS:
            users.add(user, None)
    name = f"/metad-perf-{os.getpid()}"
    area = SharedArea.create(name)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=1)
    semaphore.unlink()
    area.unlink()
    hub_time.begin(Osio(), area, 0)
    bench = make(config, area, semaphore, each)
    for _ in range(20):
        bench.round()
    return bench


def kind(options: argparse.Namespace) -> type[Bench]:
    return Polls if options.polls else Downloads if options.downloads else Messages


def run(options: argparse.Namespace, where: Path) -> None:
    make = kind(options)
    bench = made(make, options.layer, options.sessions, where)
    if options.calls:
        show_calls(bench)
    else:
        show_times(bench, options.rounds)
    bench.close()


def silence() -> None:
    """Log lines are part of the cost, but only errors are shown."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--polls", action="store_true")
    parser.add_argument("--downloads", action="store_true")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--layer", default="log", choices=("log", "null"))
    parser.add_argument("--calls", action="store_true")
    options = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory(prefix="metad-perf-", dir=place(kind(options))) as where:
        run(options, Path(where))
    return 0


if __name__ == "__main__":
    sys.exit(main())
