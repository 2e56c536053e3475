"""The log layer: the store of fixed-size logs, as one worker uses it.

Here the store meets the protocol.  RETR sends Return-Path and Delivered-To, made from the envelope,
before the stored octets; LIST shows the resulting exact size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial

import lmdb

from metad.config.model import StoreConfig
from metad.errors import MailboxInUseError, NoSpaceError, RefusedError
from metad.layers.base import (
    Done,
    Envelope,
    Incoming,
    Layer,
    LayerContext,
    Maildrop,
    Usage,
)
from metad.layers.imported_ids import REMEMBERED, ImportedIds
from metad.layers.listing import Listing
from metad.layers.message_record import append_message
from metad.layers.spool import SpooledBody, SpooledIncoming
from metad.limits import CHUNK_MEMORY, COLLECTOR_LOGS
from metad.protocol.trace import in_front
from metad.store.ballast import Ballast
from metad.store.commit.committer import Committer
from metad.store.commit.figures import CommitFigures
from metad.store.commit.index_feed import IndexFeed
from metad.store.identity import open_store
from metad.store.ids import HubClock, IdMaker, is_imported
from metad.store.index.index import LISTING_ENTRY
from metad.store.index.rows import LogCounts
from metad.store.log import record
from metad.store.log.alignment import alignment
from metad.store.log.encode import append_deletion
from metad.store.log.place import Place
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_chain import FOR_DELETIONS, LogChain
from metad.store.log_table import LogTable, Room
from metad.store.mailbox_locks import MailboxLocks
from metad.store.pending_deletions import PendingDeletions
from metad.store.reader import BUFFER, Reader
from metad.store.unentered_mail import UnenteredMail
from metad.system.osio import Buffer
from metad.system.shared_memory import Cell

_ENTRY = LISTING_ENTRY.size
_new = tuple.__new__
_OCTETS = struct.Struct(">I")
DELETIONS_PER_RECORD = 250
# Places looked up in one transaction for a client that fetches messages in order.
LOOK_AHEAD = 32
READER_CHECK_TICKS = 60
# Free logs reserved for survivors: without one, the collector cannot free any log.
SPARE_LOGS = 1
# The worker that reports what concerns all workers.
FIRST_SLOT = 0


class LogLayer(Layer):
    """The store of one worker: its log, its view of the index, its mailbox locks."""

    name = "log"

    def start(self, context: LayerContext) -> None:
        settings, runtime = context.settings, context.runtime
        self.osio = runtime.osio
        self.row = context.row
        self.loop = context.loop
        self.store = open_store(self.osio, context.data)
        self.clock = HubClock(self.osio, context.area.clock_cell)
        self.table = LogTable(context.area, context.semaphore, context.row)
        self.index = runtime.open_index(self.store.index)
        self.index.reader_check()
        self.index.on_lock = partial(context.row.__setitem__, Cell.INDEX_LOCK)
        self.reader = Reader(self.osio, self.store, self.index)
        self.locks = MailboxLocks(self.osio, self.store.locks)
        self.ids = IdMaker(self.clock, self.store.node)
        self.next_id = self.ids.next  # type: ignore[method-assign]
        self.budget = context.budget
        align = alignment(self.osio, self.store.logs, settings.align)
        self.source = LogAllocator(
            self.osio,
            self.store,
            self.table,
            LogSettings(settings.log_size, align, settings.sync, room=log_room(settings)),
            self.clock,
            context.report,
        )
        self.source.on_round = Ballast(self.osio, self.store, settings.log_size).look
        self.source.start(start_thread=runtime.start_thread)
        if context.row[Cell.SLOT] == FIRST_SLOT:
            self.source.report_figures()
        self._start_committer(context)
        self._ticks = 0
        # Mailboxes for which the index has the unique ids of all imported messages.
        self.complete_mailboxes: set[int] = set()

    def _start_committer(self, context: LayerContext) -> None:
        area, row, runtime = context.area, context.row, context.runtime
        self.pending = PendingDeletions(area, row.index)
        self.unentered = UnenteredMail(area, row.index, self.osio.monotonic_ns)
        self.feed = IndexFeed(
            self.index, self._publish, context.report, self.pending.publish, self.unentered
        )
        self.feed.lists_all = self.store.clustered
        chain, thread = LogChain(self.source, FOR_DELETIONS), runtime.start_thread("commit")
        self.committer = Committer(
            context.loop, chain, self.feed, context.budget, thread, runtime.now
        )
        self.committer.figures = CommitFigures(row)
        self.ids.start_life(self.committer.open_first())

    def remember_complete(self, mailbox: int) -> None:
        complete = self.complete_mailboxes
        if len(complete) >= REMEMBERED:
            complete.clear()
        complete.add(mailbox)

    def stop(self) -> None:
        self.source.stop(self.committer.stop())
        self.reader.close()
        self.locks.close()
        self.index.close()

    def tick(self) -> None:
        self._ticks += 1
        self.row[Cell.GROUPS] = self.committer.groups
        self.row[Cell.COMMIT_FAILURES] = self.committer.failures
        self._note_conditions()
        self.committer.catch_up()
        self.reader.close_unlinked()
        if self._ticks % READER_CHECK_TICKS == 0:
            self.index.reader_check()

    def _note_conditions(self) -> None:
        """Publish what keeps this worker from accepting mail, and since when."""
        committer = self.committer
        conditions = (
            (Cell.INDEX_BEHIND, committer.index_lags),
            (Cell.WRITES_FAIL, committer.rests),
            (Cell.NO_SPACE, not self.source.has_space),
            (Cell.LOG_FAILED, committer.failed_writes > 0),
        )
        for cell, holds in conditions:
            if holds is not bool(self.row[cell]):
                self.row[cell] = self.osio.time_ns() // 1_000_000_000 if holds else 0

    def _publish(self, rows: dict[int, LogCounts]) -> None:
        """Publish the counts that a transaction changed; the index's write lock is held."""
        for number, counts in rows.items():
            self.table.set_live(number, counts.live_messages, counts.live_octets)
        writer = self.committer.writer
        if writer is not None:
            self.table.set_tail(writer.number, writer.end)

    # -- mail in

    def next_id(self) -> bytes:
        return self.ids.next()

    def next_import_id(self) -> bytes:
        return self.ids.next_imported()

    def usage(self, mailbox: int) -> Usage:
        """Mail that other workers acknowledged in the last milliseconds is not counted."""
        octets, messages = self.index.usage(mailbox)
        more_octets, more_messages = self.feed.usage(mailbox)
        return Usage(octets + more_octets, messages + more_messages)

    def check_space(self) -> None:
        if self.committer.blocked or not self.source.has_space:
            raise self._no_space()

    def check_mailbox(self, mailbox: int) -> None:
        if self.committer.blocked or not self.source.has_space:
            raise self._no_space()

    def _no_space(self) -> NoSpaceError:
        blocked = "the index lags behind the log, or writes failed"
        return NoSpaceError(blocked if self.committer.blocked else self.source.shortage)

    def transaction_started(self) -> None:
        self.committer.expected.begun()

    def begin(self) -> Incoming:
        if not self.committer.accepts:
            raise self._no_space()
        return LogIncoming(self)

    def deliver(self, envelope: Envelope, body: bytes, done: Done) -> None:
        if self.committer.blocked or not self.source.has_space:
            raise self._no_space()
        budget = self.budget
        held = len(body) + CHUNK_MEMORY
        if budget.used + held > budget.half:  # it may have to be spilled to a file
            super().deliver(envelope, body, done)
            return

        item = append_message(
            envelope, (envelope.trace, body), len(body), done, self.osio.time_ns()
        )
        item.held = held
        self.committer.submit(item)

    # -- mail out

    def delete(self, deletion: record.Deletion, done: Done) -> None:
        """One deletion record per 250 ids; `done` after the last, with the first error."""
        groups = list(deletion.groups(DELETIONS_PER_RECORD))
        waiting = len(groups)
        failed: RefusedError | None = None

        def one_done(error: RefusedError | None) -> None:
            nonlocal waiting, failed
            waiting -= 1
            failed = failed or error
            if not waiting:
                done(failed)

        for group in groups:
            self.committer.submit(append_deletion(self.next_id(), group, one_done))

    def is_behind(self, mailbox: int, asked_ns: int) -> bool:
        if self.unentered.is_mine(mailbox):
            self.committer.enter_now()
        is_behind = self.unentered.may_have(mailbox, asked_ns)
        if is_behind:
            self.unentered.ask()
        return is_behind

    def open_mailbox(self, mailbox: int) -> Maildrop:
        if not self.locks.acquire(mailbox):
            raise MailboxInUseError
        try:
            if self.pending.may_have(mailbox):  # with the lock: no other session deletes now
                raise RefusedError("the index lacks deletions of this mailbox")
            return LogMaildrop(self, mailbox, Listing(self.index, mailbox))
        except lmdb.Error as error:
            self.locks.release(mailbox)
            raise RefusedError(f"index: {error}") from error
        except BaseException:
            self.locks.release(mailbox)
            raise


def log_room(settings: StoreConfig) -> Room:
    """How many logs workers may use: the collector's own must fit below the limit too."""
    if settings.size_limit is None:
        return Room(spare=SPARE_LOGS)
    most = settings.size_limit // settings.log_size - COLLECTOR_LOGS
    return Room(most, SPARE_LOGS, COLLECTOR_LOGS)


class LogIncoming(SpooledIncoming):
    """One message to be appended to the log."""

    __slots__ = ("_layer",)

    def __init__(self, layer: LogLayer) -> None:
        super().__init__(layer.osio, layer.store.spool, layer.budget)
        self._layer = layer

    def commit(self, envelope: Envelope, done: Done) -> None:
        trace = envelope.trace
        parts = (trace, *self.parts) if self.in_memory else None
        now_ns = self._layer.osio.time_ns()
        item = append_message(envelope, parts, self.size, self.finished(done), now_ns)
        if parts is None:
            item.spooled = SpooledBody(trace, self)
        self._layer.committer.submit(item)


class LogMaildrop(Maildrop):
    """A mailbox of the log store: its listing as of the login, and the lock."""

    __slots__ = ("_ahead", "_closed", "_imported", "_layer", "_listing", "_mailbox", "_next")
    _layer: LogLayer

    def __init__(self, layer: LogLayer, mailbox: int, listing: Listing) -> None:
        self._layer = layer
        self._mailbox = mailbox
        self._listing = listing
        self._closed = False
        self._next = 0  # follows the message fetched last
        self._ahead: dict[int, Place | None] = {}  # places of the next messages, by number
        complete = mailbox in layer.complete_mailboxes
        self._imported = ImportedIds(layer, listing, is_complete=complete)

    @property
    def octets(self) -> int:
        return self._listing.octets

    def __len__(self) -> int:
        return self._listing.messages

    @property
    def is_listed(self) -> bool:
        return self._listing.is_complete

    def list_messages(self) -> Iterator[None]:
        try:
            yield from self._listing.steps()
            yield from self._imported.complete_index()
            if self._imported.is_complete:
                self._layer.remember_complete(self._mailbox)
        except lmdb.Error as error:
            raise RefusedError(f"index: {error}") from error

    def size(self, number: int, /) -> int:
        return self._listing.size(number)

    def uid(self, number: int, /) -> str:
        message_id = self._id(number)
        imported = self._imported.get(number, message_id) if is_imported(message_id) else ""
        return imported or message_id.hex()

    def _id(self, number: int) -> bytes:
        return self._listing.id(number)

    def fetch(self, number: int, most: int, /) -> Sequence[Buffer] | Iterator[Buffer]:
        message_id = self._id(number)
        if self.size(number) > min(most, BUFFER):
            return self._stream(message_id)
        hint = self._hint(number)
        stored = self._layer.reader.read_now(message_id, hint)
        if stored is None:
            return self._wait_for(message_id)
        try:
            return [self._prefix(stored.envelope), stored.body]
        except RefusedError:  # a copy for others: there may be one for this mailbox
            return self._wait_for(message_id)

    def _hint(self, number: int) -> Place | None:
        """Where a message lay a moment ago; looked up in advance for a client that fetches all."""
        is_next, self._next = number == self._next, number + 1
        if not is_next:
            self._ahead.clear()
            return None
        if number not in self._ahead:
            numbers = range(number, min(number + LOOK_AHEAD, len(self) + 1))
            places = self._layer.reader.look_ahead(map(self._id, numbers))
            self._ahead = dict(zip(numbers, places, strict=True))
        return self._ahead.pop(number)

    def _wait_for(self, message_id: bytes) -> Iterator[Buffer]:
        """A message that is not in the page cache."""
        stored = self._layer.reader.read(message_id, self._mailbox)
        yield self._prefix(stored.envelope)
        yield stored.body

    def _stream(self, message_id: bytes) -> Iterator[Buffer]:
        for piece in self._layer.reader.stream(message_id, self._mailbox):
            yield piece if isinstance(piece, bytes) else self._prefix(piece.envelope)

    def _prefix(self, envelope: record.Envelope) -> bytes:
        """The lines Return-Path and Delivered-To for this mailbox."""
        mailbox = self._mailbox
        for its, address, _ in envelope.recipients:
            if its == mailbox:
                return in_front(envelope.sender, address)
        raise RefusedError("the message is not for this mailbox")

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        if not numbers:
            self._layer.loop.call_soon(lambda: done(None))
            return
        ids = b"".join([self._id(number) for number in numbers])
        self._layer.delete(record.Deletion(self._mailbox, ids), done)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._layer.locks.release(self._mailbox)
