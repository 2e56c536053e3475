"""The logs of processes that died: recovered by a child, again and again until it succeeds.

Until then acknowledged mail may wait unseen in a dead worker's log, so this does not give up; the
dead one's row is kept, because the log table names its owner by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metad.errors import OsError
from metad.master.children import Child, ChildSpec, ChildTable
from metad.system.shared_memory import ProcessRow
from metad.workers.child import describe

FIRST_RETRY_SECONDS = 0.2
MOST_RETRY_SECONDS = 10.0


@dataclass(slots=True)
class Dead:
    """A row whose logs wait for recovery."""

    row: ProcessRow
    name: str
    child: Child | None = None
    tries: int = 0
    not_before: float = 0.0


class RecoveryJobs:
    """`wanted(row)` says how the recovering child is made; one works at a time."""

    def __init__(
        self,
        family: ChildTable,
        wanted: Callable[[ProcessRow], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._family = family
        self._wanted = wanted
        self._report = report
        self._dead: list[Dead] = []

    def __len__(self) -> int:
        return len(self._dead)

    def add(self, child: Child) -> None:
        self._family.kept_rows.add(child.row.index)
        self._dead.append(Dead(child.row, child.name))

    def manage(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if any(one.child is not None for one in self._dead):
            return
        for one in self._dead:
            if now >= one.not_before:
                try:
                    one.child = self._family.fork(self._wanted(one.row))
                except OsError as error:
                    self._put_off(one, now, str(error))
                return

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was one of ours."""
        for one in self._dead:
            if one.child is child:
                one.child = None
                if code == 0:
                    self._dead.remove(one)
                    self._family.kept_rows.discard(one.row.index)
                    one.row.clear()
                else:
                    self._put_off(one, now, child.trouble or describe(code))
                return True
        return False

    def _put_off(self, one: Dead, now: float, why: str) -> None:
        one.not_before = now + min(FIRST_RETRY_SECONDS * 2**one.tries, MOST_RETRY_SECONDS)
        one.tries = min(one.tries + 1, 16)
        self._report(f"warning: the logs of {one.name} are not recovered yet: {why}; trying again")
