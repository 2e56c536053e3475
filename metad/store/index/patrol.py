"""A walk through the whole index beside the hub, in short steps, once after each start.

The trial of a start (metad.store.index.probe) has two seconds, and a large index needs more.

Rules of this file:

* A step is one read transaction of a few milliseconds, so no page waits for it.
* It compares only what a single transaction must agree on: the order and the form of rows, each
  entry with its message's row, each mailbox's usage with its entries.  What one transaction cannot
  read at once (the usage of very large mailboxes, the counts of logs) is left out.
* What it finds is noted as doubt by the transaction itself: then the master has the index rebuilt.
  A bad page may end the process that walks, with the same effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import lmdb

from metad.store.ids import ID_SIZE
from metad.store.index.index import Index
from metad.store.index.lsm import unpack_usage
from metad.store.index.rows import DisagreementError, unpack_references, unpack_row

ROWS = 4000  # of a step, besides the rest of a mailbox
MOST = 10_000  # messages of a mailbox whose usage is compared
_MAILBOX = 4


class Patrol:
    """One walk; call `step` until `done`."""

    def __init__(self, index: Index, rows: int = ROWS, most: int = MOST) -> None:
        self._index = index
        self._rows = rows
        self._most = most
        self._steps = self._walk()
        self.done = False
        self.seen = 0  # rows

    def step(self) -> None:
        """Raises DisagreementError, struct.error, lmdb.Error; then it is done, and the index is
        suspect if the error makes it so."""
        try:
            next(self._steps)
        except StopIteration:
            self.done = True
        except Exception:
            self.done = True
            raise

    def _walk(self) -> Iterator[None]:
        last: bytes | None = b""
        while last is not None:
            with self._index.reading() as txn:
                last = self._messages(txn, last)
            yield
        for level in self._index.tables.mailboxes:
            start = b"\0"
            while start:
                with self._index.reading() as txn:
                    start = _Piece(self, txn, level).run(start)
                yield

    def _messages(self, txn: lmdb.Transaction, last: bytes) -> bytes | None:
        """Check the rows of messages behind `last`.  Returns the last one checked, None at the
        end."""
        count = 0
        with txn.cursor(self._index.tables.places) as cursor:
            if not cursor.set_range(last + b"\0"):
                return None
            rows: Any = islice(cursor, self._rows)
            for key, value in rows:
                count += 1
                if key <= last or len(key) != ID_SIZE:
                    raise DisagreementError("its rows of messages are out of order")
                unpack_row(value)
                last = key
        self.seen += count
        return last if count == self._rows else None

    def is_large(self, messages: int) -> bool:
        return messages > self._most

    def is_enough(self, count: int) -> bool:
        """Whether a step with so many rows may end."""
        return count >= self._rows


class _Piece:
    """A step in one level of the mailboxes."""

    def __init__(self, patrol: Patrol, txn: lmdb.Transaction, level: Any) -> None:
        self._patrol = patrol
        self._txn = txn
        self._level = level
        self._places = patrol._index.tables.places
        self._mailbox = b""
        self._compares = False  # the usage of the present mailbox
        self._octets = self._messages = 0

    def run(self, start: bytes) -> bytes:
        """Check rows from `start` on.  Returns the key to go on from, empty at the end.

        That is in front of a mailbox, or within a large one.
        """
        if len(start) > _MAILBOX:
            self._mailbox = start[:_MAILBOX]
        last, count = b"", 0
        with self._txn.cursor(self._level) as cursor:
            rows: Any = iter(cursor) if cursor.set_range(start) else ()
            for key, value in rows:
                if key <= last:
                    raise DisagreementError("its rows of mailboxes are out of order")
                last = key
                if self._patrol.is_enough(count) and self._may_end(key):
                    self._patrol.seen += count
                    return bytes(key)
                count += 1
                if len(key) == _MAILBOX:
                    self._begin(key, value)
                else:
                    self._entry(key, value)
        self._end()
        self._patrol.seen += count
        return b""

    def _may_end(self, key: bytes) -> bool:
        if len(key) == _MAILBOX:
            self._end()
            return True
        return not self._compares and key[:_MAILBOX] == self._mailbox

    def _begin(self, key: bytes, value: bytes) -> None:
        self._end()
        self._mailbox = key
        self._octets, self._messages = unpack_usage(value)
        self._compares = not self._patrol.is_large(self._messages)

    def _entry(self, key: bytes, value: bytes) -> None:
        if key[:_MAILBOX] != self._mailbox:
            raise DisagreementError(f"it has no usage of mailbox {_number(key[:_MAILBOX])}")
        self._octets -= _number(value)
        self._messages -= 1
        row = self._txn.get(key[_MAILBOX:], db=self._places)
        if row is None or not unpack_references(bytes(row)):
            raise DisagreementError(
                f"mailbox {_number(self._mailbox)} has a message that it knows nothing of"
            )

    def _end(self) -> None:
        """All entries of a mailbox were read."""
        if self._compares and (self._octets or self._messages):
            raise DisagreementError(f"its usage of mailbox {_number(self._mailbox)} is wrong")
        self._compares = False


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")
