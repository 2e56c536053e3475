"""Group commit: one write and one sync make all waiting records durable; then they become visible.

    submit ... submit -> group -> encode -> append (pwritev, fdatasync) -> done(None) for each
                    -> index (one transaction for several groups) -> shared memory

Rules of this file:

* `done(None)` is called only after the sync.  After a successful sync it is always None, whatever
  the index does: the logs are the truth.  If the index fails, new mail is deferred.
* Mail is entered in the index some milliseconds after it is acknowledged (`entry_timer.py`);
  `store/unentered_mail.py` makes sessions wait for it.  A group with deletions is entered before it
  is acknowledged.  Before a log is changed or closed, all its acknowledged records are entered.
* A failed write or sync is never retried on that log; the group gets SyncFailedError after the next
  log has recorded where the failed log ends (`store/log_chain.py`), so that recovery cannot
  resurrect mail that a client was refused.
* A thread beside the loop does whatever may block: write and sync, a new log, an index whose write
  lock another process holds.  Pure computation stays on the loop.  So does the index transaction
  when its lock is free: each LMDB put releases the interpreter lock, and taking it back from a busy
  loop costs more than the put (docs/performance.md).
* A group waits, for two milliseconds at most, for clients that are about to send
  (`store/commit_delay.py`).
* When all active clients wait in the group, it is written and synced on the loop, if the disk has
  been quick lately: a thread would only add its wake-up.
* The thread, the loop and the clock are passed in; `done` always runs on the loop, never within
  `submit`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from metad.budget import Budget
from metad.errors import NoSpaceError, RefusedError, SyncFailedError
from metad.store.background import Background, Job, JobThread
from metad.store.commit.entry_timer import EntryTimer
from metad.store.commit.figures import CommitFigures
from metad.store.commit.group import Loop, take_group
from metad.store.commit.index_feed import IndexFeed
from metad.store.commit_delay import CommitDelay
from metad.store.index.rows import Batch
from metad.store.log.encode import Append, Encoded, encode
from metad.store.log.writer import LogWriter
from metad.store.log_chain import LogChain

# A group of this size does not wait: compared with its records, a sync costs little.
ENOUGH = 100
GATHER_SECONDS = 0.002
# If a write and its sync take longer than this on average, they do not run on the loop.
QUICK_SECONDS = 0.001
MOST_REST_SECONDS = 60.0


class Committer:
    """Commits for one process; `submit` and every `done` run on the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        chain: LogChain,
        feed: IndexFeed,
        budget: Budget | None = None,
        background: Background | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`background` runs what may block; `now` returns seconds of a monotonic clock."""
        self._loop = loop
        self._chain = chain
        self._feed = feed
        self._budget = budget or Budget()
        self._background = background or JobThread("commit")
        self._now = now
        self._waiting: deque[Append] = deque()
        self._busy = False
        self._scheduled = False
        self._gathering = 0  # number of the group that waits for more records, 0: none
        self._timer = EntryTimer(loop, feed, self.enter_now, self._try_wait_and_enter)
        self._thread_enters = False  # a background job may use the index: the loop must not
        self._seconds = 0.0  # recent average for a write and its sync
        self.expected = CommitDelay(now)
        # Called when a group begins, and again if it has sent something: the loop may block now.
        self.before_group: Callable[[], bool] | None = None
        self._told = False
        # The index lags, or the writer pauses after failures.  Cached, because every MAIL and RCPT
        # asks.
        self.blocked = False
        self._failed_in_a_row = 0
        self._resting = False
        self.figures = CommitFigures()
        self._since = 0.0  # when the oldest waiting record arrived, or earlier
        self._group_since = 0.0
        self.groups = 0
        self._refused_groups = 0
        self.failed_writes = 0

    @property
    def accepts(self) -> bool:
        """False while new mail must be refused: no space, or the index lags."""
        return self._chain.has_space and not self.blocked

    @property
    def index_lags(self) -> bool:
        """Whether the index lacks groups that are durable."""
        return bool(self._feed.lagging)

    @property
    def rests(self) -> bool:
        """Whether new mail is deferred for a while because writes failed."""
        return self._resting

    @property
    def failures(self) -> int:
        """Groups that failed, or that could not be entered at once."""
        return self._refused_groups + self._feed.failures

    def open_first(self) -> int:
        """Take the first log, before any session exists.  Its life numbers this process's ids.

        Raises TableBusyError.
        """
        return self._chain.open()

    @property
    def idle(self) -> bool:
        return not self._busy and not self._waiting

    @property
    def writer(self) -> LogWriter | None:
        return self._chain.writer

    # -- on the loop

    def submit(self, item: Append) -> None:
        """Commit a record.  Its share of the memory budget is counted from here until `done`."""
        self._budget.used += item.held
        waiting = self._waiting
        if not waiting:
            self._since = self._now()
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
        """Begin at the end of this turn of the loop, or when the expected messages have arrived."""
        self._scheduled = True
        if len(self._waiting) < ENOUGH and self.expected.count():
            self._gathering = number = self.groups + 1
            self._loop.call_later(GATHER_SECONDS, lambda: self._waited(number))
        else:
            self._loop.call_soon(self._start)

    def _waited(self, number: int) -> None:
        """The wait is over, unless the group has begun."""
        if self._gathering == number:
            self._start()

    def _start(self) -> None:
        """Begin a group of the waiting records."""
        self._scheduled = False
        self._gathering = 0
        if self._busy or not self._waiting:
            return
        all_wait = self._seconds < QUICK_SECONDS and not self.expected.count()
        if self.before_group is not None and self.before_group() and all_wait and not self._told:
            self._scheduled = self._told = True  # what it sent leaves at the end of this turn
            self._loop.call_soon(self._start)
            return
        self._told = False
        group = take_group(self._waiting)
        self._group_since = self._since
        if self._resting:
            self._answer(group, NoSpaceError("resting after failed writes"))
            return
        self._busy = True
        chain = self._chain
        writer = chain.writer
        if writer is None or group[0].parts is None or not chain.fits(group):
            self._put_entering(lambda: self._switch_and_append(group))
            return
        try:
            encoded = encode(writer, group)
        except Exception as error:  # a bug costs this group, not the worker
            self._chain.report(f"panic: a group could not be encoded: {error!r}")
            self._finish(group, RefusedError(repr(error)))
            return
        if all_wait:
            self._appended(group, self._append(writer, group, encoded))
        else:
            self._background.put(lambda: self._append_in_thread(writer, group, encoded))

    def _appended(self, group: list[Append], outcome: Batch | RefusedError) -> None:
        """The group is durable or has failed: acknowledge it and make it visible, or refuse it."""
        self._thread_enters = False
        if isinstance(outcome, SyncFailedError) and self._chain.failed is not None:
            self._put_entering(lambda: self._record_and_finish(group, outcome))
        elif isinstance(outcome, RefusedError):
            self._finish(group, outcome)
        elif self._feed.may_answer(outcome):
            self._feed.answer(outcome)
            self._finish(group, None)
        elif self._feed.lagging or not self._feed.index.try_lock():
            self._put_entering(lambda: self._enter_in_thread(group, outcome))
        else:
            self._enter_and_unlock(outcome)
            self._finish(group, None)

    def _finish(self, group: list[Append], error: RefusedError | None) -> None:
        self._busy = self._thread_enters = False
        self.groups += bool(group)
        if error is None:
            self._failed_in_a_row = 0
        else:
            self._refused_groups += 1
            if isinstance(error, SyncFailedError) or self._chain.failed is not None:
                self.failed_writes += 1
                self._rest()
        self.blocked = bool(self._feed.lagging) or self._resting
        if group:
            self.figures.finished(len(group), self._now() - self._group_since)
        self._answer(group, error)
        self._timer.answered()

    def _answer(self, group: list[Append], error: RefusedError | None) -> None:
        budget = self._budget
        for item in group:
            budget.used -= item.held
            try:
                item.done(error)
            except Exception as bug:  # the others are answered all the same
                self._chain.report(f"panic: after an answer: {bug!r}")
        if self._waiting and not self._scheduled:
            self._schedule()

    def _rest(self) -> None:
        """A write or sync failed.  Each failure costs a log.  After the second failure in a row,
        new mail is deferred for a second, then two, then four …, so that a dead disk does not use
        up all logs."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row > 1:
            self._resting = True
            seconds = min(2.0 ** (self._failed_in_a_row - 2), MOST_REST_SECONDS)
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.blocked = bool(self._feed.lagging)
        if self._waiting and not self._scheduled and not self._busy:
            self._schedule()

    def enter_now(self) -> bool:
        """Enter acknowledged mail if that does not block.  False: another process has the lock."""
        if not self._feed.answered or self._thread_enters:
            return True
        if not self._feed.index.try_lock():
            return False
        self._timer.entered()
        self._enter_and_unlock(None)
        self.blocked = bool(self._feed.lagging) or self._resting
        return True

    def _try_wait_and_enter(self) -> bool:
        if not self._busy:
            self._wait_and_enter()
            return True
        return False

    def catch_up(self) -> None:
        """Retry entering what the index lacks."""
        if self._feed.lagging and not self._busy:
            self._wait_and_enter()

    def _wait_and_enter(self) -> None:
        """Have the thread wait for the index's lock; no group begins until then."""
        self._busy = True
        self._put_entering(lambda: self._enter_in_thread([], None))

    def _put_entering(self, job: Job) -> None:
        """Run a job that may use the index in the thread."""
        self._thread_enters = True
        self._background.put(job)

    def stop(self) -> LogWriter | None:
        """Stop the thread after its current job.  Returns the log in use, for the allocator to
        seal.

        If the index lags, the log is left to a recovery: it still belongs to this process, so
        nothing mistakes it for complete.
        """
        self._background.stop()
        writer = self._chain.close()
        self._enter_all()
        if writer is not None and self._feed.lagging:
            writer.close()
            return None
        return writer

    # -- in the thread; while it has a job, the loop does not touch chain and index

    def _append_in_thread(self, writer: LogWriter, group: list[Append], encoded: Encoded) -> None:
        outcome = self._append(writer, group, encoded)
        self._loop.call_soon_threadsafe(self._appended, group, outcome)

    def _switch_and_append(self, group: list[Append]) -> None:
        outcome: Batch | RefusedError
        try:
            if self._feed.answered:
                self._enter_all()
            writer = self._writer_for(group)
            outcome = self._append(writer, group, encode(writer, group))
        except RefusedError as error:
            outcome = error
        except OSError as error:
            outcome = SyncFailedError(str(error))
        except Exception as error:  # a bug costs this group, not the thread
            self._chain.report(f"panic: a group could not be written: {error!r}")
            outcome = SyncFailedError(repr(error))
        self._loop.call_soon_threadsafe(self._appended, group, outcome)

    def _writer_for(self, group: list[Append]) -> LogWriter:
        """The log in use, or the next one.  A healthy log is kept as long as the index lacks some
        of it: once sealed, it would no longer be recovered as this process's.

        Raises NoSpaceError, TableBusyError.
        """
        chain = self._chain
        if self._feed.lagging and chain.is_full(group):
            raise NoSpaceError("the index lags behind a full log")
        return chain.writer_for(group)

    def _record_and_finish(self, group: list[Append], error: SyncFailedError) -> None:
        """Have the next log record where the failed one ends.  If that fails, the next group
        retries."""
        try:
            self._enter_all()
            self._chain.record_end()
        except Exception as second:
            self._chain.report(f"warning: {error}; no log records it yet: {second}")
        self._loop.call_soon_threadsafe(self._finish, group, error)

    def _enter_in_thread(self, group: list[Append], batch: Batch | None) -> None:
        self._feed.index.lock()
        self._enter_and_unlock(batch)
        self._loop.call_soon_threadsafe(self._finish, group, None)

    # -- in the thread or on the loop

    def _enter_all(self) -> None:
        """Enter what the index lacks, waiting for its lock."""
        if self._feed.lagging or self._feed.answered:
            self._feed.index.lock()
            self._enter_and_unlock(None)

    def _append(
        self, writer: LogWriter, group: list[Append], encoded: Encoded
    ) -> Batch | RefusedError:
        """Make an encoded group durable."""
        began, start = self._now(), writer.end
        try:
            self._chain.append(writer, group, encoded)
        except Exception as error:  # of the disk, or a bug
            return SyncFailedError(f"log {writer.number}: {error}")
        seconds = self._now() - began
        self._seconds += (seconds - self._seconds) / 8
        self.figures.synced(writer.end - start, seconds)
        return Batch(writer.number, writer.life, writer.end, encoded.messages, encoded.deletions)

    def _enter_and_unlock(self, batch: Batch | None) -> None:
        """Enter a batch, after the earlier ones that could not be entered."""
        try:
            if batch is None:
                self._feed.enter()
            else:
                self._feed.enter(batch)
        finally:
            self._feed.index.unlock()
