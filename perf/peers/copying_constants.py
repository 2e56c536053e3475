"""The minimum for two nodes that both have a message on disk before its 250.

Like `constants` with a directory; besides, the messages of a turn of the loop go to another
process in one write, before they are written here, and their 250s wait for its answer, too.
Neither parses anything, and their connection has no TLS: a bound for what `copies` measures.

    python -m perf.peers.copying_constants get PORT DIRECTORY
    python -m perf.peers.copying_constants take PORT DIRECTORY PORT_OF_THE_OTHER
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from perf.peers.constants import Constants, File

_SIZE = 4  # bytes of a length before each piece
_ANSWER = b"."


class Link(asyncio.Protocol):
    """The side that sends pieces; `answered` is called for each answer."""

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for _ in data:
            self._answered()

    def send(self, piece: bytes) -> None:
        self.transport.write(len(piece).to_bytes(_SIZE, "big") + piece)


class CopiedFile(File):
    """Each group is durable here and at the other end."""

    link: Link

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._copied: deque[list[tuple[bytes, Constants]]] = deque()

    def _sync(self) -> None:
        group, self._group = self._group, []
        self._copied.append(group)
        messages = b"".join([message for message, _ in group])
        self.link.send(messages)
        self.write(messages)

    def answered(self) -> None:
        """The other has the oldest group, and so has this process: its loop waits at its disk."""
        for _, session in self._copied.popleft():
            session.kept()


class Other(asyncio.Protocol):
    """The side that gets pieces, writes, syncs and answers."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= _SIZE:
            end = _SIZE + int.from_bytes(self._rest[:_SIZE], "big")
            if len(self._rest) < end:
                return
            self._file.write(self._rest[_SIZE:end])
            self._rest = self._rest[end:]
            self._transport.write(_ANSWER)


def _listening(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def _get(port: int, directory: Path) -> None:
    file = File(directory / f"copies-{os.getpid()}")
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Other(file), sock=_listening(port))


async def _take(port: int, directory: Path, other: int) -> None:
    file = CopiedFile(directory / f"mail-{os.getpid()}")
    loop = asyncio.get_running_loop()
    _, file.link = await loop.create_connection(lambda: Link(file.answered), "127.0.0.1", other)
    await loop.create_server(lambda: Constants(file), sock=_listening(port), backlog=512)


def main() -> int:
    which, port, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    loop = uvloop.new_event_loop()
    if which == "get":
        loop.run_until_complete(_get(port, directory))
    else:
        loop.run_until_complete(_take(port, directory, int(sys.argv[4])))
    loop.run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
