"""The figures of a hub at one moment, only from shared memory.

Rule of this file: it only reads; a wrong cell causes a wrong figure and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from metad.store.log_table import LogState, Row
from metad.system import counters, histograms, node_standing
from metad.system.histograms import Counts
from metad.system.node_standing import Standing
from metad.system.shared_memory import PROCESSES, Cell, ProcessRow, Role, SharedArea

MASTER_ROW = 0
# The status page draws a bar per log, and no more than a browser draws instantly.
MOST_LOGS = 400
_ROLES: dict[int, str] = {int(one): one.name.lower() for one in Role}


class Facts(NamedTuple):
    """`totals`: counters since the start; `now`: present values; `workers`: their process rows;
    `collector`: its counters; `logs`: rows of the log table that exist; `labelled`: totals by name
    and label; `histograms`: by name; `owners`: processes by row; `clock_suspect`: the wall clock is
    not trusted; `damaged_logs`: where each process last found a damaged record; `untrusted_since`:
    when the cluster's directory was found wrong, 0 if it is not; `word_age`: of etcd's word in
    seconds, None if there is none; `store_remade`: when store.json was made again (Unix), 0: it
    was not; `epoch`: of the cluster's view, 0: the hub is in none; `standing`: None if it is not
    known; `etcd_refuses_since`: what this node writes (Unix), 0: it does not."""

    totals: dict[str, int]
    now: dict[str, int]
    workers: list[ProcessRow]
    collector: dict[str, int]
    logs: list[Row]
    labelled: Mapping[str, Mapping[str, int]] = {}
    histograms: Mapping[str, Counts] = {}
    owners: Mapping[int, str] = {}
    clock_suspect: bool = False
    damaged_logs: frozenset[int] = frozenset()
    untrusted_since: int = 0
    word_age: float | None = None
    store_remade: int = 0
    epoch: int = 0
    standing: Standing | None = None
    etcd_refuses_since: int = 0


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
    owners = {row.index: _owner(row) for row in living}
    damaged = frozenset(row[Cell.DAMAGED_LOG] for row in living) - {0}
    suspect = bool(area.clock_suspect)
    return Facts(
        totals, now, workers, collector, logs, labelled, measured, owners, suspect, damaged,
        area.frozen_cell[0], _word_age(area), area.store_remade, area.epoch_cell[0],
        node_standing.read(area.standing_cells(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
        area.etcd_refuses_cell[0],
    )  # fmt: skip


def _word_age(area: SharedArea) -> float | None:
    at = area.word_cells[0][0]
    return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - at) / 1e9 if at else None


def as_json(facts: Facts, log_size: int) -> dict[str, Any]:
    """What the status page shows: counts and logs, no addresses and no users."""
    used = sorted((one for one in facts.logs if one.state is not LogState.FREE), key=_place)
    return {
        "totals": facts.totals,
        "now": facts.now,
        "collector": facts.collector,
        "workers": len(facts.workers),
        "log_size": log_size,
        "free_logs": len(facts.logs) - len(used),
        "hidden_logs": max(len(used) - MOST_LOGS, 0),
        "logs": [
            {
                "number": one.number,
                "state": one.state.name.lower(),
                "generation": one.generation,
                "owner": facts.owners.get(one.owner - 1, ""),
                "tail": min(one.tail, log_size),
                "live": min(one.live_octets, one.tail, log_size),
                "messages": one.live_messages,
            }
            for one in used[:MOST_LOGS]
        ],
    }


def _place(one: Row) -> tuple[bool, int, int]:
    """Active logs come first, then the young ones."""
    return (one.state is not LogState.ACTIVE, one.generation, one.number)


def _owner(row: ProcessRow) -> str:
    role = row[Cell.ROLE]
    return f"worker {row[Cell.SLOT]}" if role == Role.WORKER else _ROLES.get(role, "")
