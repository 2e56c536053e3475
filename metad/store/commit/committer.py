"""Group commit: everything that waits becomes durable by one write and one sync, then visible.

    submit ... submit -> group -> encode -> append (pwritev, fdatasync) -> index (one transaction)
                                         -> shared memory -> done(None) for each

Rules of this file:

* `done(None)` is called only after the sync.  After a successful sync it is always None,
  whatever the index says: the logs are the truth.  If the index fails, nothing more is taken.
* A failed write or sync is never retried on that log; the group gets SyncFailedError, after the
  next log has said where that one ends: what a client was refused, no restart makes true.
* The thread beside the loop does what may wait: write and sync, a new log, an index whose write
  lock somebody else has.  What only computes stays on the loop, and so does the index transaction
  when its lock is free: LMDB's every put lets go of the interpreter lock, and taking it back from
  a busy loop cost more than the put (docs/performance.md).
* A group waits, for two milliseconds at most, for those who are about to send (see expected.py).
* When all that are at work wait in the group, it is written and synced on the loop, if the disk has
  been quick lately: a thread would only add its wake-up.
* Group bounds: 900 records and 1 MiB; a spooled message is its own group.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from xxhash import xxh3_128_digest

from metad.budget import Budget
from metad.errors import NoSpaceError, RefusedError, SyncFailedError
from metad.store.commit_delay import CommitDelay
from metad.store.ids import ID_SIZE
from metad.store.index.index import Batch, Index, Publish
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from metad.store.log.writer import LogWriter
from metad.store.log_allocator import LogAllocator
from metad.system.osio import Buffer

GROUP_OCTETS = 1 << 20
GROUP_RECORDS = 900
# A group of so many waits for nobody: the price of a sync is nothing beside theirs.
ENOUGH = 100
GATHER_SECONDS = 0.002
# A write and its sync that take longer than this on the average are none for the loop.
QUICK_SECONDS = 0.001
MOST_REST_SECONDS = 60.0

Done = Callable[[RefusedError | None], None]
# A NamedTuple of a tuple that is complete: half the cost of calling its class, several times for
# each message.
_new = tuple.__new__


class Body(Protocol):
    """A body that lies elsewhere: its octets in chunks, as often as asked."""

    def chunks(self) -> Iterator[Buffer]: ...


class Append:
    """One record to be appended: a message, or a deletion.

    `parts`: its body in memory; None: `spooled` gives it.  `size` of the record, `entries_size` of
    its footer entries, in octets.  `held`: octets of the budget that are given back with `done`.
    """

    __slots__ = (
        "deletion", "done", "entries_size", "envelope", "held", "id", "parts", "recipients",
        "size", "spooled", "uid",
    )  # fmt: skip
    deletion: record.Deletion | None
    spooled: Body  # of a message without parts

    def __init__(
        self,
        record_id: bytes,
        envelope: bytes,
        parts: Sequence[Buffer] | None,
        octets: int,
        done: Done,
        recipients: tuple[record.Recipient, ...],
    ) -> None:
        """A message whose body has so many `octets`."""
        self.id = record_id
        self.envelope = envelope
        self.parts = parts
        self.done = done
        self.size = record.HEADER_SIZE + len(envelope) + octets
        self.recipients = recipients
        self.entries_size = len(recipients) * footer.ENTRY_SIZE
        self.uid = ""
        self.deletion = None
        self.held = 0


def append_deletion(record_id: bytes, deletion: record.Deletion, done: Done) -> Append:
    """The record of a deletion."""
    mailbox, ids = deletion
    item = Append(record_id, record.pack_deletion(mailbox), (ids,), len(ids), done, ())
    item.deletion = deletion
    item.entries_size = len(ids) // ID_SIZE * footer.ENTRY_SIZE
    return item


class Loop(Protocol):
    """What the committer needs of an event loop."""

    def call_soon(self, callback: Callable[[], object]) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], object]) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object: ...


class Encoded(NamedTuple):
    """A group as it will lie in a log: buffers, their size, footer entries, what to index."""

    buffers: list[Buffer]
    size: int
    entries: bytes
    messages: list[Message]
    deletions: list[record.Deletion]


class Committer:
    """Commits for one process; `submit` and every `done` run on the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        source: LogAllocator,
        index: Index,
        publish: Publish,
        budget: Budget | None = None,
    ) -> None:
        self._loop = loop
        self._budget = budget or Budget()
        self._source = source
        self._index = index
        self._publish = publish
        self._writer: LogWriter | None = None
        self._broken: LogWriter | None = None
        self._waiting: deque[Append] = deque()
        self._busy = False
        self._scheduled = False
        self._gathering = 0  # number of the group that waits for more, 0: none does
        self._seconds = 0.0  # that a write and its sync take, on the average of the last ones
        self.expected = CommitDelay(time.monotonic)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._behind: list[Batch] = []
        # The index is behind, or the writer rests after failures: kept as a fact, because every
        # MAIL and RCPT asks.
        self.blocked = False
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()
        self._failed_in_a_row = 0
        self._resting = False
        self.groups = 0
        self.failures = 0

    @property
    def accepts(self) -> bool:
        """False while new mail must be refused: no space, or the index is behind."""
        return self._source.has_space and not self.blocked

    def is_behind(self, mailbox: int) -> bool:
        """True while the index lacks deletions of a mailbox that are durable in the log: it would
        show mail that its owner deleted.  (Mail that it lacks only comes later.)"""
        return any(
            deletion.mailbox == mailbox for batch in self._behind for deletion in batch.deletions
        )

    def open_first(self) -> LogWriter:
        """Take the first log, before any session is there.  Raises RefusedError."""
        self._writer = self._source.take()
        return self._writer

    @property
    def idle(self) -> bool:
        return not self._busy and not self._waiting

    @property
    def writer(self) -> LogWriter | None:
        return self._writer

    # -- on the loop

    def submit(self, item: Append) -> None:
        waiting = self._waiting
        waiting.append(item)
        expected = self.expected.came() if item.deletion is None else self.expected.count()
        if self._busy:
            return
        if not self._scheduled:
            self._schedule()
        elif self._gathering and (not expected or len(waiting) >= ENOUGH):
            self._gathering = 0
            self._loop.call_soon(self._start)

    def _schedule(self) -> None:
        """Begin at the end of this turn of the loop, or when those who are expected have come."""
        self._scheduled = True
        if len(self._waiting) < ENOUGH and self.expected.count():
            self._gathering = number = self.groups + 1
            self._loop.call_later(GATHER_SECONDS, lambda: self._waited(number))
        else:
            self._loop.call_soon(self._start)

    def _waited(self, number: int) -> None:
        """Long enough, for whoever has not come; unless the group has begun."""
        if self._gathering == number:
            self._start()

    def _start(self) -> None:
        """Begin with what waits."""
        self._scheduled = False
        self._gathering = 0
        if self._busy or not self._waiting:
            return
        group = self._take()
        if self._resting:
            self._answer(group, NoSpaceError("resting after failed writes"))
            return
        self._busy = True
        writer = self._writer
        nobody_else = self._seconds < QUICK_SECONDS and not self.expected.count()
        if writer is None or not _in_memory(group) or not _fits(writer, group):
            self._jobs.put(lambda: self._switch_and_append(group))
            return
        encoded = encode(writer, group)
        if nobody_else:
            self._appended(group, self._append(writer, group, encoded))
        else:
            self._jobs.put(lambda: self._append_in_thread(writer, group, encoded))

    def _take(self) -> list[Append]:
        waiting = self._waiting
        group: list[Append] = []
        octets = 0
        while waiting and len(group) < GROUP_RECORDS:
            octets += waiting[0].size
            spooled = waiting[0].parts is None
            if group and (octets > GROUP_OCTETS or spooled):
                break
            group.append(waiting.popleft())
            if spooled:
                break
        return group

    def _appended(self, group: list[Append], outcome: Batch | RefusedError) -> None:
        """The group is durable, or is not: make it visible, or say so."""
        if isinstance(outcome, SyncFailedError) and self._broken is not None:
            self._jobs.put(lambda: self._speak_and_finish(group, outcome))
        elif isinstance(outcome, RefusedError):
            self._finish(group, outcome)
        elif self._behind or not self._index.try_lock():
            self._jobs.put(lambda: self._enter_in_thread(group, outcome))
        else:
            self._enter_and_unlock(outcome)
            self._finish(group, None)

    def _finish(self, group: list[Append], error: RefusedError | None) -> None:
        self._busy = False
        self.groups += 1
        if isinstance(error, SyncFailedError) or (error is not None and self._broken is not None):
            self._rest()
        elif error is None:
            self._failed_in_a_row = 0
        if error is not None:
            self.failures += 1
        self.blocked = bool(self._behind) or self._resting
        self._answer(group, error)

    def _answer(self, group: list[Append], error: RefusedError | None) -> None:
        budget = self._budget
        for item in group:
            budget.used -= item.held
            item.done(error)
        if self._waiting and not self._scheduled:
            self._schedule()

    def _rest(self) -> None:
        """A write or sync failed.  Each failure costs a log: after the second in a row nothing is
        taken for a second, then two, then four …, so that a dead disk does not eat them all."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row > 1:
            self._resting = True
            seconds = min(2.0 ** (self._failed_in_a_row - 2), MOST_REST_SECONDS)
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.blocked = bool(self._behind)
        if self._waiting and not self._scheduled and not self._busy:
            self._schedule()

    def catch_up(self) -> None:
        """Try again to enter what the index does not have."""
        if self._behind and not self._busy:
            self._busy = True
            batch = self._behind.pop()
            self._jobs.put(lambda: self._enter_in_thread([], batch))

    def stop(self) -> LogWriter | None:
        """End the thread after what it is doing; the log in use, for the source to seal."""
        self._jobs.put(None)
        self._thread.join()
        return self._writer

    # -- in the thread; while a job is there, the loop leaves writer and index alone

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _append_in_thread(self, writer: LogWriter, group: list[Append], encoded: Encoded) -> None:
        outcome = self._append(writer, group, encoded)
        self._loop.call_soon_threadsafe(self._appended, group, outcome)

    def _switch_and_append(self, group: list[Append]) -> None:
        outcome: Batch | RefusedError
        try:
            writer = self._writer_for(group)
            outcome = self._append(writer, group, encode(writer, group))
        except RefusedError as error:
            outcome = error
        except OSError as error:
            outcome = SyncFailedError(str(error))
        except Exception as error:  # a bug costs this group, not the thread
            self._source.report(f"panic: a group could not be written: {error!r}")
            outcome = SyncFailedError(repr(error))
        self._loop.call_soon_threadsafe(self._appended, group, outcome)

    def _speak_and_finish(self, group: list[Append], error: SyncFailedError) -> None:
        """Have the next log say where the broken one ends; if it cannot, the next group tries."""
        try:
            self._next_writer()
        except Exception as second:
            self._source.report(f"warning: {error}; nothing says so yet: {second}")
        self._loop.call_soon_threadsafe(self._finish, group, error)

    def _enter_in_thread(self, group: list[Append], batch: Batch) -> None:
        self._index.lock()
        self._enter_and_unlock(batch)
        self._loop.call_soon_threadsafe(self._finish, group, None)

    # -- either

    def _append(
        self, writer: LogWriter, group: list[Append], encoded: Encoded
    ) -> Batch | RefusedError:
        """Make an encoded group durable."""
        began = time.monotonic()
        try:
            writer.append(_write_parts(encoded.buffers, group), encoded.size, encoded.entries)
        except OSError as error:
            self._broken, self._writer = writer, None
            return SyncFailedError(f"log {writer.number}: {error}")
        self._seconds += (time.monotonic() - began - self._seconds) / 8
        return Batch(writer.number, writer.life, writer.end, encoded.messages, encoded.deletions)

    def _writer_for(self, group: list[Append]) -> LogWriter:
        """The log in use, or the next one.  Raises NoSpaceError, TableBusyError."""
        writer = self._writer
        if writer is not None and _fits(writer, group):
            return writer
        if writer is not None:
            self._writer = None
            if writer.poisoned:  # by the sync of the zeros ahead
                self._broken = writer
            else:
                self._source.retire(writer)
        writer = self._next_writer()
        if not _fits(writer, group):
            raise NoSpaceError("a message larger than a log")
        return writer

    def _next_writer(self) -> LogWriter:
        """Another log, which speaks of the broken one.  Raises NoSpaceError, TableBusyError."""
        try:
            writer = self._source.take(self._broken)
        except OSError as error:
            raise NoSpaceError(f"no log to be had: {error}") from error
        self._writer = writer
        self._broken = None
        return writer

    def _enter_and_unlock(self, batch: Batch) -> None:
        """Enter a batch in the index, after those that could not be entered before.

        The mail is durable whatever happens here, so nothing may leave: what the index would not
        take waits, and no new mail is taken until it does.
        """
        batches = [*self._behind, batch]
        try:
            while batches:
                self._index.apply(batches[0], self._publish)
                del batches[0]
        except Exception as error:  # LMDB, a full disk, a row that cannot be: all the same
            self.failures += 1
            self._source.report(f"warning: the index lags behind the log: {error!r}")
        finally:
            self._behind = batches
            self._index.unlock()


def _in_memory(group: list[Append]) -> bool:
    return group[0].parts is not None


def _fits(writer: LogWriter, group: list[Append]) -> bool:
    if writer.poisoned:
        return False
    return writer.fits(
        sum([item.size for item in group]), sum([item.entries_size for item in group])
    )


def encode(writer: LogWriter, group: list[Append]) -> Encoded:
    """The octets of a group as they will lie at the writer's end, in its life."""
    buffers: list[Buffer] = []
    entries: list[bytes] = []
    messages: list[Message] = []
    deletions: list[record.Deletion] = []
    number, seed, life, sequence = writer.number, writer.seed, writer.life, writer.sequence
    make_header, pack_entry = record.make_header, footer.ENTRY.pack
    at = writer.end
    for item in group:
        envelope, parts, record_id, deletion = item.envelope, item.parts, item.id, item.deletion
        if parts is not None:
            data = b"".join((envelope, *parts))
            octets = len(envelope)
            digest = xxh3_128_digest(data, seed)
            payload = _new(record.Payload, (octets, len(data) - octets, digest, seed))
        else:
            data = envelope
            payload = record.digest_payload(envelope, item.spooled.chunks(), seed)
        size = item.size
        kind = record.MESSAGE if deletion is None else record.DELETION
        buffers.append(make_header(kind, life, sequence, record_id, payload) + data)
        sequence += 1
        if deletion is not None:
            packed = footer.deletion_entries(deletion, at, size)
            deletions.append(deletion)
        else:
            recipients = item.recipients
            if len(recipients) == 1:
                mailbox, _, octets = recipients[0]
                packed = pack_entry(mailbox, record_id, at, size, octets, kind)
            else:
                packed = footer.message_entries(record_id, at, size, recipients)
            place = _new(Place, (number, at, size))
            messages.append(_new(Message, (record_id, place, packed, item.uid)))
        entries.append(packed)
        at += size
    writer.sequence = sequence
    return Encoded(buffers, at - writer.end, b"".join(entries), messages, deletions)


def _write_parts(buffers: list[Buffer], group: list[Append]) -> Iterator[Sequence[Buffer]]:
    """What is written at once: a group in memory whole, a spooled message piece by piece."""
    yield buffers
    last = group[-1]
    if last.parts is None:
        for chunk in last.spooled.chunks():
            yield [chunk]
