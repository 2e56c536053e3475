"""What `metad status` shows, put together from shared memory and what the master knows."""

from __future__ import annotations

from typing import Any

from metad import __version__
from metad.config.model import Config
from metad.master.children import MASTER_ROW, Child, ChildTable
from metad.master.hub import Hub
from metad.master.worker_pool import WorkerPool
from metad.store.log_table import Row
from metad.system import landlock
from metad.system.shared_memory import Cell, ProcessRow, Role, SharedArea

PER_WORKER = {
    "smtp_open": Cell.SMTP_OPEN,
    "pop3_open": Cell.POP3_OPEN,
    "messages": Cell.MESSAGES,
    "refused": Cell.REFUSED,
    "retrieved": Cell.RETRIEVED,
}
TOTALS = {
    "messages": Cell.MESSAGES,
    "octets": Cell.MESSAGE_OCTETS,
    "recipients": Cell.RECIPIENTS,
    "refused": Cell.REFUSED,
    "groups": Cell.GROUPS,
    "commit_failures": Cell.COMMIT_FAILURES,
    "logins": Cell.LOGINS,
    "login_failures": Cell.LOGIN_FAILURES,
    "retrieved": Cell.RETRIEVED,
    "deleted": Cell.DELETED,
    "damaged": Cell.DAMAGED,
}
# Figures of one process that mean nothing once it is dead.
PRESENT = (Cell.SMTP_OPEN, Cell.POP3_OPEN)


def keep_figures(area: SharedArea, row: ProcessRow) -> None:
    """Add a dead process's figures to those of all who were before."""
    total = area.process(MASTER_ROW)
    for cell in TOTALS.values():
        if cell not in PRESENT:
            total.add(cell, row[cell])


def totals(area: SharedArea, family: ChildTable) -> dict[str, int]:
    before = area.process(MASTER_ROW)
    rows = [child.row for child in family]
    return {name: before[cell] + sum(row[cell] for row in rows) for name, cell in TOTALS.items()}


def workers(crew: WorkerPool, owned: dict[int, list[int]]) -> list[dict[str, Any]]:
    """A row per slot, then one per worker that still finishes; `owned`: logs by process row."""
    found: list[dict[str, Any]] = []
    for slot in crew.slots:
        if slot.child is None:
            found.append({"slot": slot.number, "pid": 0, "state": "starting"})
        else:
            found.append(_worker(slot.child, owned))
    return found + [_worker(child, owned) for child in crew.retired()]


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


def others(family: ChildTable) -> list[dict[str, Any]]:
    """The children that are no workers."""
    return [
        {
            "role": child.role.name.lower(),
            "pid": child.pid,
            "state": "stopped" if child.stopped else "working",
            "landlock": child.row[Cell.LANDLOCK],
        }
        for child in family
        if child.role != Role.WORKER
    ]


def of_hub(hub: Hub, family: ChildTable, crew: WorkerPool, rows: list[Row]) -> dict[str, Any]:
    """What is known of the whole; `rows` are those of the log table."""
    owned: dict[int, list[int]] = {}
    for row in rows:
        owned.setdefault(row.owner - 1, []).append(row.number)
    given = hub.given
    return {
        **({"nanny": hub.options.nanny} if hub.options.nanny else {}),
        "version": __version__,
        "generation": crew.generation.number,
        "config": str(given.source) if given.source else None,
        "data": str(given.data),
        "chroot": str(given.chroot) if given.chroot else None,
        "landlock": confinement(hub.config),
        **totals(hub.area, family),
        "listen": [{"protocol": one.listener.protocol, "address": one.name} for one in hub.bound],
        "workers": workers(crew, owned),
        "processes": others(family),
        "logs": [{**row._asdict(), "state": row.state.name.lower()} for row in rows],
    }


def confinement(config: Config) -> str:
    """Whether the children are confined by it."""
    found = landlock.version()
    if not config.landlock:
        return "off"
    return f"in force (version {found})" if found else "not in this kernel"
