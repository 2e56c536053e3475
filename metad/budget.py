"""What a worker may hold in memory for others: counted as it is taken and given back.

Rule of this file: counting costs an addition and a comparison, because every message pays for it.
"""

from __future__ import annotations

from metad import limits


class Budget:
    """`used` of `limit` octets.  Who takes of it looks at both himself, and gives back as much.

    `half`: who wants much takes of that only, so that those who want little always find some.
    """

    __slots__ = ("half", "limit", "used")

    def __init__(self, limit: int = limits.MEMORY // 2) -> None:
        self.limit = limit
        self.half = limit // 2
        self.used = 0


class Lease:
    """Part of a budget that is given back when the lease is forgotten."""

    __slots__ = ("_budget", "_octets")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._octets = 0

    def take(self, octets: int) -> bool:
        """Whether there is so much more."""
        budget = self._budget
        if budget.used + octets > budget.limit:
            return False
        budget.used += octets
        self._octets += octets
        return True

    def __del__(self) -> None:
        self._budget.used -= self._octets
