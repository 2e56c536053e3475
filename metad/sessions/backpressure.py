"""Memory held for slow clients: input that arrives before its turn, and output that they do not
read.

A client that sends ahead or does not read could hold memory indefinitely.  A worker limits the
memory of all such clients; above the limit it drops the connection that has been blocked longest.

Rule of this file: a session reports only changes, so a well-behaved client costs nothing.
"""

from __future__ import annotations

from typing import Protocol

from metad import limits


class Holder(Protocol):
    """A session for which octets are held."""

    def drop(self) -> None:
        """Drop the connection: memory is short."""


class Backpressure:
    """Octets held for each session, in the order in which the sessions became blocked."""

    __slots__ = ("_held", "limit", "used")

    def __init__(self, limit: int = limits.MEMORY // 2) -> None:
        self.limit = limit
        self.used = 0
        self._held: dict[Holder, int] = {}

    @property
    def is_short(self) -> bool:
        """Half of the limit is used: anything that can work with less memory should."""
        return self.used * 2 > self.limit

    def hold(self, session: Holder, octets: int) -> None:
        """Set the octets held for `session`; 0: none."""
        held = self._held
        self.used += octets - held.get(session, 0)
        if octets:
            held[session] = octets
        else:
            held.pop(session, None)
        while self.used > self.limit:
            oldest = next(iter(held))
            self.used -= held.pop(oldest)
            oldest.drop()
