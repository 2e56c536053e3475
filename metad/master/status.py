"""What `metad status` shows, from shared memory and the master's own state."""

from __future__ import annotations

import os
import time
from typing import Any

from metad import __version__
from metad.config.effective import effective
from metad.config.model import Config
from metad.master.children import MASTER_ROW, Child, ChildTable
from metad.master.hub import Hub
from metad.master.worker_pool import WorkerPool
from metad.monitor import facts as monitor_facts
from metad.store.log_space import needed_space
from metad.store.log_table import Row
from metad.system import landlock
from metad.system.counters import KEPT, PER_WORKER, TOTALS
from metad.system.osio import Osio
from metad.system.shared_memory import Cell, ProcessRow, Role, SharedArea
from metad.system.systemd import NANNY_VERSION, to_journal


def keep_figures(area: SharedArea, row: ProcessRow, code: int) -> None:
    """Add the counters of a dead process to the totals of its predecessors, and count its death
    unless it ended properly.  `code`: its exit code or negative signal."""
    total = area.process(MASTER_ROW)
    for cell in KEPT:
        total.add(cell, row[cell])
    if code:
        total.add(Cell.DEATHS + row[Cell.ROLE])


def totals(area: SharedArea, children: ChildTable) -> dict[str, int]:
    before = area.process(MASTER_ROW)
    rows = [child.row for child in children]
    return {name: before[cell] + sum(row[cell] for row in rows) for name, cell in TOTALS.items()}


def workers(pool: WorkerPool, owned: dict[int, list[int]]) -> list[dict[str, Any]]:
    """One entry per slot, then one per finishing worker.  `owned`: logs by process row."""
    found: list[dict[str, Any]] = []
    for slot in pool.slots:
        if slot.child is None:
            found.append({"slot": slot.number, "pid": 0, "state": "starting"})
        else:
            found.append(_worker(slot.child, owned))
    return found + [_worker(child, owned) for child in pool.retired()]


def _worker(child: Child, owned: dict[int, list[int]]) -> dict[str, Any]:
    state = "finishing" if child.retired else "serving" if child.ready else "starting"
    return {
        "slot": child.slot,
        "pid": child.pid,
        "state": "stopped" if child.stopped else state,
        "generation": child.generation,
        "landlock": child.row[Cell.LANDLOCK],
        "logs": owned.get(child.row.index, []),
        **{name: child.row[cell] for name, cell in PER_WORKER.items()},
    }


def others(children: ChildTable) -> list[dict[str, Any]]:
    """The children that are not workers."""
    return [
        {
            "role": child.role.name.lower(),
            "pid": child.pid,
            "state": "stopped" if child.stopped else "working",
            "landlock": child.row[Cell.LANDLOCK],
        }
        for child in children
        if child.role != Role.WORKER
    ]


def of_hub(hub: Hub, children: ChildTable, pool: WorkerPool, rows: list[Row]) -> dict[str, Any]:
    """The whole status.  `rows`: those of the log table."""
    owned: dict[int, list[int]] = {}
    for row in rows:
        owned.setdefault(row.owner - 1, []).append(row.number)
    given = hub.given
    return {
        **(_nanny(hub.options.nanny) if hub.options.nanny else {}),
        "version": __version__,
        "generation": pool.generation.number,
        "config": str(given.source) if given.source else None,
        "data": str(given.data),
        "log": _log_target(hub),
        "chroot": str(given.chroot) if given.chroot else None,
        "landlock": confinement(hub.config),
        **(_space(hub.config) if hub.has_logs else {}),
        **totals(hub.area, children),
        "listen": [{"protocol": one.listener.protocol, "address": one.name} for one in hub.bound],
        "workers": workers(pool, owned),
        "processes": others(children),
        "logs": [_log(row) for row in rows],
    }


def _log(row: Row) -> dict[str, Any]:
    facts = row._asdict() | {"state": row.state.name.lower()}
    facts["live_bytes"] = facts.pop("live_octets")
    return facts


def _nanny(pid: int) -> dict[str, Any]:
    """A takeover replaces the master's program, not the nanny's, which may be an older release."""
    return {"nanny": pid, "nanny_version": os.environ.get(NANNY_VERSION)}


def _log_target(hub: Hub) -> str | None:
    """Where the log goes: a file or socket, "journal", or None: to the one who started the hub."""
    path = hub.options.log_file.path
    return str(path) if path else "journal" if to_journal() else None


def figures(hub: Hub, rows: list[Row]) -> dict[str, Any]:
    """For `metad top`: counters, histograms as they are, and the logs that are worth a bar."""
    config = hub.config
    facts = monitor_facts.take(hub.area, rows)
    space = _space(config)
    return {
        "version": __version__,
        "uptime": time.time() - hub.started,
        "disk_free": space["disk_free"] or 0,
        "histograms": {name: [one.buckets, one.total] for name, one in facts.histograms.items()},
        **monitor_facts.as_json(facts, config.store.log_size),
    }


def configuration(hub: Hub) -> dict[str, Any]:
    """What the hub runs with, without passwords."""
    source = str(hub.given.source) if hub.given.source else None
    return {"source": source, "toml": "\n".join(effective(hub.given, hide=True))}


def _space(config: Config) -> dict[str, int | None]:
    """The free disk space, and the limit below which new mail is deferred; None if unknown."""
    osio, logs = Osio(), str(config.data / "logs")
    try:
        free = osio.free_space(logs)
        needed = needed_space(osio, logs, config.store.log_size)
    except OSError:
        return {"disk_free": None, "disk_needed": None}
    return {"disk_free": free, "disk_needed": needed}


def confinement(config: Config) -> str:
    """Whether Landlock confines the children."""
    found = landlock.version()
    if not config.landlock:
        return "off"
    return f"in force (version {found})" if found else "not in this kernel"
