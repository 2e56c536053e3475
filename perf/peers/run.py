"""The peers in one run, interleaved: in each round every server has its turn under each load.

    sh tools/perf peers                          all of them, about 8 minutes
    sh tools/perf peers --minutes 20 --only metad,postfix,smtp-sink

Prints tables in Markdown, and writes perf/results/peers-DATE.json and a chart beside it.  Only
ratios of one run count: absolute figures hold for that machine at that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf import harness
from perf.docs import picture, put
from perf.generator import GeneratorError
from perf.harness import HarnessError
from perf.peers import report
from perf.peers.catalog import KINDS, Kind
from perf.peers.loads import (
    LEFT_LOAD,
    POP3_LOADS,
    SMTP_LOADS,
    Figure,
    await_delivery,
    fill,
    measure_pop3,
    measure_smtp,
    send,
)
from perf.peers.peer import Peer

RESULTS = Path(__file__).parents[1] / "results"
POP3_SHARE = 0.25  # of the time
COSTS_SHARE = 0.12  # for what is counted behind the rounds
POLLS = 200  # whose rate says how many fit into a turn
MOST = 200_000
COUNTED = 400  # messages whose syncs and bytes are counted


@dataclass(slots=True)
class Cell:
    """One server under one load.  `measure` takes a count of messages or sessions."""

    peer: str
    load: str
    measure: Callable[[int], Figure]
    smallest: int
    per_second: float = 0.0  # as the last turn went, with all that belongs to it
    figures: list[Figure] = field(default_factory=list)
    error: str = ""

    def turn(self, seconds: float) -> None:
        """One measurement that should take this long; the first only finds out the speed."""
        if self.error:
            return
        count = max(self.smallest, min(MOST, int(self.per_second * seconds)))
        began = time.monotonic()
        try:
            figure = self.measure(count)
        except (GeneratorError, HarnessError, OSError) as error:
            self.error = str(error)
            print(f"{self.peer}, {self.load}: {error}", file=sys.stderr)
            return
        if self.per_second:
            self.figures.append(figure)
        self.per_second = count / (time.monotonic() - began)


def cells_of(name: str, kind: Kind, peer: Peer, left: int) -> tuple[list[Cell], list[Cell]]:
    smtp, pop3 = [], []
    for load in SMTP_LOADS if kind.smtp else ():
        if not kind.loads or load.name in kind.loads:
            measure = lambda count, load=load: measure_smtp(peer, load, count, kind.lmtp)  # noqa: E731
            smtp.append(Cell(name, load.name, measure, kind.smallest))
    with_left = (LEFT_LOAD,) if left and kind.has_left else ()
    for drop in (*POP3_LOADS, *with_left) if kind.pop3 else ():
        measure = lambda count, drop=drop: measure_pop3(peer, drop, count)  # noqa: E731
        pop3.append(Cell(name, drop.name, measure, POLLS if drop.action == "poll" else 20))
    return smtp, pop3


def rounds(cells: list[Cell], count: int, deadline: float) -> None:
    """The first turn calibrates; then servers alternate within each load.

    Each turn gets its share of the remaining time, so that a slow server shortens the others'
    turns.
    """
    order = {load: index for index, load in enumerate(dict.fromkeys(cell.load for cell in cells))}
    cells = sorted(cells, key=lambda cell: order[cell.load])
    turns = len(cells) * (count + 1)
    for number in range(count + 1):
        began = time.monotonic()
        for cell in cells:
            left = deadline - time.monotonic()
            # At least two rounds: a figure without a spread means nothing.
            if number > 2 and left < 0:
                return
            cell.turn(max(0.0, left) / max(1, turns))
            turns -= 1
        print(f"round {number} of {count}: {time.monotonic() - began:.0f} s", flush=True)


def start_all(names: list[str], where: Path, stack: ExitStack) -> tuple[dict[str, Peer], list[str]]:
    peers, absent = {}, []
    for name in names:
        try:
            with ExitStack() as own:
                peers[name] = own.enter_context(KINDS[name].start(name, where / name))
                stack.push(own.pop_all())
        except (HarnessError, OSError) as error:
            absent.append(f"{name}: {str(error).splitlines()[0]}")
            print(f"{KINDS[name].title} is left out: {error}", file=sys.stderr)
    return peers, absent


def costs(name: str, peer: Peer) -> dict[str, Any]:
    """Figures that need no clock: memory after the loads, syncs and bytes per message at 20
    connections."""
    kind = KINDS[name]
    facts: dict[str, Any] = {"memory_mb": round(peer.account.memory() / 1e6, 1)}
    if kind.smtp:
        load = next(
            load for load in SMTP_LOADS if load.name == ("1" if kind.loads == ("1",) else "20")
        )

        def work() -> int:
            count = send(peer, load, COUNTED, kind.lmtp).count
            await_delivery(peer)
            return count

        with contextlib.suppress(GeneratorError):
            before = harness.reached_device(peer.data)
            facts["syncs"] = peer.account.count_syncs(work)
            facts["device_bytes"] = (harness.reached_device(peer.data) - before) / COUNTED
    return facts


def summary(figures: list[Figure]) -> dict[str, Any]:
    """Medians over the rounds; `spread`: (greatest - least) / median of the rate."""
    rates = [figure["rate"] for figure in figures]
    middle = statistics.median(rates)
    found: dict[str, Any] = {"rounds": len(figures), "rates": [round(rate, 1) for rate in rates]}
    for key in ("rate", "delivered", "cpu_us", "load_cpu_us", "load_busy"):
        found[key] = round(statistics.median(figure[key] for figure in figures), 2)
    found["spread"] = round((max(rates) - min(rates)) / middle, 3)
    places = [figure["latency_ms"] for figure in figures]
    found["latency_ms"] = {
        place: round(statistics.median(one[place] for one in places), 3) for place in places[0]
    }
    return found


def results(cells: list[Cell]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for cell in cells:
        row = table.setdefault(cell.load, {})
        row[cell.peer] = summary(cell.figures) if cell.figures else {"error": cell.error}
    return table


def fill_all(peers: dict[str, Peer], cells: list[Cell], options: argparse.Namespace) -> None:
    """Bring the maildrops' messages; a server that does not take them has no figures of POP3."""
    for name, peer in peers.items():
        if not KINDS[name].pop3:
            continue
        left = options.left if KINDS[name].has_left else 0
        try:
            fill(peer, KINDS[name].lmtp, options.drop, left)
        except (GeneratorError, HarnessError, OSError) as error:
            print(f"{name}, its maildrops: {error}", file=sys.stderr)
            for cell in cells:
                if cell.peer == name:
                    cell.error = f"its maildrops could not be filled: {error}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    began, seconds = time.monotonic(), options.minutes * 60 * (1 - COSTS_SHARE)
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        facts: dict[str, Any] = {"machine": harness.machine(where), "titles": {}}
        peers, facts["absent"] = start_all(options.only, where, stack)
        smtp: list[Cell] = []
        pop3: list[Cell] = []
        for name, peer in peers.items():
            facts["titles"][name] = KINDS[name].title
            one, other = cells_of(name, KINDS[name], peer, options.left)
            smtp, pop3 = smtp + one, pop3 + other
        fill_all(peers, pop3, options)
        print(f"{', '.join(peers)}: {len(smtp) + len(pop3)} figures", flush=True)
        filled = time.monotonic()  # filling takes minutes if many messages are left
        share = POP3_SHARE if pop3 else 0.0
        rounds(smtp, options.rounds, filled + seconds * (1 - share))
        rounds(pop3, options.rounds, filled + seconds)
        facts["smtp"], facts["pop3"] = results(smtp), results(pop3)
        facts["costs"] = {name: costs(name, peer) for name, peer in peers.items()}
        facts["minutes"] = round((time.monotonic() - began) / 60, 1)
    return facts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/perf peers")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="about so long, once the maildrops are full"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server under a load")
    parser.add_argument("--drop", type=int, default=200, help="messages in a full maildrop")
    parser.add_argument("--left", type=int, default=0, help="messages left in a polled maildrop")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the tables into the docs")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in KINDS]:
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return options


def main() -> int:
    harness.end_in_order()
    options = arguments()
    try:
        facts = run(options)
    except (HarnessError, GeneratorError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    tables = report.tables(facts)
    print(tables)
    options.results.mkdir(parents=True, exist_ok=True)
    stamp = facts["machine"]["date"].replace(":", "").partition("+")[0]
    path = options.results / f"peers-{stamp}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    pictures = report.charts(facts, path)
    print(path.name, *pictures)
    if options.docs:
        put("peers", tables + picture(pictures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
