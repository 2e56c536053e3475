"""The unique ids that imported messages brought from their old server.

The records hold them; the index does too, so that UIDL reads no records.  An index rebuilt from the
footers of logs has none of them: they are then read from the records and entered, once.

Rule of this file: a mailbox may have hundreds of thousands of them, so they are looked up in
blocks, and those that the index lacks are read in steps of a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import lmdb

from metad.errors import RefusedError
from metad.layers.listing import Listing
from metad.store.ids import is_imported
from metad.store.index.index import Index
from metad.store.reader import Reader

# Ids that are looked up together: half a millisecond.
BLOCK = 200
# Messages after which others get their turn, where none of them was imported.
TURN = 10 * BLOCK
# Records read in one step: with a cold cache on a hard disk, a few seeks.
RECORDS = 4
# Mailboxes remembered as complete; any others are only scanned again.
REMEMBERED = 10_000


class _Store(Protocol):
    """The log layer, or a command that reads the store, as this module uses it."""

    @property
    def index(self) -> Index: ...
    @property
    def reader(self) -> Reader: ...


class ImportedIds:
    """The ids of one mailbox, as a session lists it.  `is_complete`: the index has all of them; a
    message without one there brought none."""

    __slots__ = ("_known", "_listing", "_store", "is_complete")

    def __init__(self, store: _Store, listing: Listing, *, is_complete: bool) -> None:
        self._store = store
        self._listing = listing
        self._known: dict[bytes, str] = {}  # of the last block
        self.is_complete = is_complete

    def complete_index(self) -> Iterator[None]:
        """Enter the ids that the index lacks, in steps.  Raises lmdb.Error."""
        if self.is_complete:
            return
        self.is_complete = True
        block: list[bytes] = []
        for number in range(1, self._listing.messages + 1):
            message_id = self._listing.id(number)
            if is_imported(message_id):
                block.append(message_id)
            if number % BLOCK == 0 or number == self._listing.messages:
                if block or number % TURN == 0:
                    yield
                if block:
                    yield from self._complete(block)
                block = []

    def _complete(self, block: Sequence[bytes]) -> Iterator[None]:
        found = self._store.index.uids(block)
        missing = [one for one in block if one not in found]
        for at in range(0, len(missing), RECORDS):
            recorded = _recorded_ids(self._store, missing[at : at + RECORDS])
            self.is_complete &= _enter(self._store.index, recorded)
            yield

    def get(self, number: int, message_id: bytes) -> str:
        """The unique id of this message; empty if it brought none."""
        found = self._known.get(message_id)
        if found is None:
            last = min(number + BLOCK - 1, self._listing.messages)
            every = map(self._listing.id, range(number, last + 1))
            block = [one for one in every if is_imported(one)]
            index = self._store.index
            ids = index.uids(block) if self.is_complete else imported_ids(self._store, block)
            self._known = dict.fromkeys(block, "") | ids
            found = self._known[message_id]
        return found


def imported_ids(store: _Store, ids: Sequence[bytes]) -> dict[bytes, str]:
    """The unique ids of imported messages; those that brought none are left out."""
    found = store.index.uids(ids)
    recorded = _recorded_ids(store, [one for one in ids if one not in found])
    _enter(store.index, recorded)
    return found | recorded


def _recorded_ids(store: _Store, ids: Sequence[bytes]) -> dict[bytes, str]:
    return {one: uid for one in ids if (uid := _recorded(store, one))}


def _enter(index: Index, ids: dict[bytes, str]) -> bool:
    """Enter ids in the index if its lock is free.  Returns whether it has them."""
    if not ids:
        return True
    if not index.try_lock():
        return False
    try:
        index.put_uids(ids)
    except lmdb.Error:
        return False
    finally:
        index.unlock()
    return True


def _recorded(store: _Store, message_id: bytes) -> str:
    try:
        return store.reader.read(message_id).envelope.uid
    except RefusedError:
        return ""
