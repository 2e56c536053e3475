"""What waits in a worker's memory for its client: octets sent before their turn, answers not read.

A client that sends ahead, or does not read, costs memory for as long as it likes.  What all of them
hold has a limit; beyond it the one that has been at it longest goes.

Rule of this file: a session says what it holds when that changes, and nothing otherwise, so that
one whose client waits its turn and reads costs nothing.
"""

from __future__ import annotations

from typing import Protocol

from metad import limits


class Holder(Protocol):
    """A session for which something waits."""

    def shed(self) -> None:
        """Drop the connection: memory is short."""


class Backpressure:
    """Octets by session, in the order in which they began to wait."""

    __slots__ = ("_held", "limit", "used")

    def __init__(self, limit: int = limits.MEMORY // 2) -> None:
        self.limit = limit
        self.used = 0
        self._held: dict[Holder, int] = {}

    @property
    def is_short(self) -> bool:
        """Half of it is used: whoever can do with less should."""
        return self.used * 2 > self.limit

    def hold(self, session: Holder, octets: int) -> None:
        """So much waits for this session now; 0: nothing does."""
        held = self._held
        self.used += octets - held.get(session, 0)
        if octets:
            held[session] = octets
        else:
            held.pop(session, None)
        while self.used > self.limit:
            oldest = next(iter(held))
            self.used -= held.pop(oldest)
            oldest.shed()
