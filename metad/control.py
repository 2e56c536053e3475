"""The control socket DATA/run/control, through which commands control a running hub.

Rules of this file:

* One request and one reply are one line of JSON each: {"command": "stop", "now": false} and
  {"ok": true, …} or {"ok": false, "error": "…", "remedy": "…", "exit_code": 64}.
* The peer is the hub's owner or root, by SO_PEERCRED, and not a process of the hub itself: a
  compromised one must not reconfigure the hub.  Other connections are closed at once.
* The hub's side never blocks: sockets are non-blocking, lines and clients are bounded, and a client
  that does not read its reply is dropped.
* When the hub exits, its clients see the connection close; this tells `stop` that the hub is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metad import limits
from metad.errors import (
    EX_PROTOCOL,
    MetadError,
    OsError,
)

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid
_READ = 64 * limits.KIB
_SUN_PATH = 107


def socket_path(data: Path) -> Path:
    return data / "run" / "control"


class Connection:
    """One client.  Feed it when its descriptor is readable, flush it when writable."""

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.sock = sock
        self.uid = uid
        self.closed = False
        self._input = bytearray()
        self._output = bytearray()
        self._ending = False

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._output)

    def feed(self) -> list[dict[str, Any]]:
        """The complete requests; `closed` is set when the connection has ended.

        A line that is not a request gets an error and yields nothing.
        """
        try:
            data = self.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        if self._ending:
            return []
        self._input += data
        whole = b"\n" in data or len(self._input) > limits.CONTROL_REQUEST
        return self._requests() if whole else []

    def _requests(self) -> list[dict[str, Any]]:
        *lines, rest = bytes(self._input).split(b"\n")
        self._input = bytearray(rest)
        requests = [request for line in lines if (request := self._request(line)) is not None]
        if len(rest) > limits.CONTROL_REQUEST:
            self._end("the request is too long")
        return [] if self.closed else requests

    def _request(self, line: bytes) -> dict[str, Any] | None:
        if self._ending or self.closed:
            return None
        if len(line) > limits.CONTROL_REQUEST:
            self._end("the request is too long")
            return None
        request = decoded(line)
        if request is None or not isinstance(request.get("command"), str):
            self._end("not a request")
            return None
        return request

    def reply(self, reply: dict[str, Any]) -> None:
        """Queue {"ok": true, **reply}, where `reply` may override "ok", and send what it can."""
        self._send({"ok": True} | reply)

    def reply_with(self, reply: dict[str, Any], descriptors: list[int]) -> None:
        """Reply and pass descriptors; the connection carries nothing else."""
        line = json.dumps({"ok": True} | reply).encode() + b"\n"
        try:
            sent = socket.send_fds(self.sock, [line], descriptors)
        except OSError:
            self.close()
            return
        self._output += line[sent:]

    def reply_error(self, error: MetadError) -> None:
        """Queue an error; the command exits with its text and exit code."""
        facts = {"error": str(error), "remedy": error.remedy, "exit_code": error.exit_code}
        self._send({"ok": False} | facts)

    def flush(self) -> None:
        """Send as much as possible without waiting."""
        while self._output and not self.closed:
            try:
                sent = self.sock.send(self._output)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            del self._output[:sent]
        if self._ending:
            self.close()

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        self._output += json.dumps(message).encode() + b"\n"
        if len(self._output) > limits.CONTROL_OUTPUT:
            self.close()
            return
        self.flush()

    def _end(self, reason: str) -> None:
        self._ending = True
        self._send({"ok": False, "error": reason, "exit_code": EX_PROTOCOL})


class ControlServer:
    """The listening socket and its clients, for a poll loop of one thread.

    Poll `filenos()` for reading and those of `writers()` for writing.  When the listener is
    readable call `accept()`; when a client is, `feed()` of `connection(fd)`.  Call `sweep()` once
    per turn to remove the closed ones.
    """

    def __init__(
        self,
        path: Path,
        owner: int | None = None,
        is_ours: Callable[[int], bool] = lambda pid: False,
    ) -> None:
        """Listen at `path`.  The caller holds DATA/lock, so a socket that exists is a dead hub's.

        `owner`: the uid that is allowed besides root; by default that of this process.
        `is_ours(pid)`: whether a peer is a process of the hub.
        Raises OsError.
        """
        self.path = path
        self.owner = os.geteuid() if owner is None else owner
        self.is_ours = is_ours
        self.connections: dict[int, Connection] = {}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listen()
        except OSError as error:
            self._sock.close()
            raise OsError.of(error, path) from None

    def _listen(self) -> None:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        with short_path(self.path) as path:
            self._sock.bind(path)
        self.path.chmod(0o600)
        self._sock.setblocking(False)
        self._sock.listen(limits.CONTROL_CLIENTS)

    def fileno(self) -> int:
        """The listener's descriptor."""
        return self._sock.fileno()

    def filenos(self) -> list[int]:
        return [self.fileno(), *self.connections]

    def writers(self) -> list[int]:
        return [fd for fd, one in self.connections.items() if one.wants_write]

    def connection(self, fd: int) -> Connection | None:
        return self.connections.get(fd)

    def accept(self) -> Connection | None:
        """The next client; None if there is none, it is not allowed, or there are too many."""
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return None
        try:
            pid, uid = peer(sock)
        except OSError:
            pid, uid = 0, -1
        allowed = uid in (0, self.owner) and not self.is_ours(pid)
        if not allowed or len(self.connections) >= limits.CONTROL_CLIENTS:
            sock.close()
            return None
        sock.setblocking(False)
        connection = Connection(sock, uid)
        self.connections[sock.fileno()] = connection
        return connection

    def sweep(self) -> None:
        self.connections = {fd: one for fd, one in self.connections.items() if not one.closed}

    def close(self) -> None:
        """Close everything, which the clients see, and remove the path."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """For a forked child: close what it inherited; the hub's socket stays."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        self._sock.close()


def peer(sock: socket.socket) -> tuple[int, int]:
    """The pid and uid of the process that connected.  Raises OSError."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def peer_uid(sock: socket.socket) -> int:
    """Raises OSError."""
    return peer(sock)[1]


def decoded(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is not one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """`path` in a form of at most 107 octets, the capacity of a socket's address (unix(7))."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
