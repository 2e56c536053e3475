"""Mailboxes whose deletions are durable, acknowledged, and not yet in the index.

The index would still list deleted messages, so no worker opens such a mailbox until the index has
caught up.

Rules of this file:

* A process publishes its mailboxes before a QUIT is acknowledged, and withdraws them only after the
  index has their deletions.  If it dies first, its row is kept until recovery has entered them.
* 1,024 bits per process, by the number of the mailbox; two mailboxes may share a bit.  The error is
  one-sided: a mailbox is refused for a while, never opened too early.
"""

from __future__ import annotations

from collections.abc import Iterable

from metad.system.shared_memory import PENDING_CELLS, SharedArea

_BITS = PENDING_CELLS * 64


class PendingDeletions:
    """The set as one process sees it; `me` is its row."""

    def __init__(self, area: SharedArea, me: int) -> None:
        self._area = area
        self._cells = area.pending_cells()
        self._start = me * PENDING_CELLS

    def publish(self, mailboxes: Iterable[int]) -> None:
        """Publish all pending mailboxes of this process."""
        words = [0] * PENDING_CELLS
        for mailbox in mailboxes:
            at, bit = divmod(mailbox % _BITS, 64)
            words[at] |= 1 << bit
        for at, word in enumerate(words, self._start):
            self._cells[at] = word

    def may_have(self, mailbox: int) -> bool:
        """Whether any process may have deletions of this mailbox that the index lacks."""
        at, bit = divmod(mailbox % _BITS, 64)
        column = self._cells[at : self._area.rows_used * PENDING_CELLS : PENDING_CELLS]
        return any(word >> bit & 1 for word in column) if any(column) else False
