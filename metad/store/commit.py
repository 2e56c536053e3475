"""Group commit: everything that waits becomes durable by one write and one sync, then visible.

    submit ... submit -> group -> append (pwritev, fdatasync) -> index (one transaction)
                                 -> shared memory -> done(None) for each

Rules of this file:

* `done(None)` is called only after the sync.  After a successful sync it is always None,
  whatever the index says: the logs are the truth.  If the index fails, nothing more is taken.
* A failed write or sync is never retried on that log; the group gets SyncFailedError.
* One message that waits alone is committed at once, on the loop: a thread would only add its
  wake-up.  Under load a group runs in the commit thread, index transaction and all.
* Group bounds: 1,000 buffers (IOV_MAX is 1,024) and 1 MiB; a larger message is its own group.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import lmdb

from metad.errors import MetadError, NoSpaceError, RefusedError, SyncFailedError
from metad.osio import Buffer
from metad.store import footer, record
from metad.store.ids import NO_ID
from metad.store.index import Batch, Index, Message, Place, Publish
from metad.store.log import LogWriter
from metad.store.source import LogSource

GROUP_OCTETS = 1 << 20
GROUP_BUFFERS = 900

Done = Callable[[RefusedError | None], None]


class Body(Protocol):
    """A body as the commit sees it: its size, and its octets in chunks as often as asked."""

    size: int

    def chunks(self) -> Iterator[Buffer]: ...


class MemoryBody:
    """A body that lies in memory."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts = parts
        self.size = sum(map(len, parts))

    def chunks(self) -> Iterator[Buffer]:
        return iter(self.parts)


class Append:
    """One record to be appended: a message, or a deletion."""

    __slots__ = ("body", "deletion", "done", "envelope", "id", "recipients")

    def __init__(self, record_id: bytes, envelope: bytes, body: Body, done: Done) -> None:
        self.id = record_id
        self.envelope = envelope
        self.body = body
        self.done = done
        self.recipients: tuple[record.Recipient, ...] = ()
        self.deletion: record.Deletion | None = None

    @property
    def size(self) -> int:
        return record.HEADER_SIZE + len(self.envelope) + self.body.size

    @property
    def entries_size(self) -> int:
        count = len(self.recipients)
        if self.deletion is not None:
            count = len(self.deletion.ids) // len(NO_ID)
        return count * footer.ENTRY_SIZE


class Loop(Protocol):
    """What the committer needs of an event loop."""

    def call_soon(self, callback: Callable[[], object]) -> object: ...
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> object: ...


class Committer:
    """Commits for one process; `submit` and every `done` run on the loop's thread."""

    def __init__(self, loop: Loop, source: LogSource, index: Index, publish: Publish) -> None:
        self._loop = loop
        self._source = source
        self._index = index
        self._publish = publish
        self._writer: LogWriter | None = None
        self._broken: LogWriter | None = None
        self._waiting: deque[Append] = deque()
        self._busy = False
        self._scheduled = False
        self._loaded = False
        self._jobs: queue.SimpleQueue[list[Append] | None] = queue.SimpleQueue()
        self._behind: list[Batch] = []
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()
        self.groups = 0
        self.failures = 0

    @property
    def accepts(self) -> bool:
        """False while new mail must be refused: no space, or the index is behind."""
        return self._source.has_space and not self._behind

    @property
    def behind(self) -> bool:
        """True while the index lacks what is durable in the log."""
        return bool(self._behind)

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
        self._waiting.append(item)
        if not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._busy or not self._waiting:
            return
        group = self._take()
        writer = self._writer
        if len(group) == 1 and not self._loaded and writer is not None and _fits(writer, group):
            self._finish(group, self._commit(group))
            return
        self._loaded = len(group) > 1
        self._busy = True
        self._jobs.put(group)

    def _take(self) -> list[Append]:
        waiting = self._waiting
        group: list[Append] = []
        octets = buffers = 0
        while waiting:
            octets += waiting[0].size
            buffers += _buffers(waiting[0])
            if group and (octets > GROUP_OCTETS or buffers > GROUP_BUFFERS):
                break
            group.append(waiting.popleft())
        return group

    def _finish(self, group: list[Append], error: RefusedError | None) -> None:
        self._busy = False
        self.groups += 1
        if error is not None:
            self.failures += 1
        for item in group:
            item.done(error)
        if self._waiting and not self._scheduled:
            self._start()

    def stop(self) -> LogWriter | None:
        """End the thread after what it is doing; the log in use, for the source to seal."""
        self._jobs.put(None)
        self._thread.join()
        return self._writer

    # -- in the commit thread, or inline on the loop

    def _run(self) -> None:
        while (group := self._jobs.get()) is not None:
            error = self._commit(group)
            self._loop.call_soon_threadsafe(self._finish, group, error)

    def _commit(self, group: list[Append]) -> RefusedError | None:
        """Make a group durable, then visible.  The error that all of it gets, or None."""
        try:
            writer = self._writer_for(group)
        except RefusedError as error:
            return error
        try:
            batch = append_group(writer, group)
        except OSError as error:
            self._broken, self._writer = writer, None
            return SyncFailedError(f"log {writer.number}: {error}")
        self._enter(batch)
        return None

    def _writer_for(self, group: list[Append]) -> LogWriter:
        writer = self._writer
        if writer is not None and _fits(writer, group):
            return writer
        if writer is not None:
            self._writer = None
            self._source.retire(writer)
        try:
            writer = self._source.take(self._broken)
        except OSError as error:
            raise NoSpaceError(f"no log to be had: {error}") from error
        self._writer = writer
        self._broken = None
        if not _fits(writer, group):
            raise NoSpaceError("a message larger than a log")
        return writer

    def _enter(self, batch: Batch) -> None:
        """Enter a batch in the index, after those that could not be entered before."""
        self._behind.append(batch)
        try:
            while self._behind:
                self._index.apply(self._behind[0], self._publish)
                del self._behind[0]
        except (lmdb.Error, struct.error, MetadError):
            self.failures += 1

    def catch_up(self) -> bool:
        """Try again to enter what the index does not have.  True if nothing is left."""
        if self._behind and not self._busy:
            last = self._behind.pop()
            self._enter(last)
        return not self._behind


def _buffers(item: Append) -> int:
    """Buffers that a record is written from; a spooled message fills a group by itself."""
    return 1 + len(item.body.parts) if isinstance(item.body, MemoryBody) else GROUP_BUFFERS


def _fits(writer: LogWriter, group: list[Append]) -> bool:
    if writer.poisoned:
        return False
    return writer.fits(sum(i.size for i in group), sum(i.entries_size for i in group))


def append_group(writer: LogWriter, group: list[Append]) -> Batch:
    """Write and sync a group; what the index has to enter.  Raises OSError: then poisoned."""
    messages: list[Message] = []
    deletions: list[record.Deletion] = []
    buffers: list[Buffer] = []
    entries: list[bytes] = []
    number = writer.number
    at = start = writer.end
    for item in group:
        body = item.body
        payload = record.digest_payload(item.envelope, body.chunks(), writer.seed)
        kind = record.MESSAGE if item.deletion is None else record.DELETION
        buffers.append(writer.make_header(kind, item.id, payload) + item.envelope)
        size = record.HEADER_SIZE + payload.envelope_size + payload.body_size
        if isinstance(body, MemoryBody):
            buffers.extend(body.parts)
        if item.deletion is None:
            packed = footer.message_entries(item.id, at, size, item.recipients)
            messages.append(Message(item.id, Place(number, at, size), packed))
        else:
            packed = footer.deletion_entries(item.deletion, at, size)
            deletions.append(item.deletion)
        entries.append(packed)
        at += size
    writer.append(_write_parts(buffers, group), at - start, b"".join(entries))
    return Batch(number, writer.life, writer.end, messages, deletions)


def _write_parts(buffers: list[Buffer], group: list[Append]) -> Iterator[Sequence[Buffer]]:
    """What is written at once: a group in memory whole, a spooled message piece by piece."""
    yield buffers
    last = group[-1].body
    if not isinstance(last, MemoryBody):
        for chunk in last.chunks():
            yield [chunk]
