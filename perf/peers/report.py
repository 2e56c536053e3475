"""Tables in Markdown and charts of a run of the peers.

python -m perf.peers.report perf/results/peers-DATE.json      the tables of a run, again
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from perf import harness
from perf.chart import axes_of, save
from perf.peers.loads import LEFT_LOAD, POP3_LOADS, SMTP_LOADS

Facts = dict[str, Any]
SINK = "smtp-sink"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rate(found: dict[str, Any] | None) -> str:
    """The rate and half of its spread; the rate of delivery if it is lower."""
    if not found:
        return "–"
    if "error" in found:
        return "failed"
    rate, delivered = found["rate"], found["delivered"]
    text = f"{rate:,.0f}"
    if delivered < rate * 0.97:
        text += f" / {delivered:,.0f}"
    bound = " (generator)" if found["load_busy"] > 0.9 else ""
    return f"{text} ± {found['spread'] / 2:.0%}{bound}"


def _peers(facts: Facts, part: str) -> list[str]:
    there = {name for row in facts[part].values() for name in row}
    return [name for name in facts["titles"] if name in there]


def rates(facts: Facts, part: str, loads: tuple[Any, ...]) -> str:
    head = ["per second", *(load.title for load in loads)]
    rows = []
    for name in _peers(facts, part):
        cells = [_rate(facts[part].get(load.name, {}).get(name)) for load in loads]
        rows.append([facts["titles"][name], *cells])
    return table(head, rows)


def ratios(facts: Facts, part: str, loads: tuple[Any, ...]) -> str:
    """metad's rate divided by the rate of delivery of each other server."""
    head = ["metad, times", *(load.title for load in loads)]
    rows = []
    for name in _peers(facts, part):
        if name == "metad":
            continue
        cells = []
        for load in loads:
            row = facts[part].get(load.name, {})
            ours, theirs = row.get("metad", {}), row.get(name, {})
            known = "rate" in ours and "rate" in theirs
            cells.append(f"{ours['delivered'] / theirs['delivered']:.2f}" if known else "–")
        rows.append([facts["titles"][name], *cells])
    return table(head, rows)


def details(facts: Facts, part: str, load: str) -> str:
    """CPU, latencies and the generator's share, under one load."""
    head = ["", "CPU, µs each", "p50 ms", "p99 ms", "p99.9 ms", "generator's CPU, µs", "busy"]
    rows = []
    for name, found in facts[part].get(load, {}).items():
        if "rate" in found:
            latency = [f"{found['latency_ms'][place]:.2f}" for place in ("p50", "p99", "p99.9")]
            load_cpu, busy = f"{found['load_cpu_us']:.0f}", f"{found['load_busy']:.0%}"
            rows.append(
                [facts["titles"][name], f"{found['cpu_us']:,.0f}", *latency, load_cpu, busy]
            )
    return table(head, rows)


def costs(facts: Facts) -> str:
    head = ["", "memory, MB", "syncs per message, 20 connections", "bytes to the disk per message"]
    rows = []
    for name, found in facts["costs"].items():
        syncs, written = found.get("syncs"), found.get("device_bytes")
        cells = [f"{syncs:.2f}" if syncs is not None else "–"]
        cells.append(f"{written:,.0f}" if written is not None else "–")
        rows.append([facts["titles"][name], f"{found['memory_mb']:.0f}", *cells])
    return table(head, rows)


def tables(facts: Facts) -> str:
    parts = [
        f"{harness.conditions(facts['machine'])} {facts['minutes']} minutes.",
        *(f"Left out: {line}" for line in facts["absent"]),
    ]
    if facts["smtp"]:
        parts += ["Messages accepted / delivered:", rates(facts, "smtp", SMTP_LOADS)]
        parts += ["Against what they deliver:", ratios(facts, "smtp", SMTP_LOADS)]
        parts += ["At 20 connections:", details(facts, "smtp", "20")]
        parts += ["At 100 connections:", details(facts, "smtp", "100")]
        parts += [costs(facts)]
    if facts["pop3"]:
        has_left = LEFT_LOAD.name in facts["pop3"]
        loads = (*POP3_LOADS, LEFT_LOAD) if has_left else POP3_LOADS
        parts += ["POP3, messages or sessions:", rates(facts, "pop3", loads)]
        parts += [ratios(facts, "pop3", loads), "20 connections, 500 B:"]
        parts += [details(facts, "pop3", "20 x 500 B"), "Polls, 20 connections:"]
        parts += [details(facts, "pop3", "polls 20")]
    return "\n\n".join(parts)


def charts(facts: Facts, path: Path) -> list[str]:
    """One picture: a panel for SMTP, one for POP3."""
    parts: list[tuple[str, tuple[Any, ...], str]] = [
        ("smtp", SMTP_LOADS, "messages/s"),
        ("pop3", POP3_LOADS, "messages or sessions/s"),
    ]
    parts = [part for part in parts if facts[part[0]]]
    figure, axes = axes_of(len(parts), 9.5, 4.2)
    for panel, (part, loads, label) in zip(axes, parts, strict=True):
        names = _peers(facts, part)
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            found = [facts[part].get(load.name, {}).get(name, {}) for load in loads]
            heights = [one.get("delivered", 0) for one in found]
            spread = [one.get("spread", 0) / 2 * one.get("delivered", 0) for one in found]
            places = [place + index * width for place in range(len(loads))]
            panel.bar(places, heights, width, yerr=spread, label=facts["titles"][name])
        panel.set_yscale("log")
        panel.set_ylabel(f"{label}, delivered")
        middle = 0.4 - width / 2
        panel.set_xticks([place + middle for place in range(len(loads))])
        panel.set_xticklabels([load.name for load in loads])
        panel.legend(fontsize=7, ncol=3)
    return save(figure, path)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    print(tables(json.loads(results.read_text())))
    charts(json.loads(results.read_text()), results)
