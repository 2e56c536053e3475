"""When acknowledged mail is entered in the index.

Rules of this file:

* As soon as it has ENTER_ROWS rows; otherwise at the third look, 15 ms after its answer, because
  one transaction for many messages is cheaper; at the next look, 5 ms, if a session waits for it.
* While another process holds the index's lock, it is tried again; after TRIES the thread waits.
"""

from __future__ import annotations

from collections.abc import Callable

from metad.store.commit.group import Loop
from metad.store.commit.index_feed import IndexFeed

# Rows of a transaction that does not wait for more.
ENTER_ROWS = 100
LOOK_SECONDS = 0.005
LOOKS = 3
# While another process holds the index's lock: how often to try before a thread waits for it.
RETRY_SECONDS = 0.001
TRIES = 20


class EntryTimer:
    """The timer of one committer, on its loop."""

    def __init__(
        self,
        loop: Loop,
        feed: IndexFeed,
        enter_now: Callable[[], bool],
        wait_and_enter: Callable[[], bool],
    ) -> None:
        """`enter_now` returns False if another process holds the lock; `wait_and_enter` returns
        False if the thread is at work."""
        self._loop = loop
        self._feed = feed
        self._enter_now = enter_now
        self._wait_and_enter = wait_and_enter
        self._is_due = False
        self._looks = 0
        self._tries = 0

    def answered(self) -> None:
        """A group has been acknowledged, or entered."""
        if self._feed.rows >= ENTER_ROWS:
            self._loop.call_soon(self._enter)  # after the answers
        elif self._feed.answered:
            self._look_after(LOOK_SECONDS)

    def entered(self) -> None:
        """The index has all acknowledged mail."""
        self._looks = self._tries = 0

    def _look_after(self, seconds: float) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._is_due = False
        if not self._feed.answered:
            return
        self._looks += 1
        if self._looks < LOOKS and not self._feed.is_asked:
            self._look_after(LOOK_SECONDS)
        else:
            self._enter()

    def _enter(self) -> None:
        if self._enter_now():
            return
        self._tries += 1
        if self._tries > TRIES and self._wait_and_enter():
            self._tries = 0
        else:
            self._looks = LOOKS
            self._look_after(RETRY_SECONDS)
