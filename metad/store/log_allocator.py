"""Gives a writer its logs: prepares the next one in advance, and seals the full one afterwards.

One background thread per writing process does everything that may block (semaphore, allocation,
zeros, seals), so that a full log costs the commit path one assignment.

Rules of this file:

* A log is entered in the table as active only after its header is durable.
* What this process gives up does not stay its own because the table's semaphore was busy
  (`LogTable.give_up`): no other process takes the log while this one lives.
* A poisoned log is never sealed and never written to again.  What must be recorded about it is
  decided in `store/log_chain.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from metad.errors import MetadError, NoSpaceError
from metad.store.background import Background, Job, JobThread, StartThread
from metad.store.identity import Store
from metad.store.ids import HubClock
from metad.store.log import files as log_files
from metad.store.log.alignment import DEFAULT_ALIGN
from metad.store.log.header import ACTIVE, LogHeader
from metad.store.log.successor import Ended, write_successor
from metad.store.log.writer import LogWriter
from metad.store.log_space import LogSpace, is_sparse
from metad.store.log_table import ROOM, Allocation, LogState, LogTable, Room, TableBusyError
from metad.system.osio import Osio

# Blocks that a new log begins with.
FIRST = 256 << 10
REPORT_SECONDS = 60.0
SPACE_EVERY_SECONDS = 1.0
RETRY_LOGS = 16


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How logs are made."""

    size: int
    align: int = DEFAULT_ALIGN
    sync: bool = True
    generation: int = 0
    room: Room = ROOM


class LogAllocator:
    """Allocates one log after another.  `report(text)` gets messages for the operator."""

    def __init__(
        self,
        osio: Osio,
        store: Store,
        table: LogTable,
        settings: LogSettings,
        clock: HubClock,
        report: Callable[[str], None],
    ) -> None:
        self._osio = osio
        self._store = store
        self._table = table
        self._settings = settings
        self._clock = clock
        self.report = report
        self._ready: LogWriter | None = None
        self._active: LogWriter | None = None
        self._lock = osio.make_lock()
        self._background: Background | None = None
        self._failing = False
        # Called in each round of the background.
        self.on_round: Callable[[], None] = lambda: None
        self.has_space = True
        self.shortage = ""  # why there is no space, in numbers
        self._reported = -REPORT_SECONDS  # when it was reported last
        self._space = LogSpace(osio, store, table, settings.size, settings.room)

    def start(
        self, background: Background | None = None, start_thread: StartThread = JobThread
    ) -> None:
        """Check the disk, make the first log, start the background thread.  Raises OSError.

        The first log is allocated even at the limit: without it, nothing could be deleted.  If the
        disk is full, the process starts without a log, and serves existing mail.
        """
        self._check_space()
        try:
            self._ready = self._make()
        except NoSpaceError as error:
            self._no_first_log(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._no_first_log(error)
        self._background = background or start_thread("logs", self._tend, SPACE_EVERY_SECONDS)

    def report_figures(self) -> None:
        """Report the space on the disk and the number of logs, once at a start."""
        self.report(f"space: {self._space.figures()}")

    def _no_first_log(self, error: Exception) -> None:
        self.has_space = False
        self.report(f"warning: there is no log to write to: {error} ({self._space.figures()})")

    def next_life(self) -> int:
        """A life without a log, for the ids of a process without a log."""
        return self._table.next_life(self._clock.now_us() // 1_000_000)

    @property
    def has_free_log(self) -> bool:
        """Whether `take` would find a free log this moment."""
        return self._table.count(LogState.FREE) > self._settings.room.spare

    # -- the committer's side

    def take(self, *, after_failure: bool = False) -> LogWriter:
        """The next log, active.  One that replaces a failed log is allocated even at the limit,
        like the first one.  Raises NoSpaceError if there is none.
        """
        with self._lock:
            writer, self._ready = self._ready, None
            if writer is not None and writer.poisoned:
                writer.close()
                writer = None
            if writer is None:
                writer = self._make_now(ROOM if after_failure else self._settings.room)
            self._active = writer
        self._put(self._tend)
        return writer

    @property
    def seals_later(self) -> bool:
        """Whether the background seals a retired log, when the next one is in use already."""
        return self._background is not None

    def retire(self, writer: LogWriter) -> None:
        """Seal a full log: soon, or at once if there is no background."""
        if self._background is None:
            self._seal(writer)
        else:
            self._background.put(lambda: self._seal_and_tend(writer))

    def _make_now(self, room: Room) -> LogWriter:
        try:
            return self._make(room)
        except (OSError, MetadError) as error:
            raise NoSpaceError(f"no log is available: {error}") from error

    def record_end(self, failed: LogWriter) -> None:
        """Record in a log of a few blocks where a failed one ends.  Raises OSError, MetadError."""
        now = self._clock.now_us() // 1_000_000
        given = self._table.allocate(self._settings.generation, now)
        try:
            write_successor(self._osio, self._store, Ended(failed.log, failed.end), given)
        except (OSError, MetadError):
            self._put_back(given)
            raise
        failed.predecessor_recorded = True
        self._table.give_up(given.number, LogState.SEALED)

    def stop(self, last: LogWriter | None) -> None:
        """Seal the open logs and end the thread."""
        background, self._background = self._background, None
        if background is not None:
            background.stop()
        for writer in (last, self._ready):
            if writer is not None:
                self._seal(writer)
        self._ready = None

    # -- the background

    def _put(self, job: Job) -> None:
        """The collector's logs have no background: nothing is prepared in advance."""
        if self._background is not None:
            self._background.put(job)

    def _seal_and_tend(self, writer: LogWriter) -> None:
        self._seal(writer)
        self._tend()

    def _tend(self) -> None:
        """One round: space, the next log, zeros ahead of both tails."""
        try:
            self.on_round()
            self._table.catch_up()
            may_make = self._check_space()
            with self._lock:
                if self._ready is None and may_make:
                    self._ready = self._make(self._settings.room)
                writers = [w for w in (self._active, self._ready) if w is not None]
            for writer in writers:
                self._prepare(writer)
            self._failing = False
        except (OSError, MetadError) as error:
            if not self._failing:
                self.report(f"warning: cannot prepare the next log: {error}")
            self._failing = True

    def _prepare(self, writer: LogWriter) -> None:
        """Allocate blocks and write zeros ahead of a log's end, if the disk has any to spare."""
        if self.has_space and not writer.poisoned:
            writer.reserve(0, 0, self._space.ahead)
        if writer.zero_step(self._space.ahead):
            self._put(self._tend)

    def _check_space(self) -> bool:
        """Whether another log may be made, and thus whether new mail is accepted.

        New mail needs space for its index entries besides the space in its log.  At the limit of
        the logs it is deferred as soon as no log is ready: the rest of the log in use is reserved
        for deletions, which make room.
        """
        disk = self._space.look()
        may_make = disk and self._table.has_room(self._settings.room)
        has_space = disk and (may_make or self._ready is not None)
        if has_space != self.has_space or not has_space:
            self._report_space(has_space)
        self.has_space = has_space
        return may_make

    def _report_space(self, has_space: bool) -> None:
        """Report a change, and repeat the report now and then while there is no space."""
        if has_space:
            self._reported = -REPORT_SECONDS
            self.report(f"there is space for new mail again: {self._space.figures()}")
            return
        self.shortage = str(self._space.figures())
        now = self._osio.monotonic_ns() / 1e9
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.report(f"warning: no space, new mail is deferred (452): {self.shortage}")

    def _make(self, room: Room = ROOM) -> LogWriter:
        """Allocate a log, write its header durably, and enter it as active."""
        for _ in range(RETRY_LOGS):
            now = self._clock.now_us() // 1_000_000
            given = self._table.allocate(self._settings.generation, now, room)
            new = self._header(given.number, given.life)
            try:
                if given.fresh:
                    fd = log_files.create(self._osio, self._store.logs, new, first=FIRST)
                else:
                    fd = log_files.reuse(self._osio, self._store.logs, new, given.old_life, FIRST)
            except (log_files.LogBusyError, FileExistsError) as error:
                self.report(f"warning: log {given.number} is left alone: {error}")
                self._table.give_up(given.number, LogState.COLLECTING)
                continue
            except OSError:
                self._put_back(given)
                raise
            return self._enter(fd, new, given.fresh)
        raise NoSpaceError("no free log can be used")

    def _enter(self, fd: int, new: LogHeader, fresh: bool) -> LogWriter:
        """A log that was made becomes active.

        Raises TableBusyError: then it is free, on disk and soon in the table."""
        try:
            self._table.set_tail(new.number, new.align)
            self._table.change(new.number, LogState.ACTIVE)
            return self._writer(fd, new, fresh)
        except TableBusyError:
            self._free_unentered(fd, new)
            raise
        except BaseException:
            self._osio.close(fd)
            raise

    def _free_unentered(self, fd: int, new: LogHeader) -> None:
        try:
            log_files.mark_free(self._osio, fd, new)
        except OSError as error:
            # It stays ours, without mail, and the recovery after this process ends it.
            self.report(f"warning: log {new.number} could not be freed: {error}")
            return
        finally:
            self._osio.close(fd)
        self._table.owe(new.number, LogState.FREE)

    def _put_back(self, given: Allocation) -> None:
        """The log was not made.  A free log of another size was unlinked to be replaced."""
        there = log_files.is_there(self._osio, self._store.logs, given.number)
        if there:
            self._table.give_up(given.number, LogState.FREE, given.old_life)
        else:
            self._table.give_up(given.number, LogState.NONE)

    def _writer(self, fd: int, new: LogHeader, fresh: bool) -> LogWriter:
        writer = LogWriter(self._osio, fd, new, sync=self._settings.sync)
        if is_sparse(self._osio, fd):
            # The position of the first hole is unknown; requesting blocks that exist already is
            # cheap.
            writer.begin_sparse(FIRST if fresh else new.align)
        elif fresh:
            writer.zero_from_here()
        return writer

    def _header(self, number: int, life: int) -> LogHeader:
        store, settings = self._store, self._settings
        return LogHeader(
            state=ACTIVE,
            generation=settings.generation,
            number=number,
            life=life,
            size=settings.size,
            align=settings.align,
            node=store.node,
            store_id=store.store_id,
            secret=store.secret,
        )

    def _seal(self, writer: LogWriter) -> None:
        """Seal a log that is full or no longer needed; mark an empty one free.

        An empty log that records where a poisoned one ends is sealed: its record must outlive it.
        """
        try:
            if not writer.poisoned and not writer.sequence and not writer.log.predecessor_life:
                log_files.mark_free(self._osio, writer.fd, writer.log)
                self._table.give_up(writer.number, LogState.FREE)
            elif not writer.poisoned:
                writer.seal()
                self._table.give_up(writer.number, LogState.SEALED)
        except (OSError, MetadError) as error:
            # The next recovery will find it unsealed and seal it.
            self.report(f"warning: log {writer.number} could not be sealed: {error}")
        finally:
            writer.close()
