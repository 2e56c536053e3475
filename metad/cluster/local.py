"""The socket DATA/run/directory: what processes and commands of a node ask its directory process.

    frame = 4 bytes length, big endian; a map in msgpack
    {"op": "status"}  ->  {"ok": true, ...}  or  {"ok": false, "error": text}

Rules of this file:

* One connection carries one request after the other.
* A directory process that is away or does not answer in time is a ClusterError like any other.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from metad.control import short_path
from metad.errors import ClusterError, MetadError
from metad.limits import CLUSTER_LOCAL_CLIENTS, CLUSTER_LOCAL_FRAME, CLUSTER_LOCAL_IDLE


class AwayError(ClusterError):
    """The directory process cannot be reached, or did not answer in time."""

    remedy = "metad status shows whether the hub runs; metad start starts it"


Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Message]]
_LENGTH = struct.Struct(">I")


def socket_path(data: Path) -> Path:
    return data / "run" / "directory"


def _encode(message: Message) -> bytes:
    """Raises ClusterError."""
    body: bytes = msgpack.packb(message)
    if len(body) > CLUSTER_LOCAL_FRAME:
        raise ClusterError(f"a frame of {len(body):,} bytes is longer than the directory takes")
    return _LENGTH.pack(len(body)) + body


def _decode(body: bytes) -> Message:
    """Raises ClusterError."""
    try:
        found = msgpack.unpackb(body)
    except (ValueError, TypeError, msgpack.UnpackException):
        found = None
    if not isinstance(found, dict):
        raise ClusterError("a frame of the directory's socket cannot be read")
    return found


def _length(head: bytes) -> int:
    """Raises ClusterError."""
    (length,) = _LENGTH.unpack(head)
    if length > CLUSTER_LOCAL_FRAME:
        raise ClusterError("a frame of the directory's socket is too long")
    return int(length)


def _good(answer: Message) -> Message:
    """Raises ClusterError with the reason of a refusal."""
    if answer.get("ok") is not True:
        remedy = answer.get("remedy", "")
        raise ClusterError(str(answer.get("error", "no reason given")), remedy=str(remedy))
    return answer


def _away(error: Exception, path: Path) -> AwayError:
    if isinstance(error, TimeoutError):
        reason = "it does not answer in time"
    elif isinstance(error, EOFError):
        reason = "it closed the connection"
    else:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return AwayError(f"{path}: the directory process cannot be asked: {reason}")


# --- Asking ---------------------------------------------------------------------------------------


def ask(path: Path, message: Message, patience_s: float = 10.0) -> Message:
    """The answer, for a command: this waits.  Raises ClusterError."""
    data = _encode(message)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(patience_s)
            with short_path(path) as short:
                sock.connect(short)
            sock.sendall(data)
            return _good(_decode(_receive(sock, _length(_receive(sock, _LENGTH.size)))))
    except (OSError, EOFError) as error:
        raise _away(error, path) from None


def _receive(sock: socket.socket, count: int) -> bytes:
    """Raises OSError, EOFError."""
    found = bytearray()
    while len(found) < count:
        data = sock.recv(count - len(found))
        if not data:
            raise EOFError
        found += data
    return bytes(found)


async def request(path: Path, message: Message, patience_s: float = 10.0) -> Message:
    """The answer, for a process with a loop.  Raises ClusterError."""
    data, writer = _encode(message), None
    try:
        async with asyncio.timeout(patience_s):
            with short_path(path) as short:
                reader, writer = await asyncio.open_unix_connection(short)
            writer.write(data)
            return _good(await _read(reader))
    except (OSError, EOFError) as error:
        raise _away(error, path) from None
    finally:
        if writer is not None:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Message:
    """Raises ClusterError, OSError, EOFError."""
    length = _length(await reader.readexactly(_LENGTH.size))
    return _decode(await reader.readexactly(length))


# --- Answering ------------------------------------------------------------------------------------


class LocalServer:
    """The directory's side.  `report` takes lines for the log."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report
        self._handlers: dict[str, Handler] = {}
        self._server: asyncio.AbstractServer | None = None
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    def register(self, op: str, handler: Handler) -> None:
        """`handler` returns what the answer has besides "ok", or raises MetadError."""
        if op in self._handlers:
            raise ValueError(f"there is a handler of {op} already")
        self._handlers[op] = handler

    async def start(self) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with short_path(self._path) as short:
                sock.bind(short)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)

    async def close(self) -> None:
        """Requests that are being carried out are not waited for.  Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with suppress(OSError):
                os.unlink(self._path)
        tasks = [task for task in self._clients.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLUSTER_LOCAL_CLIENTS:
            writer.close()
            return
        self._clients[writer] = asyncio.current_task()
        try:
            while True:
                async with asyncio.timeout(CLUSTER_LOCAL_IDLE):
                    message = await _read(reader)
                writer.write(_encode(await self._answer(message)))
                await writer.drain()
        except (OSError, EOFError):  # it has closed, or is idle
            pass
        except ClusterError as error:
            self._report(f"warning: the directory's socket: {error}")
        finally:
            del self._clients[writer]
            writer.close()

    async def _answer(self, message: Message) -> Message:
        op = message.get("op")
        handler = self._handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            return {"ok": False, "error": f"the directory knows no request {op!r:.40}"}
        try:
            return {"ok": True, **await handler(message)}
        except MetadError as error:
            return {"ok": False, "error": str(error), "remedy": error.remedy}
        except Exception as error:
            self._report(f"panic: the request {op}: {error!r}")
            return {"ok": False, "error": f"the request {op} failed: {error!r}"}
