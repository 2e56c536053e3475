"""The memory and disk space of a hub: its processes, a connection, a message, a user.

    sh tools/perf sizing [--messages 20000] [--users 100000] [--connections 900] [--docs]

Bytes, not times, so a busy machine gives the same figures.  --docs puts them into docs/sizing.md.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metad.users.database import UserDatabase
from metad.users.imports import importers
from metad.users.imports.import_apply import Transfer
from perf import docs, harness
from perf.generator import Smtp
from perf.harness import HubOptions, free_ports
from perf.users_import import write_file

PAGE = harness.TOP / "docs" / "sizing.md"
USERS = tuple(f"user{number}@perf.example" for number in range(100))
BUSY = 20  # connections of a busy hub: its groups are of so many messages at most
KIB = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=900)
    parser.add_argument("--docs", action="store_true")
    given = parser.parse_args()
    harness.end_in_order()
    with tempfile.TemporaryDirectory() as one:
        facts = harness.machine(Path(one))
    rows = [*idle_hub()]
    rows += [connection(given.connections, tls) for tls in (False, True)]
    for size, together in ((500, BUSY), (5_000, BUSY), (50_000, BUSY), (500, 1)):
        rows += stored(given.messages if together > 1 else given.messages // 20, size, together)
    rows.append(users(given.users))
    table = "\n".join(
        ["| what | takes |", "| --- | --- |", *(f"| {what} | {takes} |" for what, takes in rows)]
    )
    text = f"{table}\n\n{harness.conditions(facts)}"
    print(text)
    if given.docs:
        docs.put("sizing", text, PAGE)


def memory(pid: int) -> int:
    """Bytes of a process, with its share of shared pages (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * KIB
    raise harness.HarnessError(f"no memory figures of process {pid}")


def status(where: Path) -> dict[str, Any]:
    place = ["--data", str(where / "data"), "--config", str(where / "metad.toml")]
    command = [sys.executable, "-m", "metad", "status", "--json", *place]
    done = subprocess.run(command, capture_output=True, check=True, cwd=harness.TOP)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def worker_pids(where: Path) -> list[int]:
    return [one["pid"] for one in status(where)["workers"]]


def idle_hub() -> Iterator[tuple[str, str]]:
    with harness.directory() as where, harness.hub(where, HubOptions(users=USERS)) as server:
        workers = worker_pids(where)
        rest = [pid for pid in server.family() if pid not in workers]
        each = sum(map(memory, workers)) / len(workers)
        yield "memory of an idle worker", _mib(each)
        yield "memory of the other processes together", _mib(sum(map(memory, rest)))
        yield "disk of a new hub with two workers", _mib(_on_disk(where / "data"))


def connection(count: int, tls: bool) -> tuple[str, str]:
    """Memory of a connection that is idle after EHLO."""
    (port,) = free_ports(1)
    more = f'[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "implicit"\n'
    options = HubOptions(users=USERS, tls=tls, more=more if tls else "")
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory())
        server = stack.enter_context(harness.hub(where, options))
        for _ in range(20):  # the first ones have one-time costs
            stack.enter_context(greeted(port if tls else server.smtp, tls))
        workers = worker_pids(where)
        before = sum(map(memory, workers))
        for _ in range(count):
            stack.enter_context(greeted(port if tls else server.smtp, tls))
        each = (sum(map(memory, workers)) - before) / count
    return f"memory of an idle connection{' with TLS' * tls}", f"{each / KIB:.1f} KiB"


@contextmanager
def greeted(port: int, tls: bool) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", port), harness.STARTS_WITHIN) as plain:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_socket(plain) if tls else plain
        with client:
            client.recv(512)
            client.sendall(b"EHLO idle.perf.example\r\n")
            client.recv(4096)
            yield


def stored(count: int, size: int, together: int) -> Iterator[tuple[str, str]]:
    """Bytes of log and of index of a message, one recipient."""
    how = f"{size:,} bytes, {together} connections" if together > 1 else f"{size:,} bytes, alone"
    with harness.directory() as where:
        with harness.hub(where, HubOptions(users=USERS)) as server:
            before = _logged(where)
            Smtp(together, count, size).run(server.smtp, USERS)
            log = (_logged(where) - before) / count
        index = _on_disk(where / "data" / "index") / count
    yield f"log of a message of {how}", f"{log:,.0f} bytes"
    if together > 1 and size == 500:
        yield "index of a message", f"{index:,.0f} bytes"


def _logged(where: Path) -> int:
    return sum(one["tail"] for one in status(where)["logs"] if one["state"] != "free")


def users(count: int) -> tuple[str, str]:
    with harness.directory() as where:
        source = where / "users"
        write_file(source, count)
        with UserDatabase(where / "database", create=True) as database, source.open("rb") as file:
            lines = importers.Source(importers.Text("file", file))
            Transfer(database).run(importers.read("dovecot", lines))
        each = _on_disk(where / "database") / count
    return "disk of a user with a hash and a quota", f"{each:,.0f} bytes"


def _on_disk(directory: Path) -> int:
    """Bytes of the blocks of all files."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def _mib(count: float) -> str:
    return f"{count / KIB / KIB:,.1f} MiB"


if __name__ == "__main__":
    main()
