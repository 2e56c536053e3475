"""Mailboxes with mail that is acknowledged but not yet in the index.

A worker acknowledges a message as soon as it is durable, and enters it in the index some
milliseconds later.  A session must list all mail acknowledged before it began, by any worker: it
asks here before it opens a mailbox, and waits.

Rules of this file:

* A process publishes its mailboxes before the first acknowledgement, and withdraws them only after
  the index has the mail.  If it dies first, its row is kept until recovery has entered it.
* `asked_ns` is read from the clock before the question.  Mail acknowledged later does not matter,
  so a session never waits for a continuous stream of mail.
* A session that waits says so (`ask`), and the processes with such mail enter theirs sooner.
* 1,024 bits per process, by the number of the mailbox; two mailboxes may share a bit.  The error is
  one-sided: a session may wait in vain, but never opens a mailbox too early.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from metad.store.log.footer import ENTRY_SIZE
from metad.system.shared_memory import PENDING_CELLS, PROCESSES, UNENTERED_ASKED, SharedArea

_BITS = PENDING_CELLS * 64
_BIT = [1 << number for number in range(_BITS)]
# The mailbox in a footer entry, as far as it decides on the bit.
_NUMBER = struct.Struct(f">2xH{ENTRY_SIZE - 4}x")
_SIZE = PENDING_CELLS * 8
_NO_TIMES = bytes(PROCESSES * 8)
_NONE = memoryview(bytes(_SIZE)).cast("Q")


class UnenteredMail:
    """As one process sees it; `me` is its row, `now_ns` a clock that all processes share."""

    def __init__(
        self, area: SharedArea, me: int, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._since, self._words = area.unentered_cells()
        self._asked = area.cells[UNENTERED_ASKED : UNENTERED_ASKED + 1]
        self._me = me
        self._mine = self._words[me * PENDING_CELLS : (me + 1) * PENDING_CELLS]
        self._mask = 0
        self.now_ns = now_ns

    def add(self, entries: bytes) -> None:
        """Mail with these footer entries is about to be acknowledged."""
        mask = self._mask
        for (number,) in set(_NUMBER.iter_unpack(entries)):
            mask |= _BIT[number % _BITS]
        if mask != self._mask:
            self._mask = mask
            self._mine[:] = memoryview(mask.to_bytes(_SIZE, "little")).cast("Q")
        if mask and not self._since[self._me]:  # a group may have no mail: `settle` goes by `mask`
            self._since[self._me] = self.now_ns()

    def settle(self) -> None:
        """All mail announced so far is in the index."""
        if self._mask:
            self._since[self._me] = 0
            self._mask = 0
            self._mine[:] = _NONE

    def ask(self) -> None:
        """A session waits for mail that other processes have: let them enter it soon."""
        self._asked[0] = self.now_ns()

    def is_asked(self) -> bool:
        """Whether a session has waited since the oldest such mail of this process was acknowledged.

        It may have waited for another process.
        """
        return self._asked[0] >= self._since[self._me] > 0

    def is_mine(self, mailbox: int) -> bool:
        """Whether this process itself may have such mail for the mailbox."""
        return bool(self._mask & _BIT[mailbox % _BITS])

    def is_any_older(self, asked_ns: int) -> bool:
        """Whether the index may lack mail of any mailbox that was acknowledged before then."""
        return any(0 < since <= asked_ns for since in self._since)

    def may_have(self, mailbox: int, asked_ns: int) -> bool:
        """Whether the index may lack mail of this mailbox that was acknowledged before
        `asked_ns`."""
        times = self._since.tobytes()
        if times == _NO_TIMES:  # at once: most polls come when no mail waits
            return False
        rows = -(-len(times.rstrip(b"\0")) // 8)  # the other processes have none
        at, bit = divmod(mailbox % _BITS, 64)
        return any(
            0 < self._since[row] <= asked_ns and self._words[row * PENDING_CELLS + at] >> bit & 1
            for row in range(rows)
        )
