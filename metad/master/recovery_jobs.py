"""Recovery of the logs of dead processes, by a child, until it succeeds.

Until then acknowledged mail may be in a dead worker's log and not yet visible, so this never gives
up.  The row of the dead process is kept, because the log table names the owner of a log by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metad.errors import OsError
from metad.master.children import Child, ChildSpec, ChildTable
from metad.system.backoff import Backoff
from metad.system.shared_memory import ProcessRow
from metad.workers.child import describe

RETRY = Backoff(0.2, 10.0)


@dataclass(slots=True)
class Dead:
    """A dead process whose logs wait for recovery."""

    row: ProcessRow
    name: str
    child: Child | None = None
    failures: int = 0
    not_before: float = 0.0


class RecoveryJobs:
    """`spec(row)`: how the child that recovers is made.  One runs at a time."""

    def __init__(
        self,
        children: ChildTable,
        spec: Callable[[ProcessRow], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._children = children
        self._spec = spec
        self._report = report
        self._dead: list[Dead] = []

    def __len__(self) -> int:
        return len(self._dead)

    def add(self, child: Child) -> None:
        self._children.kept_rows.add(child.row.index)
        self._dead.append(Dead(child.row, child.name))

    def forget(self) -> None:
        """A recovery of the whole store takes care of them all."""
        for one in self._dead:
            self._children.kept_rows.discard(one.row.index)
            one.row.clear()
        self._dead.clear()

    def manage(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if any(one.child is not None for one in self._dead):
            return
        for one in self._dead:
            if now >= one.not_before:
                try:
                    one.child = self._children.fork(self._spec(one.row))
                except OsError as error:
                    self._retry_later(one, now, str(error))
                return

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was a recovery that this object started."""
        for one in self._dead:
            if one.child is child:
                one.child = None
                if code == 0:
                    self._dead.remove(one)
                    self._children.kept_rows.discard(one.row.index)
                    one.row.clear()
                else:
                    self._retry_later(one, now, child.boot_error or describe(code))
                return True
        return False

    def _retry_later(self, one: Dead, now: float, why: str) -> None:
        one.failures += 1
        one.not_before = now + RETRY.delay(one.failures)
        self._report(f"warning: recovery of the logs of {one.name} failed: {why}; trying again")
