"""Deletes mail that is too old, or whose user is gone, from its mailboxes in short steps.

    look -> the mailbox's lock, look again -> deletion records: written, synced -> index -> unlock

Rules of this file:

* It works like the QUIT of a session: durable in the collector's own log before it enters the
  index.  If it is killed, only mail that was due is gone, and the rest is deleted next time.
* Nothing is deleted without the mailbox's lock.  A mailbox in use is skipped and reported.
* A step deletes a bounded number of messages from many mailboxes under one sync: it holds the locks
  and the index only for a moment.
* A message is deleted only if its id and its record both show that it is old enough.
* metad.workers.expiry_scan decides what is due.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from metad.store.gc.contents import Record, RecordReader
from metad.store.gc.copy import Step, Tools
from metad.store.gc.policy import next_generation
from metad.store.index.index import Index, Publish
from metad.store.index.rows import Batch
from metad.store.log import record
from metad.store.log.encode import Append, append_deletion
from metad.store.log.header import log_path
from metad.store.log.place import Place
from metad.store.mailbox_locks import MailboxLocks

# Messages per step, which is one write transaction: below a millisecond.
DELETED = 50
_LATEST = (1 << 64) - 1
IMPORTED = "import"  # the client of a message that metad mail import brought


class Due(NamedTuple):
    """Mail stored in `mailbox` before `before` (hub time in microseconds) is due."""

    mailbox: int
    before: int


@dataclass(slots=True)
class Figures:
    """What has been done so far."""

    messages: int = 0
    in_use: int = 0


class Expiry:
    """Deletes mail that is due.  One per store at a time, in the collector's process, between its
    steps."""

    def __init__(self, tools: Tools, locks: MailboxLocks) -> None:
        self._tools = tools
        self._locks = locks
        self.figures = Figures()
        # Mailboxes skipped because they were in use, until the caller removes them.
        self.in_use: set[int] = set()

    def steps(self, due: Iterable[Due]) -> Iterator[Step]:
        """Raises OSError, lmdb.Error, RefusedError (no log is available); deletions already made
        stay."""
        waiting = deque(due)
        while waiting:
            self._step(waiting)
            yield Step.COPIED

    def _step(self, waiting: deque[Due]) -> None:
        """Delete up to DELETED messages, from as many mailboxes as needed, under one sync."""
        group: list[Append] = []
        held: list[int] = []
        room = DELETED
        try:
            while waiting and room:
                mailbox, before = waiting[0]
                limit = room
                old: list[bytes] = []
                ids: list[bytes] = []
                if self._old(mailbox, before, 1) and self._take(mailbox):
                    held.append(mailbox)
                    old = self._old(mailbox, before, limit)
                    ids = [one for one in old if self._is_old(one, before)]
                    if ids:
                        group.append(self._deletion(mailbox, ids))
                room -= len(ids)
                if len(old) == limit and ids:
                    break  # there may be more for the next step
                waiting.popleft()
            if group:
                self._commit(group)
        finally:
            for mailbox in held:
                self._locks.release(mailbox)

    def _old(self, mailbox: int, before: int, most: int) -> list[bytes]:
        """The oldest messages that are due: ids begin with the time."""
        limit = min(max(before, 0), _LATEST).to_bytes(8, "big")
        return [one for one in self._tools.index.oldest(mailbox, most) if one < limit]

    def _is_old(self, message_id: bytes, before: int) -> bool:
        """Whether the record agrees: it has the wall clock's time, which an id may not have.

        An unreadable record proves nothing.  An imported message has the time of its first server:
        then the id decides.
        """
        for place in self._tools.index.places(message_id):
            found = self._read(place)
            if found is not None and found.header.id == message_id:
                envelope = record.unpack_envelope(found.envelope)
                return envelope.client == IMPORTED or envelope.time_us < before
        return False

    def _read(self, place: Place) -> Record | None:
        """The record at a place, if it can be read and verifies."""
        tools = self._tools
        life = tools.index.log_counts(place.log).life
        try:
            fd = tools.osio.open(log_path(tools.store.logs, place.log), os.O_RDONLY)
        except OSError:
            return None
        try:
            reader = RecordReader(tools.osio, fd, tools.store, place.log, life)
            return reader.read(place.offset, place.size)
        except OSError:
            return None
        finally:
            tools.osio.close(fd)

    def _take(self, mailbox: int) -> bool:
        if self._locks.acquire(mailbox):
            return True
        self.figures.in_use += 1
        self.in_use.add(mailbox)
        return False

    def _deletion(self, mailbox: int, ids: list[bytes]) -> Append:
        deletion = record.Deletion(mailbox, b"".join(ids))
        return append_deletion(self._tools.next_id(), deletion, _ignore)

    def _commit(self, group: list[Append]) -> None:
        """Make deletions durable, then visible."""
        tools = self._tools
        deletions = [one.deletion for one in group if one.deletion is not None]
        tools.failpoint("deleting")
        # Written among the youngest survivors, so it needs no log of its own.
        tools.commit(next_generation(0), group, _apply)
        tools.failpoint("expired")
        self.figures.messages += sum(len(one.each()) for one in deletions)


def _apply(index: Index, batch: Batch, publish: Publish) -> None:
    index.apply(batch, publish)


def _ignore(_: object) -> None:
    """No client is waiting for an answer."""
