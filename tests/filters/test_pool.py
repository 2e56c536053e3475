"""The pool of persistent connections, with a server that answers as the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from metad.filters.body import of_bytes
from metad.filters.http import HttpError, request
from metad.filters.pool import Address, HttpPool

Answer = Callable[[int, bytes], Awaitable[bytes | None]]
SECONDS = 20.0


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Server:
    """`answer` gets the number of the connection and the body of the request; None closes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connections = 0
        self.requests = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def ended(self) -> None:
        """Until every connection is closed."""
        await asyncio.gather(*self._tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                self.requests += 1
                octets = await self._answer(number, body)
                if octets is None:
                    break
                writer.write(octets)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def pool_of(answer: Answer, connections: int = 4) -> AsyncIterator[tuple[HttpPool, Server]]:
    with tempfile.TemporaryDirectory(prefix="metad-pool-") as directory:
        path = os.path.join(directory, "socket")
        server = Server(answer)
        listening = await asyncio.start_unix_server(server.serve, path)
        pool = HttpPool(asyncio.get_running_loop(), Address(path), connections)
        try:
            async with asyncio.timeout(SECONDS):
                yield pool, server
        finally:
            pool.close()
            listening.close()
            await server.ended()


async def ask(pool: HttpPool, text: bytes) -> bytes:
    found = await pool.post(request("/checkv2", [], len(text)), of_bytes(text))
    return found.body


async def echo(number: int, body: bytes) -> bytes | None:
    return response(body)


def test_a_request_that_was_given_up_is_answered_to_no_caller() -> None:
    """Its late answer must not become that of the next request."""

    async def main() -> None:
        asked, late = asyncio.Event(), asyncio.Event()

        async def answer(number: int, body: bytes) -> bytes | None:
            if body == b"slow":
                asked.set()
                await late.wait()
            return response(body)

        async with pool_of(answer) as (pool, server):
            task = asyncio.create_task(ask(pool, b"slow"))
            await asked.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            late.set()
            assert await ask(pool, b"next") == b"next"
            assert server.connections == 2

    asyncio.run(main())


def test_more_than_was_announced_spoils_the_connection() -> None:
    async def main() -> None:
        async def answer(number: int, body: bytes) -> bytes | None:
            return response(body) + (response(b"forged") if body == b"one" else b"")

        async with pool_of(answer) as (pool, server):
            with pytest.raises(HttpError, match="more than it announced"):
                await ask(pool, b"one")
            assert await ask(pool, b"two") == b"two"
            assert server.connections == 2

    asyncio.run(main())


def test_what_comes_unasked_between_two_requests_is_no_answer() -> None:
    async def main() -> None:
        async with pool_of(echo) as (pool, server):
            assert await ask(pool, b"one") == b"one"
            (kept,) = pool._free
            kept.data_received(response(b"forged"))
            assert kept.closed
            assert await ask(pool, b"two") == b"two"
            assert server.connections == 2

    asyncio.run(main())


def test_there_are_never_more_connections_than_allowed_and_all_get_their_turn() -> None:
    async def main() -> None:
        under_way = most = 0

        async def answer(number: int, body: bytes) -> bytes | None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return response(body)

        async with pool_of(answer, connections=3) as (pool, server):
            texts = [b"%d" % number for number in range(200)]
            assert await asyncio.gather(*(ask(pool, text) for text in texts)) == texts
            assert server.connections <= 3
            assert most <= 3

    asyncio.run(main())


def test_a_server_that_dies_in_mid_answer_is_an_error_and_is_not_asked_twice() -> None:
    async def main() -> None:
        async def answer(number: int, body: bytes) -> bytes | None:
            return response(body) if body == b"one" else None

        async with pool_of(answer) as (pool, server):
            assert await ask(pool, b"one") == b"one"
            # Nothing arrived on the persistent connection: one retry on a new one, and no more.
            with pytest.raises(HttpError, match="closed the connection"):
                await ask(pool, b"two")
            assert server.requests == 3

    asyncio.run(main())


def test_no_server_listens(tmp_path: Path) -> None:
    async def main() -> None:
        pool = HttpPool(asyncio.get_running_loop(), Address(str(tmp_path / "none")), 1)
        for _ in range(3):
            with pytest.raises(OSError):
                await ask(pool, b"x")

    asyncio.run(main())


def test_an_error_before_the_message_was_read_ends_the_writing() -> None:
    """A server may answer early; then the rest of a large message is not sent."""

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="metad-pool-") as directory:
            path = os.path.join(directory, "socket")
            done, ended = asyncio.Event(), asyncio.Event()

            async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
                await done.wait()
                writer.close()
                ended.set()

            listening = await asyncio.start_unix_server(refuse, path)
            pool = HttpPool(asyncio.get_running_loop(), Address(path), 1)
            text = b"x" * (8 << 20)
            async with asyncio.timeout(SECONDS):
                found = await pool.post(request("/checkv2", [], len(text)), of_bytes(text))
            assert found.status == 413
            done.set()
            await ended.wait()
            pool.close()
            listening.close()

    asyncio.run(main())
