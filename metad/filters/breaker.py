"""Circuit breaker: a filter that fails repeatedly is not asked for a while.

Without it, every message during an outage waits for the deadline, and a hub that answers late looks
like one that is down.

    closed --- `failures` in a row ---> open --- after a pause ---> half open: one call at a time
       ^                                  ^                            |
       +------------ it succeeds ---------|---------- it fails --------+  (the pause doubles)

Rule of this file: no clock of its own; `now` is seconds of a monotonic clock.
"""

from __future__ import annotations

FAILURES = 5
PAUSE = 1.0
MAX_PAUSE = 30.0


class Breaker:
    """`is_open`: calls are refused immediately."""

    __slots__ = ("_failures", "_pause", "_probing", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._pause = PAUSE
        self._until = 0.0  # while it is open; 0: closed
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._until > 0

    def allows(self, now: float) -> bool:
        """Whether to call.  Then call `succeeded`, `failed` or `abandoned` with whether this call
        is the trial: the value of `is_open` right after this."""
        if not self._until:
            return True
        if now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self) -> bool:
        """Returns whether this closes it."""
        was_open = self.is_open
        self._failures = 0
        self._until = 0.0
        self._pause = PAUSE
        self._probing = False
        return was_open

    def failed(self, now: float, *, probe: bool = False) -> bool:
        """Returns whether this opens it.  A call begun before it opened does not lengthen the
        pause."""
        self._failures += 1
        if self._until:
            if probe:
                self._probing = False
                self._pause = min(MAX_PAUSE, 2 * self._pause)
                self._until = now + self._pause
            return False
        if self._failures < FAILURES:
            return False
        self._until = now + self._pause
        return True

    def abandoned(self, *, probe: bool = False) -> None:
        """The caller left before the answer: neither a success nor a failure."""
        if probe:
            self._probing = False
