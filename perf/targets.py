"""The targets of metad relative to its peers: each cell of the newest results, with its ratio.

    sh tools/perf targets            from perf/results/peers-*.json and breadth-*.json
    sh tools/perf targets --docs     and puts the table into docs/performance.md

Prints a row for each cell: the measurement, the target, and the distance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.docs import put
from perf.peers.report import table

NO_AIM = "none"
RESULTS = Path(__file__).parent / "results"
Facts = dict[str, Any]
Results = dict[str, Facts]  # by program


@dataclass(frozen=True, slots=True)
class Cell:
    """`program` whose results have it; `goal`: at least, or at most if `is_most`."""

    title: str
    program: str
    goal: float
    value: Callable[[Facts], float]
    unit: str = " x"
    is_most: bool = False
    # The position of a comparison in the results.
    part: str = ""
    load: str = ""
    peer: str = ""

    def is_met(self, value: float) -> bool:
        return value <= self.goal if self.is_most else value >= self.goal


def _against(part: str, load: str, peer: str) -> Callable[[Facts], float]:
    """metad's rate of delivery divided by the peer's."""

    def value(facts: Facts) -> float:
        row = facts[part][load]
        return float(row["metad"]["delivered"] / row[peer]["delivered"])

    return value


def _cpu(load: str, peer: str) -> Callable[[Facts], float]:
    def value(facts: Facts) -> float:
        row = facts["pop3"][load]
        return float(row["metad"]["cpu_us"] / row[peer]["cpu_us"])

    return value


def _bound(bound: str, load: str) -> Cell:
    """The rate of a server that does less than metad, relative to smtp-sink's: not a target."""

    def value(facts: Facts) -> float:
        row = facts["smtp"][load]
        return float(row[bound]["rate"] / row["smtp-sink"]["rate"])

    title = f"{BOUNDS[bound]}, against smtp-sink: {load}"
    return Cell(title, "peers", 0.0, value, part="smtp", load=load, peer=bound)


def _beside(title: str, goal: float, part: str, load: str, peer: str) -> Cell:
    value = _against(part, load, peer)
    return Cell(title, "peers", goal, value, part=part, load=load, peer=peer)


def _smtp(title: str, peer: str, goals: dict[str, float]) -> list[Cell]:
    return [_beside(f"{title}: {load}", goal, "smtp", load, peer) for load, goal in goals.items()]


def _pop3(goals: dict[str, float]) -> list[Cell]:
    return [
        _beside(f"POP3 against Dovecot mdbox: {load}", goal, "pop3", load, "dovecot-mdbox")
        for load, goal in goals.items()
    ]


def _half(facts: Facts) -> float:
    """Milliseconds of the p99."""
    (found,) = facts["half"].values()
    return float(found["p99"])


def _idle(facts: Facts) -> float:
    (each,) = [one["bytes_each"] for one in facts["idle"].values() if "bytes_each" in one]
    return float(each)


def _filled(facts: Facts) -> float:
    empty, full = facts["filled"].values()
    return float(full["rate"] / empty["rate"])


def _slow_disk(delay: int) -> Callable[[Facts], float]:
    def value(facts: Facts) -> float:
        disks = facts["disks"]
        return float(disks[f"{delay} ms, 100"]["rate"] / disks["0 ms, 100"]["rate"])

    return value


SINK = {"20": 0.65, "100": 0.75, "pipelined 20": 0.42, "1": 0.65, "per mail": 0.55}
POSTFIX = {"1": 4.0, "20": 15.0, "100": 25.0, "pipelined 20": 20.0, "per mail": 7.0, "50 KB": 6.0}
BOUNDS = {
    "constants": "bound: uvloop, constant answers",
    "syncs": "bound: constant answers, one sync for a turn's messages",
    "sessions": "metad without a store",
    "no-sync": "metad without syncs",
}
CELLS = (
    *_smtp("against smtp-sink, which stores nothing", "smtp-sink", SINK),
    *(_bound(bound, load) for bound in BOUNDS for load in SINK),
    *_smtp("against Postfix, delivered", "postfix", POSTFIX),
    *_smtp("against Postfix + Dovecot LMTP, delivered", "postfix-dovecot", {"20": 35, "100": 55}),
    *_pop3({"20 x 500 B": 1.4, "20 x 5 KB": 1.6, "pipelined": 1.15}),
    Cell(
        "POP3, CPU of a message, of Dovecot's", "peers", 0.55,
        _cpu("20 x 500 B", "dovecot-mdbox"), " x", True, "pop3", "20 x 500 B", "dovecot-mdbox",
    ),
    *_pop3({"polls 20": 17.0, "polls left": 15.0}),
    Cell(
        "p99 of a mail at half load, 100 connections", "breadth", 10.0, _half, " ms", True, "half"
    ),
    Cell("memory of an idle connection", "breadth", 8192.0, _idle, " bytes", True, "idle"),
    Cell("rate with a full store, of an empty hub's", "breadth", 0.85, _filled, part="filled"),
    # Not targets: the rate at 100 connections that is left with a slower disk.
    *(
        Cell(
            f"syncs that take {ms} ms longer, 100 connections",
            "breadth", 0.0, _slow_disk(ms), part="disks",
        )
        for ms in (1, 5, 10)
    ),
)  # fmt: skip


def newest(results: Path) -> Results:
    """The last result of each program."""
    found = {}
    for program in ("peers", "breadth"):
        if paths := sorted(results.glob(f"{program}-*.json")):
            found[program] = json.loads(paths[-1].read_text())
    return found


def rows(found: Results) -> list[list[str]]:
    lines = []
    for cell in CELLS:
        try:
            value = cell.value(found[cell.program])
        except (KeyError, ValueError, ZeroDivisionError):
            verdict = f"not measured: {_why_not(cell, found)}"
            lines.append([cell.title, "–", _goal(cell), verdict])
            continue
        lines.append([cell.title, _number(value) + cell.unit, _goal(cell), _verdict(cell, value)])
    return lines


def _goal(cell: Cell) -> str:
    if not cell.goal:
        return NO_AIM
    return ("at most " if cell.is_most else "at least ") + _number(cell.goal) + cell.unit


def _verdict(cell: Cell, value: float) -> str:
    if not cell.goal:
        return "–"
    if cell.is_met(value):
        return "met"
    reached = value / cell.goal
    return f"not met: {reached:.2f} times it" if cell.is_most else f"not met: {reached:.0%} of it"


def _why_not(cell: Cell, found: Results) -> str:
    """Why the results have no figure, if they say so."""
    facts = found.get(cell.program)
    if facts is None:
        return f"there is no result of {cell.program}"
    if cell.part in facts.get("failed", {}):
        return f"failed: {_first_line(facts['failed'][cell.part])}"
    for name in (cell.peer, "metad"):
        for line in facts.get("absent", ()):
            if name and line.startswith(f"{name}:"):
                return str(line)
        row = facts.get(cell.part, {}).get(cell.load, {}).get(name, {})
        if "error" in row:
            return f"{name} failed: {_first_line(row['error'])}"
    return f"that run of {cell.program} left it out"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _first_line(error: str) -> str:
    return (error.splitlines() or ["without a message"])[0][:120]


def text(found: Results) -> str:
    machines = {name: facts["machine"] for name, facts in found.items()}
    sources = [
        f"{name} of {machine['date']} (load {machine['load'][0]:.1f} at the start)"
        for name, machine in machines.items()
    ]
    lines = rows(found)
    verdicts = [line[3] for line in lines if line[2] != NO_AIM]
    met = verdicts.count("met")
    missed = sum(verdict.startswith("not met") for verdict in verdicts)
    unknown = sum(verdict.startswith("not measured") for verdict in verdicts)
    head = ["metad", "measured", "aim", "verdict"]
    return (
        f"From {', '.join(sources) or 'no results'}: {met} aims met, {missed} not, "
        f"{unknown} not measured.\n\n{table(head, lines)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/perf targets")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the table into the docs")
    options = parser.parse_args()
    found = newest(options.results)
    print(text(found))
    if options.docs:
        put("targets", text(found))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
