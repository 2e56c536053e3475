"""Opens and tries the index in a child (metad.system.trial), where a bad page does no harm.

The child walks through all tables, for a few seconds at most.

Rules of this file:

* Nothing is written to the index.  The child's findings, or its exit status, are the reason for a
  rebuild.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import lmdb

from metad.errors import MetadError
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.lsm import unpack_usage
from metad.store.index.rows import (
    DisagreementError,
    unpack_log,
    unpack_places,
    unpack_references,
)
from metad.store.index.tombstone_rows import TombstoneSums
from metad.system import lmdb_pages
from metad.system.osio import Osio
from metad.system.trial import reason_in_child

SECONDS = 2.0  # for the walk; bad pages that it does not reach are found when they are used
_LOOK_EVERY = 4096


def why_damaged(path: str, disagreement: Callable[[], str | None]) -> str | None:
    """None if the index passed; `disagreement` is called in the child.  Raises OSError."""
    return reason_in_child(lambda: _why(path, disagreement))


def _why(path: str, disagreement: Callable[[], str | None]) -> str | None:
    try:
        return disagreement() or _walk(path, time.monotonic() + SECONDS)
    except (lmdb.Error, MetadError, OSError, ValueError, *index_state.NONSENSE) as error:
        return f"it is damaged: {error}"


def _walk(path: str, until: float) -> str | None:
    """Every page, or as many as there is time for; what the rows of one table say of another."""
    index = Index(path, readonly=True)
    try:
        file = os.path.join(path, index_state.DATA_FILE)
        reason = lmdb_pages.why_wrong(Osio(), file)
        if reason is not None:
            return reason
        with index.reading() as txn:
            return _Walk(index, txn, until).run()
    except _OutOfTimeError:
        return None
    finally:
        index.close()


class _OutOfTimeError(Exception):
    """The rest is found when it is used."""


class _Walk:
    """All tables once; `run` gives the first thing that is wrong."""

    def __init__(self, index: Index, txn: lmdb.Transaction, until: float) -> None:
        self._tables = index.tables
        self._txn = txn
        self._until = until
        # The ids of all entries, as a sum, and as the messages' references have it.
        self._entries = self._references = 0

    def run(self) -> str | None:
        return (
            self._walk_places()
            or next(filter(None, map(self._walk_level, self._tables.mailboxes)), None)
            or ("its mailboxes do not have what it has of the messages"
                if self._entries != self._references else None)
            or self._walk_tombstones()
        )  # fmt: skip

    def _rows(self, table: Any) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table.  Raises DisagreementError, _OutOfTimeError."""
        last, count = b"", 0
        rows: Any = self._txn.cursor(table)  # without `buffers` these are bytes
        for key, value in rows:
            if key <= last:
                raise DisagreementError("its rows are out of order")
            last = key
            count += 1
            if not count % _LOOK_EVERY and time.monotonic() > self._until:
                raise _OutOfTimeError
            yield key, value
        if count != self._txn.stat(table)["entries"]:
            raise DisagreementError("some of its rows are missing")

    def _walk_places(self) -> str | None:
        live: dict[int, tuple[int, int]] = {}
        for message_id, row in self._rows(self._tables.places):
            places, references = unpack_places(row), unpack_references(row)
            self._references += references * int.from_bytes(message_id, "big")
            if references and places:
                messages, octets = live.get(places[0].log, (0, 0))
                live[places[0].log] = messages + 1, octets + places[0].size
        for key, value in self._rows(self._tables.logs):
            number, counts = int.from_bytes(key, "big"), unpack_log(value)
            if live.pop(number, (0, 0)) != (counts.live_messages, counts.live_octets):
                return f"its counts of log {number} are wrong"
        return f"its counts of logs {sorted(live)[:5]} are missing" if live else None

    def _walk_tombstones(self) -> str | None:
        sums = TombstoneSums()
        if self._tables.tombstones is not None:
            for key, value in self._rows(self._tables.tombstones):
                sums.take(key, value)
        return None if sums.agree else "its tombstones are not under their origins"

    def _walk_level(self, table: Any) -> str | None:
        """A level's entries, each mailbox's behind the row that has their sums."""
        mailbox, octets, messages = b"", 0, 0
        for key, value in chain(self._rows(table), ((b"", b""),)):
            if key and key[:4] == mailbox and len(key) > 4:
                self._entries += int.from_bytes(key[4:], "big")
                octets -= int.from_bytes(value, "big")
                messages -= 1
            elif octets or messages or len(key) > 4:
                return f"its usage of mailbox {int.from_bytes(mailbox, 'big')} is wrong"
            elif key:
                mailbox, (octets, messages) = key, unpack_usage(value)
        return None
