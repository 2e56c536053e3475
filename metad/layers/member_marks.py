"""The marks of this node and of the other members, kept by the workers of a node (cluster.marks).

    new records, every few seconds -> beat, durable -> told in HELLO and with each answer to a pull
    what a member told -> durable as often; a member that has started again -> walk again

Rules of this file:

* Files are written by the thread given, not on the loop; one job at a time.
* The first worker of a node does all of this; the others only tell, and judge whom they meet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metad.cluster.heard_marks import HEARD, HeardMarks, Member, Vector
from metad.cluster.marks import Heard
from metad.cluster.old_disks import OldDisks
from metad.cluster.own_marks import OwnMarks
from metad.cluster.reserve import Reserve
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from metad.layers.base import LayerContext
from metad.layers.logs import FIRST_SLOT, LogLayer
from metad.store.background import Background
from metad.system.shared_memory import Cell

EVERY = 5  # seconds: each costs some syncs of small files


class MemberMarks:
    """One worker's."""

    def __init__(self, context: LayerContext, log: LogLayer, place: Path) -> None:
        self._report = context.report
        self._is_first = context.row[Cell.SLOT] == FIRST_SLOT
        self._groups = context.area.column(Cell.GROUPS)
        cells, report = context.area.marks_cells, context.report
        self._reserve = Reserve(log.osio, str(place))
        self._own = OwnMarks(log.osio, place, log.store.logs, cells, report)
        self._heard = HeardMarks(log.osio, str(place / HEARD), report)
        self.disks = OldDisks(log.store.node, self._own, self._heard, context.report)
        self._written = 0  # groups of commits, of all workers, when the last beat was counted
        self._is_busy = False
        self._ticks = 0
        self._members: dict[int, Member] = {}  # what each told since this worker started
        self._known: dict[int, Member] = {}  # and before
        self.on_start: Callable[[], None] = lambda: None

    def begin(self, token: bytes) -> None:
        """Raises ClusterError, OSError."""
        refusal = self._own.begin(token)
        if self._is_first:
            self._reserve.fill()
            self._known = self._heard.all()
        if refusal and self._is_first:
            self._report(f"warning: this node no longer takes part: {refusal}")

    @property
    def refusal(self) -> str:
        """Why this node no longer takes part; "" if it does."""
        return self._own.refusal

    def mark(self) -> bytes:
        """What this node tells with each vector."""
        return self._own.told().last.pack()

    def vector(self, member: int) -> Vector:
        """Of each origin, the number up to which that member is known to have its tombstones."""
        found = self._members.get(member) or self._known.get(member)
        return found.vector if found is not None else {}

    def told(self, member: int, mark: Heard, vector: dict[tuple[int, int], int]) -> None:
        """A member told this of itself."""
        known = self._members.get(member)
        self._members[member] = Member(mark, vector)
        # What it confirmed after its last mark may be missing, if its disk is that old.
        if known is not None and known.mark.token != mark.token:
            self.on_start()

    def tick(self, view: View, thread: Background) -> None:
        """Once a second, in the first worker."""
        self._own.look()
        self._ticks += 1
        if self._ticks % EVERY or self._is_busy or self.refusal:
            return
        written = sum(self._groups)
        heard = dict(self._members)
        numbers = [one.number for one in view.members if one.state is not Membership.REMOVED]
        self._is_busy = True

        def store() -> None:
            try:
                if written != self._written:
                    self._own.beat()
                    self._written = written
                self._heard.keep(heard, numbers)
                self._reserve.fill()
            except (ClusterError, OSError) as error:
                self._report(f"warning: marks are not stored: {error}")
            finally:
                self._is_busy = False

        thread.put(store)
