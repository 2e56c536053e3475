"""What a message costs as the store grows: CPU and octets written, by messages and mailboxes.

For each size a hub is started on a store of so many messages in so many mailboxes (made as
perf.rebuild makes it, indexed by the hub itself), then the same load is put on it: 500-octet
messages to mailboxes drawn at random. Rounds go over all sizes in turn.

    python -m perf.scale [--stored 10000,1000000] [--mailboxes 10,1000000] [--messages 40000]

Prints, and writes perf/results/scale-DATE.json: microseconds of the hub's CPU per message, octets
that it caused to be written per message (/proc/PID/io), and their ratios to the smallest store.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from metad.users.database import UserDatabase
from perf import harness
from perf.compare import SIZE, LoadFailedError
from perf.harness import HubOptions, Server
from perf.rebuild import make_store
from perf.smtp_load import SmtpLoad, SmtpRun

RESULTS = Path(__file__).parent / "results"
CONNECTIONS = 100
DRAWN = 20_000


def address(number: int) -> str:
    return f"box{number}@perf.example"


def prepare(where: Path, stored: int, mailboxes: int) -> None:
    """A data directory with users and mail, owned by whom the hub runs as."""
    data = where / "data"
    # Nothing deleted: the collector has nothing to do with logs whose records are holes.
    make_store(data, stored, mailboxes, deleted=0.0)
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(0)  # as a start does: with mail there, no number is given before
        for outcome in users.add_many((address(n), None) for n in range(mailboxes)):
            if isinstance(outcome, Exception):
                raise outcome
    if os.geteuid() == 0:
        user = pwd.getpwnam(harness.user_name())
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)


def written(server: Server) -> int:
    """Octets that the hub's processes caused to be written so far."""
    total = 0
    for pid in server.family():
        lines = Path(f"/proc/{pid}/io").read_text().split("\n")
        total += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
    return total


def one_run(server: Server, mailboxes: int, messages: int) -> tuple[float, float]:
    """Microseconds of CPU and octets written per message."""
    drawn = tuple(address(random.randrange(mailboxes)) for _ in range(min(DRAWN, messages)))
    load = SmtpLoad("127.0.0.1", server.smtp, drawn, CONNECTIONS, messages, SIZE, False)
    cpu, octets = server.cpu(), written(server)
    report = SmtpRun(load).run()
    if report.error_count:
        raise LoadFailedError(report.text())
    return (server.cpu() - cpu) / messages * 1e6, (written(server) - octets) / messages


def figures(runs: list[tuple[float, float]]) -> dict[str, Any]:
    cpu, octets = zip(*runs, strict=True)
    return {
        "cpu_us": {"median": statistics.median(cpu), "all": cpu},
        "octets_written": {"median": statistics.median(octets), "all": octets},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    sizes = [
        (int(stored), int(mailboxes))
        for mailboxes in options.mailboxes.split(",")
        for stored in options.stored.split(",")
    ]
    runs: dict[tuple[int, int], list[tuple[float, float]]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        servers: dict[tuple[int, int], Server] = {}
        for number, (stored, mailboxes) in enumerate(sizes):
            place = where / str(number)
            place.mkdir(mode=0o755)
            prepare(place, stored, mailboxes)
            hub = stack.enter_context(harness.hub(place, HubOptions()))
            servers[stored, mailboxes] = hub
            one_run(hub, mailboxes, options.messages // 4)
        for _ in range(options.rounds):
            for size, server in servers.items():
                runs[size].append(one_run(server, size[1], options.messages))
        machine = harness.machine(where)
    rows = [
        {"stored": stored, "mailboxes": mailboxes, **figures(runs[stored, mailboxes])}
        for stored, mailboxes in sizes
    ]
    return {"machine": machine, "messages": options.messages, "octets": SIZE, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stored", default="10000,1000000")
    parser.add_argument("--mailboxes", default="10,1000000")
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the file system to measure")
    options = parser.parse_args()
    harness.STARTS_WITHIN = 300.0
    result = measure(options)
    first = result["rows"][0]
    for row in result["rows"]:
        cpu, octets = row["cpu_us"]["median"], row["octets_written"]["median"]
        print(
            f"{row['stored']:>12,} messages {row['mailboxes']:>10,} mailboxes: "
            f"{cpu:6.1f} us ({cpu / first['cpu_us']['median']:.2f}), "
            f"{octets:8,.0f} octets written per message"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"scale-{result['machine']['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
