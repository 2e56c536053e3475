"""Rule Forget: tombstones that every member has had for an hour are dropped.

    vectors that members told -> how far all of them have each origin, once a minute
    -> the least of the last hour -> tombstones up to there, some each second -> Tombstones.forget

Rules of this file:

* Every member counts, absent ones too: a member that was away and still has the message would
  bring it back.  What an absent one had, it told before; that is kept on the disk (heard_marks).
* The hour counts from when this node learned it.  A listing that heard the message from one member
  has yet to hear another, and must still find the tombstone there.  A member that joins begins with
  nothing, and the hour begins again.
* Not while the index of any worker lags or a log waits for its recovery: it may have a copy of the
  message that the index lacks.  A tombstone whose message still lies in a log here stays.
* The clock is handed in.  No clock alone ends a tombstone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import lmdb

from metad.cluster.peers import Peers
from metad.cluster.view import Membership, View
from metad.layers.logs import LogLayer
from metad.layers.member_marks import MemberMarks
from metad.store.index.tombstones import Origin, Tombstones
from metad.store.log_table import LogState
from metad.system.shared_memory import PROCESSES, Cell, SharedArea

WAIT_S = 3600.0
SAMPLE_S = 60.0
MOST = 500  # tombstones looked at in a second
# A process that shows no life for so long may be dead, its log not recovered yet; mail that is
# acknowledged and not in the index for so long is a lag.
SILENT_NS = 60 * 10**9

Frontier = dict[Origin, int]


class ClusterStore(Protocol):
    """What forgetting needs of the layer."""

    peers: Peers
    log: LogLayer
    tombstones: Tombstones
    marks: MemberMarks


class Forgetting:
    """One node's.  `now`: a clock in seconds.  `wait_s`, `sample_s`: shorter in simulations."""

    def __init__(
        self,
        layer: ClusterStore,
        area: SharedArea,
        report: Callable[[str], None],
        now: Callable[[], float],
    ) -> None:
        self._layer = layer
        self._area = area
        self._report = report
        self.now = now
        self.wait_s, self.sample_s = WAIT_S, SAMPLE_S
        self._samples: list[tuple[float, Frontier]] = []
        self._places: Frontier = {}  # how far the present round has looked at each origin
        self._is_round_over = False

    def tick(self) -> None:
        """Once a second."""
        now = self.now()
        if not self._samples or now - self._samples[-1][0] >= self.sample_s:
            self._samples.append((now, self._frontier()))
            if self._is_round_over:  # another one: copies may be gone
                self._places.clear()
        while len(self._samples) > 1 and self._samples[1][0] <= now - self.wait_s:
            del self._samples[0]
        if self._samples[0][0] <= now - self.wait_s:
            self._forget(self._known_for_long())

    def _frontier(self) -> Frontier:
        """Of each origin, the number up to which every member has its tombstones."""
        layer = self._layer
        view = layer.peers.view()
        vectors = [layer.marks.vector(number) for number in _others(view, layer.peers.number)]
        return {
            origin: min([last, *(vector.get(origin, 0) for vector in vectors)])
            for origin, last in layer.tombstones.vector().items()
        }

    def _known_for_long(self) -> Frontier:
        """The least of each origin in the last hour."""
        _, first = self._samples[0]
        return {
            origin: min(sample.get(origin, 0) for _, sample in self._samples) for origin in first
        }

    def _forget(self, upto: Frontier) -> None:
        """The next ones of the first origin that the round has not been through."""
        tombstones = self._layer.tombstones
        for origin, last in upto.items():
            place = self._places.get(origin, 0)
            found = tombstones.since(origin, place, MOST) if place < last else []
            keys = [(one.mailbox, one.id) for one in found if one.sequence <= last]
            if keys:
                if self._is_all_entered() and self._with_lock(keys):
                    self._places[origin] = found[len(keys) - 1].sequence
                self._is_round_over = False
                return
        self._is_round_over = True

    def _with_lock(self, keys: list[tuple[int, bytes]]) -> bool:
        """Forget these, if the index's lock is free; False: the next second will do."""
        index = self._layer.log.index
        if not index.try_lock():
            return False
        try:
            self._layer.tombstones.forget(keys)
        except lmdb.Error as error:
            self._report(f"warning: tombstones: {error}")
            return False
        finally:
            index.unlock()
        return True

    def _is_all_entered(self) -> bool:
        """Whether the index has everything that the logs have had for a while."""
        log, area = self._layer.log, self._area
        now_ns = log.osio.monotonic_ns()
        if any(area.column(Cell.INDEX_BEHIND)) or any(area.pending_cells()):
            return False
        if log.unentered.is_any_older(now_ns - SILENT_NS):
            return False
        owners = {row.owner for row in log.table.rows() if row.state == LogState.ACTIVE}
        return all(owner and self._lives(owner - 1, now_ns) for owner in owners)

    def _lives(self, process: int, now_ns: int) -> bool:
        """Whether a process that has a log has shown life; one that does not show any counts."""
        beat = self._area.process(process)[Cell.HEARTBEAT] if process < PROCESSES else 0
        return not beat or beat >= now_ns - SILENT_NS


def _others(view: View, own: int) -> list[int]:
    """Every member besides this one, in whatever state."""
    return [
        one.number
        for one in view.members
        if one.number != own and one.state is not Membership.REMOVED
    ]
