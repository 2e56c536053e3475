"""How metad performs with more workers, more connections, slower disks, and a full store.

    sh tools/perf breadth [--minutes 5] [--only workers,disks,half,idle,filled]

  workers  1, 2, 4 and 8 of them, 100 connections
  disks    syncs that take 0, 1, 5 and 10 ms longer, 1, 20 and 100 connections
  half     latencies when mail comes by the clock at half the rate that 100 connections reach
  idle     memory of a connection that is idle after EHLO, 10,000 of them; 1,000 busy ones
  filled   the rate at 100 connections of a hub with --mailboxes and --stored messages beside that
           of an empty one; making the store takes minutes more, so it runs if it is named

Prints tables, and writes perf/results/breadth-DATE.json.  perf.scale measures how a message's cost
grows with the stored mail and the mailboxes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf import harness, scale
from perf.docs import put
from perf.generator import GeneratorError, Report, Smtp, program
from perf.generator import run as run_generator
from perf.harness import HarnessError, HubOptions, Server
from perf.peers.account import Account
from perf.peers.report import table

RESULTS = Path(__file__).parent / "results"
USERS = tuple(f"user{number}@perf.example" for number in range(10))
WORKERS = (1, 2, 4, 8)
DELAYS = (0, 1, 5, 10)  # milliseconds
CONNECTIONS = (1, 20, 100)
LIMITS = "[limits]\nconnections = 20000\nnetwork_connections = 20000\n"
CALIBRATION = 100
DRAWN = 20_000  # users that get mail, of a million
MESSAGES_WARM = 2000
STORE = (10_000_000, 1_000_000)

# Rates by subject: one per round.
Rates = dict[str, list[float]]


def start(where: Path, name: str, workers: int, stack: ExitStack) -> Server:
    place = where / name
    place.mkdir(mode=0o755)
    return stack.enter_context(harness.hub(place, HubOptions(workers, users=USERS, more=LIMITS)))


def rate(hub: Server, connections: int, seconds: float) -> float:
    """Messages for a run of about this many seconds."""
    probe = Smtp(connections, max(CALIBRATION, connections)).run(hub.smtp, USERS)
    count = max(CALIBRATION, connections, int(probe.rate * seconds))
    return Smtp(connections, count).run(hub.smtp, USERS).rate


def interleaved(
    hubs: dict[str, tuple[Server, int]], seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """The median rate of each, and half of its spread."""
    rates: Rates = {name: [] for name in hubs}
    for _ in range(rounds):
        for name, (hub, connections) in hubs.items():
            rates[name].append(rate(hub, connections, seconds / len(hubs) / rounds))
    return {name: _middle(found) for name, found in rates.items()}


def _middle(found: list[float]) -> dict[str, float]:
    middle = statistics.median(found)
    return {
        "rate": round(middle, 1),
        "half_spread": round((max(found) - min(found)) / middle / 2, 3),
    }


def workers(where: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    with ExitStack() as stack:
        hubs = {str(n): (start(where, f"workers-{n}", n, stack), 100) for n in WORKERS}
        return interleaved(hubs, seconds, rounds)


def disks(where: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    with ExitStack() as stack:
        hubs: dict[str, tuple[Server, int]] = {}
        for delay in DELAYS:
            with harness.delayed(delay):
                hub = start(where, f"disk-{delay}", 2, stack)
            for connections in CONNECTIONS:
                hubs[f"{delay} ms, {connections}"] = (hub, connections)
        return interleaved(hubs, seconds, rounds)


def half(where: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Random arrivals over 100 persistent connections: from when a mail was due to its 250."""
    with ExitStack() as stack:
        hub = start(where, "half", 2, stack)
        full = rate(hub, 100, seconds / 4)
        reports = []
        for number in range(rounds):
            arrivals = random.Random(number)
            now, lines = 0.0, []
            while now < seconds / 2 / rounds:
                now += arrivals.expovariate(full / 2)
                lines.append(f"{int(now * 1e6)} 500 {arrivals.choice(USERS)}\n")
            reports.append(planned(hub.smtp, "".join(lines)))
    places = reports[0].latency_ms
    medians = {
        place: statistics.median(one.latency_ms[place] for one in reports) for place in places
    }
    return {f"half of {full:,.0f}/s": medians}


def planned(port: int, plan: str) -> Report:
    with tempfile.NamedTemporaryFile("w", suffix=".plan") as file:
        file.write(plan)
        file.flush()
        command = [program("smtp-load"), "--port", str(port), "--plan", file.name]
        return run_generator([*command, "--connections", "100"])


def idle(where: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Memory of idle connections, with their hub's rate beside them; and a thousand busy ones."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = min(10_000, most - 200)
    account = Account("idle")
    try:
        with ExitStack() as stack:
            hub = start(where, "idle", 2, stack)
            account.adopt(hub)
            busy = interleaved({"1,000 busy": (hub, 1000)}, seconds / 2, rounds)
            alone = account.memory()
            for _ in range(wanted):
                stack.enter_context(greeted(hub.smtp))
            each = (account.memory() - alone) / wanted
            beside = interleaved({f"100 beside {wanted:,} idle": (hub, 100)}, seconds / 2, rounds)
        return busy | beside | {f"{wanted:,} idle": {"bytes_each": round(each)}}
    finally:
        account.close()


def greeted(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.recv(512)
    connection.sendall(b"EHLO idle.perf.example\r\n")
    connection.recv(4096)
    return connection


def filled(where: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Two hubs in turns, with mail to random users of each."""
    harness.STARTS_WITHIN = 600.0
    stored, mailboxes = STORE
    sizes = {"empty": (0, 10), f"{stored:,} messages, {mailboxes:,} users": (stored, mailboxes)}
    rates: Rates = {name: [] for name in sizes}
    with ExitStack() as stack:
        hubs: dict[str, tuple[Server, tuple[str, ...]]] = {}
        for name, (messages, users) in sizes.items():
            place = where / f"filled-{users}"
            place.mkdir(mode=0o755)
            scale.prepare(place, messages, users)
            hub = stack.enter_context(harness.hub(place, scale.NO_COLLECTOR))
            drawn = random.Random(1).sample(range(users), min(users, DRAWN))
            hubs[name] = hub, tuple(scale.address(number) for number in drawn)
        for turn in range(rounds + 1):
            for name, (hub, addresses) in hubs.items():
                found = Smtp(100, MESSAGES_WARM).run(hub.smtp, addresses).rate
                count = max(MESSAGES_WARM, int(found * seconds / len(hubs) / (rounds + 1)))
                if turn:  # the first one warms
                    rates[name].append(Smtp(100, count).run(hub.smtp, addresses).rate)
    return {name: _middle(found) for name, found in rates.items()}


# Subjects with a predictable time; `filled` runs only if named.
USUAL = {"workers": workers, "disks": disks, "half": half, "idle": idle}
PARTS = USUAL | {"filled": filled}


def text(found: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, one in found.items():
        if "rate" in one:
            rows.append([name, f"{one['rate']:,.0f}/s ± {one['half_spread']:.0%}"])
        elif "p99" in one:
            latencies = (f"{place} {value:.1f}" for place, value in one.items())
            rows.append([name, f"ms: {', '.join(latencies)}"])
        else:
            rows.append([name, f"{one['bytes_each']:,.0f} bytes each"])
    return table(["", "messages, 500 bytes"], rows)


def run(options: argparse.Namespace) -> dict[str, Any]:
    global STORE
    STORE = options.stored, options.mailboxes
    seconds = options.minutes * 60 / len(options.only)
    with harness.directory(options.directory) as where:
        facts: dict[str, Any] = {"machine": harness.machine(where)}
        print(harness.conditions(facts["machine"]), end="\n\n", flush=True)
        for name in options.only:
            try:
                facts[name] = PARTS[name](where, seconds * 0.7, options.rounds)
            except (HarnessError, GeneratorError, OSError) as error:
                facts.setdefault("failed", {})[name] = str(error)
                print(f"breadth: {name}: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{name}:\n\n{text(facts[name])}\n", flush=True)
    return facts


def main() -> int:
    harness.end_in_order()
    parser = argparse.ArgumentParser(prog="tools/perf breadth")
    parser.add_argument("--minutes", type=float, default=5.0, help="about so long, in all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda argument: argument.split(","), default=list(USUAL))
    parser.add_argument("--stored", type=int, default=STORE[0], help="messages of a full store")
    parser.add_argument("--mailboxes", type=int, default=STORE[1], help="users of a full store")
    parser.add_argument("--docs", action="store_true", help="put the tables into the docs")
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    facts = run(options)
    facts["minutes"] = round((time.monotonic() - began) / 60, 1)
    options.results.mkdir(parents=True, exist_ok=True)
    stamp = facts["machine"]["date"].replace(":", "").partition("+")[0]
    path = options.results / f"breadth-{stamp}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    if options.docs:
        tables = [f"{name}:\n\n{text(facts[name])}" for name in options.only if name in facts]
        put("breadth", "\n\n".join([harness.conditions(facts["machine"]), *tables]))
    return int("failed" in facts)


if __name__ == "__main__":
    sys.exit(main())
