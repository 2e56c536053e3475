"""How many messages are about to arrive: what a group commit waits for.

A write and its sync cost about as much as several messages, whatever the group holds.  An active
client sends its next message within a moment; a group that waits for it is larger, and once every
active client is in the group, no other client needs the loop.

Rules of this file:

* A message counts from its MAIL until it arrives, but for 20 to 40 milliseconds at most: the
  committer does not wait for a sender that is far away or has stopped.
* It is a guess.  An unannounced message uses up a pending slot; the error costs at most one delay.
"""

from __future__ import annotations

from collections.abc import Callable

LATELY_SECONDS = 0.02


class CommitDelay:
    """Counts messages that have begun lately.  `now`: seconds of a clock that never runs back."""

    __slots__ = ("_fresh", "_now", "_since", "_stale")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = now()
        self._fresh = 0  # begun since then
        self._stale = 0  # begun in the time before

    def begun(self) -> None:
        """A client began a message."""
        self._fresh += 1

    def came(self) -> int:
        """A message is there; how many are still expected, without a look at the clock."""
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
