"""The cost of a filter: a load on a hub without one, with one that answers at once, and with
rspamd.

    python -m perf.filter [--messages N] [--rounds N] [--connections N,N] [--rspamd ADDRESS]

"at once" is a server of this program, in a process of its own, that answers every POST like rspamd
with twenty symbols.  `--rspamd`: a running one, whose own time is then in the rate; it gets a tenth
of the messages.  For each: messages a second, milliseconds of the median and the 99th, and CPU of
the hub's processes per message (that of the filter is not in it).  Prints, and writes
perf/results/filter-DATE.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import uvloop

from perf import harness
from perf.harness import HubOptions
from perf.smtp_load import SmtpLoad, SmtpRun

RESULTS = Path(__file__).parent / "results"
USER = "user@perf.example"
SYMBOLS = {f"SYMBOL_{n}": {"score": 0.1, "options": ["one"]} for n in range(20)}
ANSWER = json.dumps(
    {"action": "no action", "score": 1.2, "required_score": 15.0, "symbols": SYMBOLS}
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
_LENGTH = b"content-length: "


class AtOnce(asyncio.Protocol):
    """Answers as soon as a request is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._held[:end].lower()
        length = int(head[head.index(_LENGTH) + len(_LENGTH) :].split(b"\r\n")[0])
        if len(self._held) >= end + 4 + length:
            self._held = self._held[end + 4 + length :]
            self._transport.write(RESPONSE)


@contextmanager
def at_once(where: Path) -> Iterator[str]:
    """Its address."""
    path = where / "filter.sock"
    ready, word = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            uvloop.run(_serve(path, word))
        finally:
            os._exit(0)
    os.close(word)
    os.read(ready, 1)
    os.close(ready)
    try:
        yield f"unix:{path}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def _serve(path: Path, word: int) -> None:
    server = await asyncio.get_running_loop().create_unix_server(AtOnce, str(path))
    path.chmod(0o777)
    os.write(word, b"x")
    await server.serve_forever()


def run(address: str | None, connections: int, options: argparse.Namespace) -> dict[str, float]:
    """One load on a separate hub."""
    more = f'[filter]\nrspamd = "{address}"\nhostname = false\n' if address else ""
    count = options.messages // (10 if address and address == options.rspamd else 1)
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory())
        hub = HubOptions(users=(USER,), more=more)
        server = stack.enter_context(harness.hub(where, hub))
        SmtpRun(load(server.smtp, connections, 200)).run()
        before = server.cpu()
        report = SmtpRun(load(server.smtp, connections, count)).run()
        cpu = server.cpu() - before
    if report.error_count:
        raise harness.HarnessError(report.errors[0])
    latencies = sorted(report.latencies)
    return {
        "messages/s": report.rate,
        "median ms": 1e3 * statistics.median(latencies),
        "99th ms": 1e3 * latencies[len(latencies) * 99 // 100],
        "CPU us": 1e6 * cpu / report.count,
    }


def load(port: int, connections: int, messages: int) -> SmtpLoad:
    return SmtpLoad("127.0.0.1", port, (USER,), connections, messages, size=5_000)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory())
        kinds = {"none": None, "at once": stack.enter_context(at_once(where))}
        if options.rspamd:
            kinds["rspamd"] = options.rspamd
        for _ in range(options.rounds):
            for connections in options.connections:
                for kind, address in kinds.items():
                    found = run(address, connections, options)
                    row = figures.setdefault(f"{kind}, {connections} connections", {})
                    for name, value in found.items():
                        row.setdefault(name, []).append(round(value, 3))
                    time.sleep(0.1)
    return {
        row: {name: {"median": statistics.median(v), "rounds": v} for name, v in columns.items()}
        for row, columns in figures.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--connections", type=lambda text: [int(one) for one in text.split(",")],
        default=[1, 20, 100],
    )  # fmt: skip
    parser.add_argument("--rspamd", help="IP:PORT or unix:/PATH")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with harness.directory() as where:
        found = {"machine": harness.machine(where), "figures": measure(options)}
    for row, columns in found["figures"].items():
        shown = "  ".join(f"{name} {one['median']:9.1f}" for name, one in columns.items())
        print(f"{row:26} {shown}")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"filter-{found['machine']['date'][:10]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
