"""The hub beside Postfix's smtp-sink, under the same loads, in turns; and its POP3 figures.

smtp-sink stores nothing; the hub makes every message durable.  Only ratios of one run on one
machine count: rounds alternate; the result is their median, with the spread.

    python -m perf.compare                     prints, and writes perf/results/compare-DATE.json
    python -m perf.compare --rounds 5 --workers 1 --test-root DIR

Postfix's programs are found on PATH, or in a tree unpacked by dpkg -x (--test-root or
METAD_TEST_ROOT).  Without smtp-source only our own load is used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf import harness
from perf.harness import HarnessError, HubOptions, Server, Tool
from perf.pop3_load import Pop3Load, Pop3Run
from perf.smtp_load import SmtpLoad, SmtpRun

USERS = tuple(f"user{number}@perf.example" for number in range(20))
SIZE = 500
RESULTS = Path(__file__).parent / "results"
# One measurement: (units per second, microseconds of server CPU per unit).
Figure = tuple[float, float]
Run = Callable[[Server], int]


class LoadFailedError(Exception):
    """A load had errors: its figure would mean nothing."""


def measure(server: Server, run: Run) -> Figure:
    """`run` returns how many units it did."""
    cpu, began = server.cpu(), time.perf_counter()
    count = run(server)
    seconds = time.perf_counter() - began
    return count / seconds, (server.cpu() - cpu) / count * 1e6


def our_smtp(connections: int, messages: int, size: int, pipeline: bool) -> Run:
    def run(server: Server) -> int:
        load = SmtpLoad("127.0.0.1", server.smtp, USERS, connections, messages, size, pipeline)
        report = SmtpRun(load).run()
        if report.error_count or report.count != messages:
            raise LoadFailedError(report.text())
        return report.count

    return run


def smtp_source(tool: Tool, connections: int, messages: int) -> Run:
    """Postfix's generator; it knows one recipient."""
    fixed = ["-d", "-s", str(connections), "-m", str(messages), "-l", str(SIZE)]
    addresses = ["-f", "load@perf.example", "-t", USERS[0]]

    def run(server: Server) -> int:
        command = [tool.path, *fixed, *addresses, f"127.0.0.1:{server.smtp}"]
        done = subprocess.run(command, env=tool.environment, capture_output=True, check=False)
        if done.returncode or done.stderr:
            raise LoadFailedError(done.stderr.decode(errors="replace"))
        return messages

    return run


def pop3(connections: int = 20, **how: Any) -> Run:
    def run(server: Server) -> int:
        load = Pop3Load("127.0.0.1", server.pop3, USERS, harness.PASSWORD, connections, **how)
        report = Pop3Run(load).run()
        if report.error_count or not report.count:
            raise LoadFailedError(report.text())
        return report.count

    return run


def summary(figures: list[Figure]) -> dict[str, Any]:
    rates, costs = zip(*figures, strict=True)
    return {
        "rate": round(statistics.median(rates), 1),
        "cpu_us": round(statistics.median(costs), 2),
        "spread": round((max(rates) - min(rates)) / statistics.median(rates), 3),
        "rates": [round(rate, 1) for rate in rates],
        "cpus_us": [round(cost, 2) for cost in costs],
    }


def compare_smtp(options: argparse.Namespace, servers: dict[str, Server]) -> list[dict[str, Any]]:
    """A row per load; in each round every server has its turn."""
    loads = {}
    source = harness.find_tool("smtp-source", options.test_root)
    for connections in options.connections:
        for name, pipeline in (("ours", False), ("ours, pipelined", True)):
            load = our_smtp(connections, options.messages, SIZE, pipeline)
            loads[name, connections] = load
        if source:
            loads["smtp-source", connections] = smtp_source(source, connections, options.messages)
    rows = []
    for (name, connections), load in loads.items():
        figures: dict[str, list[Figure]] = {server: [] for server in servers}
        for _ in range(options.rounds):
            for server, running in servers.items():
                figures[server].append(measure(running, load))
        row = {"load": name, "connections": connections}
        rows.append(row | {server: summary(found) for server, found in figures.items()})
        print(smtp_line(rows[-1]), flush=True)
    return rows


def smtp_line(row: dict[str, Any]) -> str:
    parts = [f"{row['load']:16} {row['connections']:4}"]
    for name in ("hub", "sink"):
        if found := row.get(name):
            rate, cost, spread = found["rate"], found["cpu_us"], found["spread"]
            parts.append(f"{name} {rate:8,.0f}/s ±{spread / 2:3.0%} {cost:6.1f} µs")
    if "sink" in row:
        parts.append(f"{row['hub']['rate'] / row['sink']['rate']:5.0%} of its rate")
    return "   ".join(parts)


def measure_pop3(options: argparse.Namespace, server: Server) -> list[dict[str, Any]]:
    """On a fresh hub: polls of empty maildrops, then downloads of full ones."""
    polls = pop3(polls=options.polls)
    polls(server)  # the first login of each user is checked, later ones are remembered
    rows = [pop3_row("polls", polls, server, options.rounds)]
    # The same number per maildrop: the load cycles through the users.
    our_smtp(len(USERS), options.drop * len(USERS), 5000, True)(server)
    for name, pipeline in (("one RETR at a time", 1), ("32 RETRs in one write", 32)):
        rows.append(pop3_row(name, pop3(pipeline=pipeline), server, options.rounds))
    return rows


def pop3_row(name: str, load: Run, server: Server, rounds: int) -> dict[str, Any]:
    found = summary([measure(server, load) for _ in range(rounds)])
    rate, cost, spread = found["rate"], found["cpu_us"], found["spread"]
    per_core = 1e6 / cost if cost else 0.0
    print(
        f"{name:22} {rate:10,.0f}/s {cost:7.1f} µs ±{spread / 2:.0%}"
        f"   {per_core:10,.0f}/s per core of CPU used",
        flush=True,
    )
    return {"load": name, "connections": len(USERS), "hub": found}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=30_000, help="per SMTP measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--polls", type=int, default=20_000, help="per measurement")
    parser.add_argument("--drop", type=int, default=1000, help="messages in each maildrop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--layer", default="log")
    parser.add_argument("--only", choices=["smtp", "pop3"])
    parser.add_argument("--directory", help="where the hub's data goes for the time (a real disk)")
    parser.add_argument("--test-root", type=Path, help="packages unpacked by dpkg -x")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, Any]:
    hub = HubOptions(options.workers, options.layer, USERS)
    places = {"results", "directory", "test_root"}
    settings = {name: value for name, value in vars(options).items() if name not in places}
    facts: dict[str, Any] = {"settings": settings}
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        facts["machine"] = harness.machine(where)
        if facts["machine"]["filesystem"] == "tmpfs":
            print("the data is on tmpfs, where nothing is durable: use --directory")
        if options.only != "pop3":
            facts["smtp"] = smtp_part(options, where, hub)
        if options.only != "smtp":
            fresh = where / "pop3"
            fresh.mkdir()
            facts["pop3"] = measure_pop3(options, stack.enter_context(harness.hub(fresh, hub)))
    return facts


def smtp_part(options: argparse.Namespace, where: Path, hub: HubOptions) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        servers = {"hub": stack.enter_context(harness.hub(where, hub))}
        tool = harness.find_tool("smtp-sink", options.test_root)
        if tool:
            servers["sink"] = stack.enter_context(harness.sink(tool, where))
        else:
            print("smtp-sink is not there: no comparison (see --test-root)")
        for server in servers.values():
            our_smtp(20, 2000, SIZE, False)(server)  # warm: logs laid out, code paths run
        return compare_smtp(options, servers)


def main() -> int:
    options = arguments()
    try:
        facts = run(options)
    except (HarnessError, LoadFailedError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    options.results.mkdir(parents=True, exist_ok=True)
    stamp = facts["machine"]["date"].replace(":", "").partition("+")[0]
    path = options.results / f"compare-{stamp}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
