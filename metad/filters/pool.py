"""Persistent connections to one HTTP server, on the loop of a worker.

Rules of this file:

* At most `connections` at once; a check that finds none free waits in a queue.
* If a persistent connection turns out to be closed before the first octet of the response, the
  request is repeated on a new one: a server may close an idle connection.
* A connection with a missing answer, or one that was given up, is never reused.
* No deadline here: the caller has one and cancels.  Whatever goes wrong is an HttpError or OSError.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple, cast

from metad.filters.body import Body
from metad.filters.http import HttpError, Response, ResponseReader

# Octets of a request that may be queued in a connection.
UNSENT = 128 * 1024


class Address(NamedTuple):
    """A Unix socket's path, or host and port."""

    path: str | None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Connection(asyncio.Protocol):
    """One connection; `response` is a future while a request is under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = ResponseReader()
        self._response: asyncio.Future[Response] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=UNSENT)

    def data_received(self, data: bytes) -> None:
        if self._response is None:  # there is no request
            self.close()
            return
        try:
            response = self._reader.feed(data)
        except HttpError as error:
            self._fail(error)
            return
        if response is not None:
            self._answer(response)

    def eof_received(self) -> bool:
        if self._response is not None:
            try:
                self._answer(self._reader.eof())
            except HttpError as error:
                self._fail(error)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail(exc if isinstance(exc, OSError) else HttpError("it closed the connection"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def close(self) -> None:
        self.closed = True
        self.transport.abort()

    @property
    def answered_nothing(self) -> bool:
        return not self._reader.started

    async def send(self, head: bytes, body: Body) -> Response:
        """One request; `body` in memory that fits is written at once."""
        self._reader = ResponseReader()
        response = self._response = self._loop.create_future()
        try:
            if body.in_memory and body.size <= UNSENT:
                self.transport.writelines([head, *body.parts()])
            else:
                await self._write(head, body, response)
            found: Response = await response
            return found
        finally:
            if not response.done():
                self.close()
            elif not response.cancelled():
                response.exception()  # retrieved, so that asyncio does not warn about it
            self._response = None

    async def _write(self, head: bytes, body: Body, response: asyncio.Future[Response]) -> None:
        """Stops when the server has answered before reading everything, as it may do with an
        error."""
        self.transport.write(head)
        async for piece in body.pieces():
            if response.done():
                self.closed = True
                return
            self.transport.write(piece)
            if self._paused:
                self._writable = self._loop.create_future()
                await self._writable

    def _answer(self, response: Response) -> None:
        waiting = self._response
        if not response.keep:
            self.closed = True
        if waiting is not None and not waiting.done():
            waiting.set_result(response)
        self._wake()

    def _fail(self, error: Exception) -> None:
        waiting = self._response
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        self._wake()
        if not self.closed:
            self.close()

    def _wake(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)


class HttpPool:
    """The connections of one worker to one server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: Address, connections: int) -> None:
        self._loop = loop
        self._address = address
        self._free: deque[_Connection] = deque()
        self._turns = asyncio.Semaphore(connections)
        self._busy: set[_Connection] = set()

    async def post(self, head: bytes, body: Body) -> Response:
        """Send a request and get its response.  Raises HttpError, OSError."""
        async with self._turns:
            while (connection := self._kept()) is not None:
                try:
                    return await self._exchange(connection, head, body)
                except (HttpError, OSError):
                    if not connection.answered_nothing:
                        raise
            return await self._exchange(await self._connect(), head, body)

    def close(self) -> None:
        """Drop every connection; requests under way fail."""
        for connection in [*self._free, *self._busy]:
            connection.close()
        self._free.clear()

    def _kept(self) -> _Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> _Connection:
        address, loop = self._address, self._loop
        if address.path is not None:
            _, made = await loop.create_unix_connection(lambda: _Connection(loop), address.path)
        else:
            _, made = await loop.create_connection(
                lambda: _Connection(loop), address.host, address.port
            )
        return made

    async def _exchange(self, connection: _Connection, head: bytes, body: Body) -> Response:
        self._busy.add(connection)
        try:
            response = await connection.send(head, body)
        finally:
            self._busy.discard(connection)
            if connection.closed:
                connection.close()
        if not connection.closed:
            self._free.append(connection)
        return response
