"""A hub as a context manager: temporary data, free ports on loopback, its mail as EmailMessage."""

from __future__ import annotations

import contextlib
import json
import os
import poplib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import IO, NamedTuple, Self, cast

from metad.system.held_signals import held_signals

START_SECONDS = 30.0
STOP_SECONDS = 30.0
EXIT_SECONDS = 1.0  # between the end of its output and its own
POLL_SECONDS = 0.02
LOG_SIZE = "1MiB"
READY = "metad: ready"
ANY_PASSWORD = "any"  # noqa: S105


class HubError(RuntimeError):
    """The hub did not start, or mail did not arrive in time.  The text ends with its log.

    `exit_code`: of a hub that ended instead of starting.
    """

    exit_code: int | None = None


class Address(NamedTuple):
    """The address for a client: `smtplib.SMTP(*hub.smtp)`."""

    host: str
    port: int


class Hub:
    """`accept`: patterns of addresses that get a mailbox at their first message or login; empty:
    only added users.  `any_password`: every password opens every mailbox.  `ports`: of SMTP and
    POP3, 0 for free ones.  `settings`: more TOML.  `data`: where to keep the mail.
    """

    def __init__(
        self,
        *,
        accept: Sequence[str] = ("*@*",),
        any_password: bool = True,
        ports: tuple[int, int] = (0, 0),
        settings: str = "",
        data: Path | None = None,
    ) -> None:
        self.smtp = Address("127.0.0.1", 0)
        self.pop3 = Address("127.0.0.1", 0)
        self._dev = {"accept": list(accept), "any_password": any_password}
        self._ports = ports
        self._settings = settings
        self._given = data
        self._passwords: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- its life

    def start(self) -> None:
        """Start the hub and wait until it is ready.  Raises HubError."""
        self._home = Path(tempfile.mkdtemp(prefix="metad-dev-"))
        try:
            self._home.chmod(0o711)
            self.config.write_text(self._toml())
            self.config.chmod(0o644)
            with self._log.open("wb") as log, held_signals():
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "metad", "start", *self.options],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._wait_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the hub and remove its data, unless `data` was given.  A signal waits meanwhile."""
        with held_signals():
            self._end()
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)
                self._home = None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    @property
    def config(self) -> Path:
        """Its configuration file, for commands: `metad user list --config FILE`."""
        return self._directory / "metad.toml"

    @property
    def options(self) -> list[str]:
        """For commands on it: `metad user list OPTION …`.  --data, because METAD_DATA, which
        overrides the file, may name the data of another hub."""
        return ["--config", str(self.config), "--data", str(self._data)]

    @property
    def log(self) -> str:
        """The hub's log so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    @property
    def _data(self) -> Path:
        return self._given.absolute() if self._given else self._directory / "data"

    @property
    def _directory(self) -> Path:
        if self._home is None:
            raise HubError("the hub is not running")
        return self._home

    def _toml(self) -> str:
        smtp, pop3 = self._ports
        user = 'user = "nobody"\n' if os.geteuid() == 0 else ""
        dev = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self._dev.items())
        listeners = "".join(
            f'[[listen]]\nprotocol = "{protocol}"\naddress = "127.0.0.1:{port}"\n'
            for protocol, port in (("smtp", smtp), ("pop3", pop3))
        )
        store = f'[store]\nworkers = 1\nlog_size = "{LOG_SIZE}"\n'
        limits = '[limits]\nmessage_size = "256KiB"\n' if "[limits]" not in self._settings else ""
        head = f'hostname = "dev.example.test"\n{user}data = {json.dumps(str(self._data))}\n'
        return f"{head}{self._settings}\n{listeners}{store}{limits}[dev]\n{dev}"

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        for line in _lines(process, time.monotonic() + START_SECONDS):
            words = line.split()
            if line == READY:
                return
            if words[:1] == ["listening"]:
                host, _, port = words[2].rpartition(":")
                setattr(self, words[1], Address(host, int(port)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        error = HubError(f"the hub did not start:\n{self.log}")
        error.exit_code = process.returncode
        raise error

    # -- users and mail

    def add_user(self, address: str, password: str) -> None:
        """Add a mailbox with a password.  Raises HubError."""
        command = [sys.executable, "-m", "metad", "user", "add", address, "--password-stdin"]
        done = subprocess.run(
            [*command, *self.options],
            input=f"{password}\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise HubError(done.stderr.strip())
        self._passwords[address] = password

    def messages(self, user: str) -> list[EmailMessage]:
        """The mailbox of `user`, oldest message first; nothing is deleted."""
        with self._session(user) as session:
            return [
                _parsed(b"\n".join(session.retr(number)[1]) + b"\n")
                for number in range(1, session.stat()[0] + 1)
            ]

    def wait_for(self, user: str, count: int = 1, timeout: float = 10.0) -> list[EmailMessage]:
        """The mailbox once it holds at least `count` messages.  Raises HubError after `timeout`."""
        deadline = time.monotonic() + timeout
        while True:
            with self._session(user) as session:
                found: int = session.stat()[0]
            if found >= count:
                return self.messages(user)
            if time.monotonic() > deadline:
                text = f"{user}: {found} messages after {timeout:g} s, not {count}"
                raise HubError(f"{text}; the hub's log:\n{self.log}")
            select.select([], [], [], POLL_SECONDS)

    def clear(self, user: str) -> int:
        """Delete every message of `user`.  Returns their number."""
        with self._session(user) as session:
            count: int = session.stat()[0]
            for number in range(1, count + 1):
                session.dele(number)
        return count

    @contextlib.contextmanager
    def _session(self, user: str) -> Iterator[poplib.POP3]:
        session = poplib.POP3(*self.pop3, timeout=START_SECONDS)
        try:
            session.user(user)
            session.pass_(self._passwords.get(user, ANY_PASSWORD))
            yield session
            session.quit()
        except poplib.error_proto as error:
            raise HubError(f"{user}: {error}") from None
        finally:
            session.close()


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """The lines of its standard output until it ends or the deadline passes."""
    pending = b""
    output = cast(IO[bytes], process.stdout).fileno()
    while select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
        piece = os.read(output, 4096)
        if not piece:
            return
        *lines, pending = (pending + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)


def _parsed(octets: bytes) -> EmailMessage:
    return message_from_bytes(octets, policy=policy.default)
