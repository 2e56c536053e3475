"""The master's control of the collector: one child, restarted when it dies, asked by `metad gc`.

Rules of this file:

* The master asks in a cell of its own row and reads the answer in the collector's: it never waits.
* If the collector dies during a requested round, its successor completes the round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metad.errors import OsError
from metad.master.children import MASTER_ROW, Child, ChildSpec, ChildTable
from metad.master.worker_pool import Slot
from metad.system.counters import COLLECTOR_FIGURES as FIGURES
from metad.system.shared_memory import Cell, ProcessRow, SharedArea
from metad.workers.child import describe
from metad.workers.collector import Work


class CollectorControl:
    """`spec(done)`: how the child is made; `report(text)` writes to the log."""

    def __init__(
        self,
        children: ChildTable,
        area: SharedArea,
        spec: Callable[[int], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._children = children
        self._spec = spec
        self._report = report
        self._slot = Slot(0)
        self.asked: ProcessRow = area.process(MASTER_ROW)
        self._done = self.asked[Cell.ROUND]

    def manage(self, now: float) -> None:
        """Start the collector if there is none and its back-off is over.  `now`: monotonic."""
        if self._slot.child is None and now >= self._slot.not_before:
            try:
                self._slot.child = self._children.fork(self._spec(self._done))
            except OsError as error:
                self._report(f"warning: collector: {error}")
                self._slot.back_off(now, now)

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was the collector.  Call this before its row is cleared."""
        if self._slot.child is not child:
            return False
        self._slot.child = None
        self._done = child.row[Cell.ROUND]
        if code:
            why = f": {child.boot_error}" if child.boot_error else ""
            self._report(f"warning: {child.name} died: {describe(code)}{why}")
            self._slot.back_off(child.started, now)
        return True

    def renew(self, number: int) -> None:
        """Stop it with signal `number`; its successor gets the new configuration."""
        if self._slot.child is not None:
            self._slot.child.signal(number)

    # -- gc

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """For `metad gc`: begin a round, or report its progress."""
        if request["command"] == "gc":
            return self.ask(full=request.get("full") is True)
        return self.progress()

    def ask(self, *, full: bool) -> dict[str, Any]:
        """Request a round: its number, and the counters before it."""
        number = (self.asked[Cell.ROUND] >> 1) + 1
        self.asked[Cell.ROUND] = number << 1 | full
        return {"round": number, **self.progress()}

    def progress(self) -> dict[str, Any]:
        """The last completed round, what the collector is doing, and its counters."""
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
