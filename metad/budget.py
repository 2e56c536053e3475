"""The memory budget of a worker for messages that are arriving.

Rule of this file: counting costs only an addition and a comparison, because every message pays for
it.
"""

from __future__ import annotations

from metad import limits


class Budget:
    """`used` of `limit` octets.

    `half`: the limit for large messages, so that small ones always find some memory.  The hottest
    path (the log layer's `deliver`) adds to `used` itself; all others call `take` and `give_back`.
    """

    __slots__ = ("half", "limit", "used")

    def __init__(self, limit: int = limits.MEMORY // 2) -> None:
        self.limit = limit
        self.half = limit // 2
        self.used = 0

    def take(self, octets: int) -> bool:
        """Take `octets`, if available."""
        if self.used + octets > self.limit:
            return False
        self.used += octets
        return True

    def give_back(self, octets: int) -> None:
        self.used -= octets


class Lease:
    """A part of a budget that is returned when the lease is garbage-collected."""

    __slots__ = ("_budget", "_octets")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._octets = 0

    def take(self, octets: int) -> bool:
        """Take `octets` more, if available."""
        taken = self._budget.take(octets)
        if taken:
            self._octets += octets
        return taken

    def __del__(self) -> None:
        self._budget.give_back(self._octets)
