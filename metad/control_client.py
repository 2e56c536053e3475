"""A command's connection to a running hub (control.py has its protocol, and the hub's side).

Rule of this file: a command never waits in silence: each second of it is told.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from metad import limits
from metad.control import decoded, short_path, socket_path
from metad.errors import MetadError, NotPermittedError, UnavailableError

_READ = 64 * limits.KIB
SILENCE = 1.0  # seconds
_BUSY = "try again; if it happens again, the hub's log says why"


def heard(hub: str, sock: socket.socket, receive: Callable[[], bytes], deadline: float) -> bytes:
    """What `receive` returns by `deadline` (monotonic seconds); each second of silence is told.

    The socket keeps its own timeout, which is for sending.  Raises TimeoutError, OSError.
    """
    told, own = False, sock.gettimeout()
    try:
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(min(left, SILENCE))
            try:
                return receive()
            except TimeoutError:
                Client.tell_silence(hub, max(deadline - time.monotonic(), 0))
                told = True
        raise TimeoutError
    finally:
        sock.settimeout(own)
        if told:
            Client.tell_silence(hub, 0)


class Client:
    """A connection to a running hub.  Raises UnavailableError if there is none."""

    # Called after each second of silence with the name of the hub and the seconds that are left,
    # and with 0 when it ends.  The command line shows it.
    tell_silence: ClassVar[Callable[[str, float], None]] = staticmethod(lambda hub, left: None)

    def __init__(self, data: Path, timeout: float = limits.CONTROL_TIMEOUT) -> None:
        self._timeout = timeout
        self._hub = f"the hub on {data}"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect(socket_path(data))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._sock.close()
            raise UnavailableError(
                f"no hub is running on {data}", remedy="metad start starts it"
            ) from None
        except PermissionError:
            self._sock.close()
            raise NotPermittedError(f"{data}: permitted only to its owner and root") from None
        except OSError as error:
            self._sock.close()
            raise UnavailableError(f"{self._hub} does not answer: {error}", remedy=_BUSY) from None
        self._input = bytearray()

    def _connect(self, path: Path) -> None:
        self._sock.settimeout(self._timeout)
        with short_path(path) as short:
            self._sock.connect(short)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def request(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The hub's reply.  Raises the hub's error with its exit code."""
        line = json.dumps({"command": command} | arguments).encode() + b"\n"
        deadline = time.monotonic() + self._timeout
        try:
            self._sock.sendall(line)
            answer = self._line(deadline)
        except TimeoutError:
            raise UnavailableError(f"{self._hub} does not answer", remedy=_BUSY) from None
        except OSError as error:
            raise UnavailableError(
                f"{self._hub} closed the connection: {error.strerror}", remedy=_BUSY
            ) from None
        reply = decoded(answer)
        if reply is None:
            raise UnavailableError(
                f"{self._hub} sent an unintelligible reply",
                remedy="metad reload executes the installed release",
            )
        if not reply.get("ok"):
            raise _refusal(reply)
        return reply

    def wait_closed(self, seconds: float) -> bool:
        """Whether the hub closed the connection within `seconds`, as it does when it exits."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(_READ):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def _receive(self) -> bytes:
        return self._sock.recv(_READ)

    def _line(self, deadline: float) -> bytes:
        """One line, complete by `deadline` (monotonic seconds)."""
        while b"\n" not in self._input:
            data = heard(self._hub, self._sock, self._receive, deadline)
            if not data or len(self._input) > limits.CONTROL_REPLY:
                raise UnavailableError(
                    f"{self._hub} closed the connection without a reply", remedy=_BUSY
                )
            self._input += data
        line, _, rest = bytes(self._input).partition(b"\n")
        self._input = bytearray(rest)
        return line


def request(
    data: Path, command: str, timeout: float = limits.CONTROL_TIMEOUT, **arguments: Any
) -> dict[str, Any]:
    """Send a request to the hub on `data`.  Raises UnavailableError if none is running."""
    with Client(data, timeout) as client:
        return client.request(command, **arguments)


def _refusal(reply: dict[str, Any]) -> MetadError:
    text, remedy = reply.get("error", "the hub refused"), reply.get("remedy", "")
    error = MetadError(str(text), remedy=str(remedy))
    code = reply.get("exit_code")
    if isinstance(code, int) and 0 < code < 256:
        error.exit_code = code
    return error
