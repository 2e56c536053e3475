"""A stand-in for rspamd on a Unix socket: answers or misbehaves as a test wants.

Rules of this file: one thread, no sleeping; `mode` is read when a request is complete.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple, Self

CLEAN = {"action": "no action", "score": 0.5, "required_score": 15.0, "symbols": {}}


class Request(NamedTuple):
    """`fields`: names in lower case, values in order."""

    fields: dict[str, list[str]]
    body: bytes
    connection: int


class FakeRspamd:
    """`answer`: the JSON object; `mode`: how it is sent.

    Modes: "answer", "silent" (accepts and says nothing), "close" (in the middle of the body),
    "drop" (before any octet), "garbage" (no HTTP), "json" (no JSON), "huge", "endless" (a head
    without an end), "500", "chunked", "long" (more than announced), "once" (answers, then closes).
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="fake rspamd "))
        self.home.chmod(0o755)
        self.path = self.home / "worker.sock"
        self.answer: dict[str, Any] = dict(CLEAN)
        self.mode = "answer"
        self.requests: list[Request] = []
        self.connections = 0
        self._arrived = threading.Semaphore(0)
        self._listener: socket.socket | None = None
        self._stop, self._stopped = socket.socketpair()
        self._open: dict[socket.socket, tuple[int, bytearray]] = {}
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._stop.close()
        self._stopped.close()
        shutil.rmtree(self.home)

    def up(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o777)
        self._listener.listen(100)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """What has arrived so far."""
        self.requests.clear()
        self._arrived = threading.Semaphore(0)

    def wait(self) -> None:
        """Until one request more has arrived since the last `forget`."""
        assert self._arrived.acquire(timeout=30)

    def down(self) -> None:
        """Stop listening, and close every connection."""
        if self._thread is None or self._listener is None:
            return
        self._stop.send(b"x")
        self._thread.join()
        self._stopped.recv(1)
        self._thread = None
        for one in [*self._open, self._listener]:
            one.close()
        self._open.clear()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._listener is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopped:
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._read(selector, key.fileobj)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._listener is not None
        accepted, _ = self._listener.accept()
        self.connections += 1
        self._open[accepted] = (self.connections, bytearray())
        selector.register(accepted, selectors.EVENT_READ)

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        number, held = self._open[connection]
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        held += data
        keep = bool(data)
        request = _request(held, number)
        if request is not None:
            self.requests.append(request)
            held.clear()
            try:
                keep = self._respond(connection)
            except OSError:
                keep = False
            self._arrived.release()
        if not keep:
            selector.unregister(connection)
            del self._open[connection]
            connection.close()

    def _respond(self, connection: socket.socket) -> bool:
        """Whether the connection stays open."""
        body = json.dumps(self.answer).encode()
        head = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
        match self.mode:
            case "silent":
                return True
            case "drop":
                return False
            case "close":
                connection.sendall(head % len(body) + body[: len(body) // 2])
                return False
            case "garbage":
                connection.sendall(b"\x00\x01 hello\r\n\r\n")
            case "json":
                connection.sendall(head % 9 + b"not json!")
            case "huge":
                connection.sendall(head % (1 << 31))
            case "endless":
                with contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)
            case "500":
                connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
            case "chunked":
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                )
            case "long":
                connection.sendall(head % len(body) + body + b"more")
            case "once":
                connection.sendall(head % len(body) + body)
                return False
            case _:
                connection.sendall(head % len(body) + body)
        return True


def _request(held: bytearray, number: int) -> Request | None:
    end = held.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = bytes(held[:end]).decode().split("\r\n")
    assert lines[0] == "POST /checkv2 HTTP/1.1"
    fields: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        fields.setdefault(name.lower(), []).append(value)
    body = bytes(held[end + 4 :])
    if len(body) < int(fields["content-length"][0]):
        return None
    return Request(fields, body, number)
