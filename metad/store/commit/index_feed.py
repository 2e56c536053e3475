"""Durable groups on their way into the index, in the order of their log.

Rules of this file:

* A durable batch is never dropped: one that the index refuses waits, and no later one is entered
  before it, so no watermark ever moves past records that the index lacks.
* Mail may be acknowledged before it is entered (`answered`): mail of a few milliseconds goes into
  the index in one transaction.  `unentered` is informed before the answer, and again after the
  entry.  Deletions are entered before they are acknowledged.
* Once the index has refused a batch, the missing mail appears later, as after a lag.
  Not in a cluster (`lists_all`): there another node may list it, so sessions wait.
* `pending` learns which mailboxes have lagging deletions before any client learns that they are
  deleted, and again once they are entered.
* The caller of `enter` holds the index's write lock, and releases it.
"""

from __future__ import annotations

from collections.abc import Callable

from metad.store.commit.group import GROUP_ROWS
from metad.store.ids import ID_SIZE
from metad.store.index.index import Index, Publish
from metad.store.index.rows import Batch
from metad.store.log import footer
from metad.store.log.place import joined_entries
from metad.store.unentered_mail import UnenteredMail

# Index rows that may be acknowledged and not entered; beyond that, an answer waits for the index.
MOST_ANSWERED = 2 * GROUP_ROWS


class IndexFeed:
    """Enters the groups of one writer.

    `lagging`: batches that the index has refused.  `answered`: batches not yet given to it.
    """

    def __init__(
        self,
        index: Index,
        publish: Publish,
        report: Callable[[str], None],
        pending: Callable[[set[int]], None] = lambda mailboxes: None,
        unentered: UnenteredMail | None = None,
    ) -> None:
        """Without `unentered`, which readers would consult, everything is entered before its
        answer."""
        self.index = index
        self._publish = publish
        self._report = report
        self._pending = pending
        self._unentered = unentered
        self.lists_all = False
        self.lagging: list[Batch] = []
        self.answered: list[Batch] = []
        self.rows = 0  # of the batches in `answered`
        self.failures = 0

    def may_answer(self, batch: Batch) -> bool:
        """Whether a durable batch may be acknowledged before it is entered."""
        return (
            self._unentered is not None
            and not batch.deletions
            and not self.lagging
            and self.rows < MOST_ANSWERED
        )

    def answer(self, batch: Batch) -> None:
        """Keep a batch that is acknowledged now and entered by the next `enter`."""
        entries = joined_entries(batch.messages)
        if self._unentered is not None:
            self._unentered.add(entries)
        self.answered.append(batch)
        self.rows += len(entries) // footer.ENTRY_SIZE

    @property
    def is_asked(self) -> bool:
        """Whether a session may be waiting for what is in `answered`."""
        return self._unentered is not None and self._unentered.is_asked()

    def enter(self, *batches: Batch) -> None:
        """Enter lagging batches, acknowledged ones, then `batches`; refused ones lag from now
        on."""
        waiting = merged([*self.lagging, *self.answered, *batches])
        self.answered = []
        self.rows = 0
        try:
            while waiting:
                self.index.apply(waiting[0], self._publish)
                del waiting[0]
        except Exception as error:  # LMDB, a full disk, an impossible row: all treated alike
            self.failures += 1
            self._report(f"warning: the index lags behind the log: {error!r}")
        finally:
            if waiting or self.lagging:
                self._pending({one.mailbox for batch in waiting for one in batch.deletions})
            self.lagging = waiting
            if self._unentered is not None:
                if waiting and self.lists_all:
                    for batch in waiting:
                        self._unentered.add(joined_entries(batch.messages))
                else:
                    self._unentered.settle()

    def usage(self, mailbox: int) -> tuple[int, int]:
        """Bytes and messages that `answered` adds to a mailbox."""
        if self._unentered is None or not self._unentered.is_mine(mailbox):
            return 0, 0
        entries = map(joined_entries, (batch.messages for batch in self.answered))
        sizes = [one.octets for one in footer.unpack(b"".join(entries)) if one.mailbox == mailbox]
        return sum(sizes), len(sizes)


def merged(batches: list[Batch]) -> list[Batch]:
    """Merge batches: one transaction for several groups of a log, within bounds."""
    if len(batches) < 2:
        return batches
    found: list[Batch] = []
    rows = 0
    for batch in batches:
        more = _rows(batch)
        last = found[-1] if found else None
        if last is not None and last.life == batch.life and rows + more <= GROUP_ROWS:
            last.messages.extend(batch.messages)
            last.deletions.extend(batch.deletions)
            found[-1] = last._replace(watermark=batch.watermark)
            rows += more
        else:
            found.append(batch._replace(messages=[*batch.messages], deletions=[*batch.deletions]))
            rows = more
    return found


def _rows(batch: Batch) -> int:
    ids = sum([len(one.ids) for one in batch.deletions]) // ID_SIZE
    return len(joined_entries(batch.messages)) // footer.ENTRY_SIZE + ids
