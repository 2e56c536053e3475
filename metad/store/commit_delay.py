"""How many messages are about to arrive, for which a group commit waits.

A write and its sync cost about as much as several messages, whatever the group holds.  An active
client sends its next message within a moment; a group that waits for it is larger, and once every
active client is in the group, no other client needs the loop.

Rules of this file:

* A message counts from its MAIL until it arrives, but no longer than 20 to 40 milliseconds: the
  committer does not wait for a distant or stalled sender.
* The number is a guess.  An unannounced message uses up a pending slot; the error costs at most one
  delay.
"""

from __future__ import annotations

from collections.abc import Callable

LATELY_SECONDS = 0.02


class CommitDelay:
    """Counts recently begun messages.  `now` returns seconds of a monotonic clock."""

    __slots__ = ("_fresh", "_now", "_since", "_stale")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = now()
        self._fresh = 0  # begun since then
        self._stale = 0  # begun in the period before

    def begun(self) -> None:
        """A client began a message."""
        self._fresh += 1

    def came(self) -> int:
        """A message has arrived.  Returns how many are still expected, without reading the
        clock."""
        if self._stale:
            self._stale -= 1
        elif self._fresh:
            self._fresh -= 1
        return self._fresh + self._stale

    def count(self) -> int:
        now = self._now()
        passed = now - self._since
        if passed > LATELY_SECONDS:
            self._stale = self._fresh if passed < 2 * LATELY_SECONDS else 0
            self._fresh = 0
            self._since = now
        return self._fresh + self._stale
