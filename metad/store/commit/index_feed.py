"""Durable groups on their way into the index, in the order of their log.

Rules of this file:

* What is durable is never forgotten: a batch that the index refuses waits, and no later one is
  entered before it, so no watermark ever moves past records that the index lacks.
* `pending` gets the mailboxes whose deletions lag before any client is told that they are
  deleted, and again once they are entered.
* The caller of `enter` holds the index's write lock, and releases it.
"""

from __future__ import annotations

from collections.abc import Callable

from metad.store.index.index import Index, Publish
from metad.store.index.rows import Batch


class IndexFeed:
    """Enters the groups of one writer.  `lagging`: batches that the index does not have yet."""

    def __init__(
        self,
        index: Index,
        publish: Publish,
        report: Callable[[str], None],
        pending: Callable[[set[int]], None] = lambda mailboxes: None,
    ) -> None:
        self.index = index
        self._publish = publish
        self._report = report
        self._pending = pending
        self.lagging: list[Batch] = []
        self.failures = 0

    def enter(self, *batches: Batch) -> None:
        """Enter what lags, then `batches`; what the index refuses lags from now on."""
        waiting = [*self.lagging, *batches]
        try:
            while waiting:
                self.index.apply(waiting[0], self._publish)
                del waiting[0]
        except Exception as error:  # LMDB, a full disk, a row that cannot be: all the same
            self.failures += 1
            self._report(f"warning: the index lags behind the log: {error!r}")
        finally:
            if waiting or self.lagging:
                self._pending({one.mailbox for batch in waiting for one in batch.deletions})
            self.lagging = waiting
