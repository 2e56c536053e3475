"""The collector as the master has it: one child, started again when it dies, asked by `gc`.

Rules of this file:

* The master asks by a cell of its own row and hears by the collector's: it waits for nothing.
* A round that was asked for and not finished by a collector that died is done by its successor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metad.errors import OsError
from metad.master.children import MASTER_ROW, Child, ChildSpec, ChildTable
from metad.master.worker_pool import BackOff, Slot
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.workers.child import describe
from metad.workers.collector import Work


class CollectorControl:
    """`wanted()` says how the child is made, `report(text)` writes the log."""

    def __init__(
        self,
        family: ChildTable,
        area: SharedArea,
        wanted: Callable[[int], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._family = family
        self._wanted = wanted
        self._report = report
        self._slot = Slot(0)
        self.asked: ProcessRow = area.process(MASTER_ROW)
        self._done = self.asked[Cell.ROUND]

    def manage(self, now: float) -> None:
        """Start the collector if there is none and it may start; `now` in monotonic seconds."""
        if self._slot.child is None and now >= self._slot.not_before:
            try:
                self._slot.child = self._family.fork(self._wanted(self._done))
            except OsError as error:
                self._report(f"warning: collector: {error}")
                BackOff.after(self._slot, now, now)

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was the collector.  To be told before its row is cleared."""
        if self._slot.child is not child:
            return False
        self._slot.child = None
        self._done = child.row[Cell.ROUND]
        if code:
            why = f": {child.trouble}" if child.trouble else ""
            self._report(f"warning: {child.name} died: {describe(code)}{why}")
            BackOff.after(self._slot, child.started, now)
        return True

    def renew(self, number: int) -> None:
        """End it by signal `number`; its successor has the new configuration."""
        if self._slot.child is not None:
            self._slot.child.signal(number)

    # -- gc

    def ask(self, *, full: bool) -> dict[str, Any]:
        """Ask for a round; its number, and the figures before it."""
        number = (self.asked[Cell.ROUND] >> 1) + 1
        self.asked[Cell.ROUND] = number << 1 | full
        return {"round": number, **self.progress()}

    def progress(self) -> dict[str, Any]:
        """The last round done, what the collector does, figures since its start."""
        child = self._slot.child
        if child is None:
            return {"done": self._done >> 1, "work": "starting"} | dict.fromkeys(FIGURES, 0)
        row = child.row
        return {
            "done": row[Cell.ROUND] >> 1,
            "pid": child.pid,
            "work": Work(row[Cell.WORK]).name.lower(),
            **{name: row[cell] for name, cell in FIGURES.items()},
        }


FIGURES = {
    "left": Cell.LEFT,
    "logs_freed": Cell.FREED,
    "octets_freed": Cell.FREED_OCTETS,
    "octets_moved": Cell.MOVED_OCTETS,
    "damaged": Cell.DAMAGED,
    "expired": Cell.EXPIRED,
    "in_use": Cell.IN_USE,
    "unknown": Cell.UNKNOWN,
}
