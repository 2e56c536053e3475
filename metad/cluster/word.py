"""etcd's word, in two cells of shared memory: that the epoch was this one, and when.

A lone reader may list only while no other member can have gone on without it (rule Lone reader).
The directory process renews the lease of the node, then reads the epoch.  Until that lease ends,
no member makes a view in which this node is absent.

Rules of this file:

* The time is that before the first of these requests was sent.
* The writer stores the epoch before its time; a reader reads them the other way round.  So a time
  never goes with an epoch that was read before it.
"""

from __future__ import annotations

from metad.limits import CLUSTER_WORD


class Word:
    """`at`: the cell of the time, CLOCK_BOOTTIME in ns, 0 for none; `epoch`: that of the epoch."""

    def __init__(self, at: memoryview, epoch: memoryview) -> None:
        self._at = at
        self._epoch = epoch

    def keep(self, sent_ns: int, epoch: int) -> None:
        if self._epoch[0] != epoch:
            self._at[0] = 0
            self._epoch[0] = epoch
        self._at[0] = sent_ns

    def clear(self) -> None:
        self._at[0] = 0

    def is_good(self, epoch: int, now_ns: int) -> bool:
        """Whether etcd had this epoch, and our lease, in requests sent at most 10 s ago."""
        at = self._at[0]
        return self._epoch[0] == epoch and bool(at) and now_ns - at <= CLUSTER_WORD * 1e9

    def age_s(self, now_ns: int) -> float | None:
        """None: there is no word."""
        at = self._at[0]
        return (now_ns - at) / 1e9 if at else None
