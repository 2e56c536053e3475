"""Table 1 and figures 2 and 3 of the paper that metad follows, with its own figures beside ours.

Westerlund, Hörnquist-Åstrand and Danielsson, "Meta: A Freely Available Scalable MTA", USENIX 1999,
FREENIX track, section 5: growing numbers of mails of about 500 bytes, to ten users in turn, over
one connection; the time of each number.  Configurations: synchronous writes, writes without a sync,
no writes at all, each plain and with pipelining; sendmail beside them.

    sh tools/perf paper [--minutes 4] [--numbers 500,1000,2000,4000]

Prints the table, and writes perf/results/paper-DATE.json, .svg and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import harness
from perf.chart import axes_of, save
from perf.docs import picture, put
from perf.generator import GeneratorError, Smtp
from perf.harness import HarnessError
from perf.peers import catalog
from perf.peers.loads import await_delivery
from perf.peers.peer import Peer
from perf.peers.report import table

RESULTS = Path(__file__).parent / "results"
SIZE = 500
# What the paper ran on: a Pentium Pro at 200 MHz, an IDE disk, FreeBSD 2.2.
THEN = "Pentium Pro 200 MHz, IDE disk, FreeBSD 2.2, 1999"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a figure.  `paper`: its mails per second in Table 1, "" if absent."""

    title: str
    server: str
    pipeline: bool
    paper: str


LINES = (
    Line("fsync", "fsync", False, "~ 200"),
    Line("no fsync", "no-fsync", False, "~ 1000"),
    Line("no write", "no-write", False, "~ 1200"),
    Line("fsync, pipelined", "fsync", True, ""),
    Line("no fsync, pipelined", "no-fsync", True, "~ 2000"),
    Line("no write, pipelined", "no-write", True, ""),
    Line("sendmail", "sendmail", False, "2 - 10"),
)
FIGURES = {
    "Figure 2: synchronous, not synchronous, no writes": ("fsync", "no fsync", "no write"),
    "Figure 3: plain and pipelined": ("no fsync", "no fsync, pipelined", "fsync, pipelined"),
}
# Seconds by line and number of mails, one for each round.
Times = dict[str, dict[int, list[float]]]


def start(where: Path, stack: ExitStack) -> tuple[dict[str, Peer], list[str]]:
    """metad in the paper's three configurations, and sendmail if available."""
    peers = {
        "fsync": stack.enter_context(catalog.metad("fsync", where / "fsync")),
        "no-fsync": stack.enter_context(
            catalog.metad("no-fsync", where / "no-fsync", more="sync = false\n")
        ),
        "no-write": stack.enter_context(catalog.metad("no-write", where / "no-write", "null")),
    }
    try:
        peers["sendmail"] = stack.enter_context(catalog.sendmail("sendmail", where / "sendmail"))
    except (HarnessError, OSError) as error:
        print(f"sendmail is left out: {error}", file=sys.stderr)
        return peers, [f"sendmail: {str(error).splitlines()[0]}"]
    return peers, []


def one(peer: Peer, line: Line, number: int) -> float:
    """Seconds until the last of so many mails has its 250, as in the paper."""
    report = Smtp(1, number, SIZE, line.pipeline).run(peer.smtp, catalog.USERS)
    await_delivery(peer)
    return report.seconds


def measure(peers: dict[str, Peer], numbers: list[int], most: int, deadline: float) -> Times:
    """Rounds over all lines and numbers in turn, until the time is over; two at least."""
    times: Times = {line.title: {} for line in LINES if line.server in peers}
    for turn in range(most):
        for number in numbers:
            for line in LINES:
                # sendmail needs minutes for what the others do in a second.
                if line.server not in peers or (line.server == "sendmail" and number > numbers[0]):
                    continue
                if turn >= 2 and time.monotonic() > deadline:
                    return times
                seconds = one(peers[line.server], line, number)
                times[line.title].setdefault(number, []).append(seconds)
    return times


def rows(times: Times) -> list[dict[str, Any]]:
    """The rate of each line at its greatest number, and what the paper has."""
    found = []
    for line in LINES:
        if not (runs := times.get(line.title)):
            continue
        number = max(runs)
        rates = sorted(number / seconds for seconds in runs[number])
        middle = statistics.median(rates)
        spread = (rates[-1] - rates[0]) / middle
        row = {"line": line.title, "number": number, "rate": round(middle, 1), "paper": line.paper}
        found.append(row | {"spread": round(spread, 3), "rounds": len(rates)})
    return found


def text(facts: dict[str, Any]) -> str:
    head = ["configuration", "mails/s", "the paper's", "times fsync", "the paper's ratio to fsync"]
    base = facts["table"][0]["rate"]
    lines = []
    for row in facts["table"]:
        then = row["paper"].lstrip("~ ")
        ratio = f"{int(then) / 200:.0f}" if then.isdigit() else ""
        rate = f"{row['rate']:,.0f} ± {row['spread'] / 2:.0%}"
        ours = f"{row['rate'] / base:.2f}"
        lines.append([row["line"], rate, row["paper"] or "–", ours, ratio or "–"])
    return "\n\n".join(
        [
            harness.conditions(facts["machine"]),
            *(f"Left out: {line}" for line in facts["absent"]),
            f"One connection, {SIZE} bytes, 10 users; the paper's machine: {THEN}.",
            table(head, lines),
            "Figure 6, a copy to a peer: `sh tools/perf copies` (the paper: around 15 %).",
        ]
    )


def chart(facts: dict[str, Any], path: Path) -> list[str]:
    figure, axes = axes_of(len(FIGURES) + 1, 7.0, 3.6)
    for panel, (title, lines) in zip(axes, FIGURES.items(), strict=False):
        for line in lines:
            runs = facts["seconds"][line]
            numbers = sorted(int(number) for number in runs)
            middles = [statistics.median(runs[number]) for number in numbers]
            panel.plot([0, *numbers], [0, *middles], marker="o", label=line)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("mails")
        panel.set_ylabel("seconds")
        panel.legend(fontsize=8)
    axes[-1].set_title("Figure 6: overhead of a copy to a peer", fontsize=10)
    axes[-1].text(0.5, 0.5, "sh tools/perf copies", ha="center", va="center")
    axes[-1].set_axis_off()
    return save(figure, path)


def run(options: argparse.Namespace) -> dict[str, Any]:
    deadline = time.monotonic() + options.minutes * 60
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        facts: dict[str, Any] = {"machine": harness.machine(where), "size": SIZE}
        peers, facts["absent"] = start(where, stack)
        for name, peer in peers.items():
            one(peer, next(line for line in LINES if line.server == name), 50)  # warm
        times = measure(peers, options.numbers, options.rounds, deadline)
    return facts | {"seconds": times, "table": rows(times)}


def numbers(argument: str) -> list[int]:
    return sorted(int(number) for number in argument.split(","))


def main() -> int:
    harness.end_in_order()
    parser = argparse.ArgumentParser(prog="tools/perf paper")
    parser.add_argument("--minutes", type=float, default=4.0, help="about so long, in all")
    parser.add_argument("--rounds", type=int, default=5, help="at most; two at least")
    parser.add_argument("--numbers", type=numbers, default=[500, 1000, 2000, 4000, 8000])
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the table into the docs")
    options = parser.parse_args()
    try:
        facts = run(options)
    except (HarnessError, GeneratorError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 1
    print(text(facts))
    options.results.mkdir(parents=True, exist_ok=True)
    stamp = facts["machine"]["date"].replace(":", "").partition("+")[0]
    path = options.results / f"paper-{stamp}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    pictures = chart(facts, path)
    print(path.name, *pictures)
    if options.docs:
        put("paper", text(facts) + picture(pictures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
