"""The figures of a hub at one moment, from shared memory alone.

Rule of this file: it reads; a wrong cell costs a wrong figure and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metad.store.log_table import Row
from metad.system import counters, histograms
from metad.system.histograms import Counts
from metad.system.shared_memory import PROCESSES, Cell, ProcessRow, Role, SharedArea

MASTER_ROW = 0


class Facts(NamedTuple):
    """`totals`: counters since the start; `now`: present values; `workers`: their process rows;
    `collector`: its counters; `logs`: rows of the log table that exist; `labelled`: totals by name
    and label; `histograms`: by name."""

    totals: dict[str, int]
    now: dict[str, int]
    workers: list[ProcessRow]
    collector: dict[str, int]
    logs: list[Row]
    labelled: Mapping[str, Mapping[str, int]] = {}
    histograms: Mapping[str, Counts] = {}


def take(area: SharedArea, logs: list[Row]) -> Facts:
    """Read everything once.  `logs`: the rows of the log table."""
    rows = [area.process(index) for index in range(1, PROCESSES)]
    living = [row for row in rows if row[Cell.ROLE] != Role.NONE and row[Cell.PID]]
    before = area.process(MASTER_ROW)
    totals = {
        one.name: before[one.cell] + sum(row[one.cell] for row in living) for one in counters.HUB
    }
    totals["log_lines_dropped"] = sum(row[Cell.LOG_LINES_DROPPED] for row in living)
    workers = [row for row in living if row[Cell.ROLE] == Role.WORKER]
    now = {one.name: sum(row[one.cell] for row in workers) for one in counters.OPEN}
    collecting = [row for row in living if row[Cell.ROLE] == Role.COLLECTOR]
    collector = {one.name: sum(row[one.cell] for row in collecting) for one in counters.COLLECTOR}
    counting = [before, *living]
    labelled = {
        one.name: {label: sum(row[cell] for row in counting) for label, cell in one.cells}
        for one in counters.LABELLED
    }
    measured = {one.name: histograms.read(counting, one) for one in histograms.HISTOGRAMS}
    return Facts(totals, now, workers, collector, logs, labelled, measured)


def as_json(facts: Facts, log_size: int) -> dict[str, Any]:
    """What the status page shows: counts and logs, no addresses and no users."""
    return {
        "totals": facts.totals,
        "now": facts.now,
        "collector": facts.collector,
        "workers": len(facts.workers),
        "log_size": log_size,
        "logs": [
            {
                "number": one.number,
                "state": one.state.name.lower(),
                "generation": one.generation,
                "owner": one.owner,
                "tail": min(one.tail, log_size),
                "live": min(one.live_octets, log_size),
                "messages": one.live_messages,
            }
            for one in facts.logs
        ],
    }
