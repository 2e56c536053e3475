"""The cost of one check for the client: ours, and h11 and aiohttp if installed.

    python -m perf.http_clients [--requests N] [--rounds N]

Microseconds of CPU per request of 5 KB, answered with 2 KB of JSON that is parsed, over a Unix
socket by the server of perf.filter.  Clients take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import uvloop

from metad.filters.body import of_bytes
from metad.filters.http import request
from metad.filters.pool import Address, HttpPool
from perf import harness
from perf.filter import at_once
from perf.smtp_load import message

FIELDS = [
    ("From", "a@example.org"), ("Rcpt", "b@example.org"), ("Ip", "192.0.2.1"),
    ("Helo", "mx.example.org"), ("Queue-Id", "0" * 32),
]  # fmt: skip
TEXT = message(5_000)
Client = Callable[[str, int, int], Awaitable[None]]


async def ours(path: str, count: int, together: int) -> None:
    pool = HttpPool(asyncio.get_running_loop(), Address(path), together)

    async def work() -> None:
        for _ in range(count // together):
            head = request("/checkv2", FIELDS, len(TEXT))
            json.loads((await pool.post(head, of_bytes(TEXT))).body)

    await asyncio.gather(*(work() for _ in range(together)))
    pool.close()


async def with_h11(path: str, count: int, together: int) -> None:
    h11: Any = import_module("h11")

    async def work() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        machine = h11.Connection(h11.CLIENT)
        for _ in range(count // together):
            lengths = [("Host", "localhost"), ("Content-Length", str(len(TEXT)))]
            head = h11.Request(method="POST", target="/checkv2", headers=lengths + FIELDS)
            for event in (head, h11.Data(TEXT), h11.EndOfMessage()):
                writer.write(machine.send(event))
            body = b""
            while not isinstance(event := machine.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    machine.receive_data(await reader.read(65_536))
                elif isinstance(event, h11.Data):
                    body += event.data
            json.loads(body)
            machine.start_next_cycle()
        writer.close()

    await asyncio.gather(*(work() for _ in range(together)))


async def with_aiohttp(path: str, count: int, together: int) -> None:
    aiohttp: Any = import_module("aiohttp")
    connector = aiohttp.UnixConnector(path, limit=together)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for _ in range(count // together):
                url = "http://localhost/checkv2"
                async with session.post(url, headers=dict(FIELDS), data=TEXT) as response:
                    json.loads(await response.read())

        await asyncio.gather(*(work() for _ in range(together)))


CLIENTS: dict[str, Client] = {"ours": ours, "h11": with_h11, "aiohttp": with_aiohttp}


async def timed(client: Client, path: str, count: int, together: int) -> float:
    before = time.process_time()
    await client(path, count, together)
    return (time.process_time() - before) / count * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    with harness.directory() as where, at_once(where) as address:
        path = address.removeprefix("unix:")
        for _ in range(options.rounds):
            for together in (1, 20):
                for name, client in CLIENTS.items():
                    with suppress(ModuleNotFoundError):
                        cost = uvloop.run(timed(client, path, options.requests, together))
                        found.setdefault(f"{name}, {together} at once", []).append(cost)
    for name, costs in found.items():
        print(f"{name:22} least {min(costs):6.1f} us  median {statistics.median(costs):6.1f} us")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
