"""Figure 6 of the paper: two nodes that copy every message, beside one node without a cluster.

    sh tools/perf copies [--messages 4000] [--rounds 5] [--connections 1 100] [--size 500]
                         [--sync-ms 0]

Both nodes and the single one run on this machine, over the loopback: in one machine the two nodes
share its processors and its disk, so the rate with copies is lower than that of two machines.  The
CPU of each node is its own.  The subjects take turns; ratios are those of one round, of which the
median and half the spread are printed.  With `--bound` servers that parse nothing take metad's
place (`perf/peers/copying_constants.py`): what any two processes reach that both sync.  With
`--sync-ms` each sync of a hub takes that much longer (`perf/slow_disk`), for each hub by itself, as
on machines with disks of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import harness
from perf.generator import GeneratorError, Smtp
from perf.harness import HarnessError, HubOptions, Server

USERS = tuple(f"user{number}@perf.example" for number in range(10))
JOINS_WITHIN = 30.0
RATIOS = ("rate", "taken in", "copied")


@dataclass(frozen=True, slots=True)
class Subjects:
    """`alone`: one node.  `taking`: the node of two that gets the mail, `other` gets the copies."""

    alone: Server
    taking: Server
    other: Server


@contextmanager
def subjects(where: Path, workers: int) -> Iterator[Subjects]:
    with ExitStack() as stack:
        for name in ("alone", "taking", "other"):
            (where / name).mkdir(mode=0o755)
        users = HubOptions(workers, users=USERS)
        alone = stack.enter_context(harness.hub(where / "alone", users))
        ports = harness.free_ports(2)
        places = [f"127.0.0.{number}:{port}" for number, port in enumerate(ports, 2)]
        tables = [
            f'\n[cluster]\naddress = "{own}"\npeers = ["{peer}"]\n'
            for own, peer in (places, places[::-1])
        ]
        first = HubOptions(workers, users=USERS, more=tables[0], commands=(("cluster", "init"),))
        taking = stack.enter_context(harness.hub(where / "taking", first))
        token = harness.metad(where / "taking", "cluster", "token").strip()
        second = HubOptions(workers, more=tables[1], commands=(("cluster", "join", token),))
        other = stack.enter_context(harness.hub(where / "other", second))
        await_copies(where / "taking")
        yield Subjects(alone, taking, other)


@contextmanager
def constants(where: Path) -> Iterator[Subjects]:
    """Processes that only answer, sync and copy."""
    ports = harness.free_ports(3)
    commands = (
        ("constants", str(ports[0]), "1"),
        ("copying_constants", "get", str(ports[2])),
        ("copying_constants", "take", str(ports[1])),
    )
    servers = []
    with ExitStack() as stack:
        for name, (module, *rest) in zip(("alone", "other", "taking"), commands, strict=True):
            (where / name).mkdir()
            more = [str(where / name), *([str(ports[2])] if name == "taking" else [])]
            command = [sys.executable, "-m", f"perf.peers.{module}", *rest, *more]
            process = stack.enter_context(
                subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(harness.TOP)})
            )
            stack.callback(process.kill)
            servers.append(Server(process.pid, int(command[3 if name == "alone" else 4])))
            await_port(servers[-1], process)
        alone, other, taking = servers
        yield Subjects(alone, taking, other)


def await_port(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until it accepts connections."""
    deadline = time.monotonic() + JOINS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.smtp), 1):
            return
        time.sleep(0.05)
    raise HarnessError(f"nothing accepts connections on port {server.smtp}")


def await_copies(where: Path) -> None:
    """Wait until every message has two copies."""
    deadline = time.monotonic() + JOINS_WITHIN
    while time.monotonic() < deadline:
        facts = json.loads(harness.metad(where, "cluster", "status", "--json"))
        if (facts["copies"], facts["copies_of_old_mail"]) == (2, 2):
            return
        time.sleep(0.2)
    raise HarnessError("the second node has not become active")


def one_round(found: Subjects, load: Smtp) -> dict[str, float]:
    """Rate, and microseconds of CPU for each message on each node."""
    figures: dict[str, float] = {}
    for name, to in (("alone", found.alone), ("cluster", found.taking)):
        before = [server.cpu() for server in (found.alone, found.taking, found.other)]
        report = load.run(to.smtp, USERS)
        after = [server.cpu() for server in (found.alone, found.taking, found.other)]
        alone, taking, other = (
            (end - start) / report.count * 1e6 for start, end in zip(before, after, strict=True)
        )
        figures[f"{name} rate"] = report.rate
        if name == "alone":
            figures["alone us"] = alone
        else:
            figures |= {"taking us": taking, "other us": other}
    figures["rate"] = figures["cluster rate"] / figures["alone rate"]
    figures["taken in"] = figures["taking us"] / figures["alone us"]
    figures["copied"] = figures["other us"] / figures["alone us"]
    return figures


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians; of the ratios also half of the spread."""
    row: dict[str, Any] = {
        name: round(statistics.median([one[name] for one in rounds]), 3) for name in rounds[0]
    }
    for name in RATIOS:
        values = [one[name] for one in rounds]
        row[f"{name} spread"] = round((max(values) - min(values)) / 2, 3)
    return row


def line(connections: int, row: dict[str, Any]) -> str:
    rate, taken, copied = (f"{row[name]:.2f} ±{row[f'{name} spread']:.2f}" for name in RATIOS)
    return (
        f"{connections:4} connections   "
        f"{row['cluster rate']:7,.0f}/s of {row['alone rate']:7,.0f}/s = {rate}   "
        f"CPU {row['alone us']:.0f} µs alone, {row['taking us']:.0f} µs taken in = {taken}, "
        f"{row['other us']:.0f} µs copied = {copied}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=4000, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--sync-ms", type=float, default=0.0, help="longer for each sync of a hub")
    parser.add_argument("--workers", type=int, default=1, help="of each node")
    parser.add_argument("--bound", action="store_true", help="servers of constants, not metad")
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    options = parser.parse_args()
    if options.bound and options.sync_ms:
        parser.error("--sync-ms is for hubs: the servers of --bound do not use it")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        facts: dict[str, Any] = {"machine": harness.machine(where), "settings": vars(options)}
        print(harness.conditions(facts["machine"]), flush=True)
        stack.enter_context(harness.delayed(options.sync_ms))
        made = constants(where) if options.bound else subjects(where, options.workers)
        found = stack.enter_context(made)
        rounds: dict[int, list[dict[str, float]]] = {each: [] for each in options.connections}
        for number in range(options.rounds + 1):
            for connections in options.connections:
                load = Smtp(connections, options.messages, options.size)
                figures = one_round(found, load)
                if number:  # the first round warms up
                    rounds[connections].append(figures)
        facts["rows"] = {}
        for connections, figures_of in rounds.items():
            facts["rows"][connections] = row = summary(figures_of)
            print(line(connections, row), flush=True)
    return facts


def main() -> int:
    harness.end_in_order()
    try:
        run(arguments())
    except (HarnessError, GeneratorError) as error:
        print(f"copies: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
