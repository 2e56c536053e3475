"""How many messages are on their way: what a group commit waits for.

A group is written and synced for about the price of several messages, whatever is in it.  Clients
that are at work send their next message within a moment; a group that waits for them is larger,
and when all of them are in it, nobody is left to be served meanwhile.

Rules of this file:

* A message counts from its MAIL until it is there, but for 20 to 40 milliseconds at most: a sender
  that is far away, or has stopped, is nobody to wait for.
* It is a guess, and costs a moment where it is wrong: who came and was never expected is taken for
  somebody who was.
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
        """Somebody began a message."""
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
