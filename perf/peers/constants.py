"""The minimum for a server on uvloop: SMTP's answers as constants, nothing parsed or stored.

Its rate is a bound for any server in Python on uvloop's sockets.  With a directory each process
writes the messages that one turn of its loop brought to a file there, in one write, and syncs them
before their 250s: what any durable server on these sockets has to do.

    python -m perf.peers.constants PORT PROCESSES [DIRECTORY]
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import cast

import uvloop

_OK = b"250 2.0.0 Ok\r\n"
_END = b"\r\n.\r\n"
_FILE_SIZE = 1 << 26


class File:
    """The file for messages, overwritten again and again: written once in advance, so that a sync
    writes no sizes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(self._file, bytes(_FILE_SIZE))
        os.fsync(self._file)
        self._at = 0
        self._group: list[tuple[bytes, Constants]] = []

    def keep(self, message: bytes, session: Constants) -> None:
        """Have the session go on once the message is durable."""
        if not self._group:
            asyncio.get_running_loop().call_soon(self._sync)
        self._group.append((message, session))

    def _sync(self) -> None:
        group, self._group = self._group, []
        self.write(b"".join([message for message, _ in group]))
        for _, session in group:
            session.kept()

    def write(self, messages: bytes) -> None:
        """Write and sync; at most half of the file's size."""
        os.pwrite(self._file, messages, self._at)
        os.fdatasync(self._file)
        self._at = (self._at + len(messages)) % (_FILE_SIZE // 2)


class Constants(asyncio.Protocol):
    """One connection."""

    def __init__(self, file: File | None) -> None:
        self._file = file
        self._rest = b""
        self._in_message = False
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"220 constants\r\n")

    def data_received(self, data: bytes) -> None:
        self._rest += data
        self._answer([])

    def kept(self) -> None:
        self._waits = False
        self._answer([_OK])

    def _answer(self, answers: list[bytes]) -> None:
        while (answer := self._message() if self._in_message else self._command()) is not None:
            answers.append(answer)
        if answers:
            self._transport.write(b"".join(answers))

    def _command(self) -> bytes | None:
        if self._waits:
            return None
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            return None
        self._rest = rest
        if line == b"DATA":
            self._in_message = True
            return b"354 go\r\n"
        if line == b"QUIT":
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
            return None
        return _OK

    def _message(self) -> bytes | None:
        message, end, rest = self._rest.partition(_END)
        if not end:
            return None
        self._rest = rest
        self._in_message = False
        if self._file is None:
            return _OK
        self._waits = True
        self._file.keep(message, self)
        return None


def serve(port: int, directory: Path | None) -> None:
    """One of several processes with a socket of its own for the same port."""
    file = File(directory / f"mail-{os.getpid()}") if directory is not None else None
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    loop = uvloop.new_event_loop()
    loop.run_until_complete(
        loop.create_server(lambda: Constants(file), sock=listening, backlog=512)
    )
    loop.run_forever()


def main() -> int:
    port, processes = int(sys.argv[1]), int(sys.argv[2])
    directory = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    for _ in range(processes - 1):
        if not os.fork():
            break
    serve(port, directory)  # who started it ends the whole process group
    return 0


if __name__ == "__main__":
    sys.exit(main())
