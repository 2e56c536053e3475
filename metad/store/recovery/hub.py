"""Recovery: one path for a restart, a dead worker and a power cut.

    headers read -> each log ended (one_log) -> tails entered (enter) -> the log table filled

For each unsealed log without a living writer: take its lock, find its end, record the end in a
seal, enter its tail in the index.  Nothing is ever appended to it after that.

Rules of this file:

* A log whose lock is held is skipped: its writer is alive.
* Rows of the table are entered only if owner and life are still those that were read: during a
  recovery, another process may free a log and a worker may begin its next life.  A header counts
  only if the row was the same before and after it was read.
* An unreadable log is no reason to drop its rows from the index.
* An index that fails, or is in an impossible state, is rebuilt at once.
* The successor of a poisoned log is kept, even without its own mail, because it records where that
  log ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import lmdb

from metad.store.identity import Store
from metad.store.ids import time_of
from metad.store.index import probe
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.rows import LogCounts
from metad.store.index.tombstone_rows import Origin
from metad.store.index.tombstones import keep_tombstones
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.freed import ids_in_freed
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.tail import Report, Tail
from metad.store.log_table import LogState, LogTable, Row
from metad.store.recovery.enter import drop_log, drop_moved, enter_deletions, enter_messages
from metad.store.recovery.headers import HeaderReader
from metad.store.recovery.one_log import LogRecovery, Numbers, Recovered, predecessors
from metad.store.recovery.rebuild import Source, rebuild
from metad.system.osio import Osio


class Plan(NamedTuple):
    """What a recovery works on: its logs, where poisoned lives end, and the source of new logs.

    `half_free`: logs of which only one header says that they are free.
    """

    logs: dict[int, LogHeader]
    stops: dict[int, int]
    numbers: Numbers
    unreadable: frozenset[int] = frozenset()
    half_free: frozenset[int] = frozenset()


class Recovery:
    """Recovers the logs of one store.  Opened after the fork; the only opener of the index."""

    def __init__(
        self,
        osio: Osio,
        store: Store,
        report: Report,
        open_index: Callable[[str], Index] = Index,
    ) -> None:
        self._open_index = open_index
        self._osio = osio
        self._store = store
        self._report = report
        self.damaged = 0  # ranges of logs that were quarantined
        self._failed: dict[int, OSError] = {}  # logs that could not be recovered
        # Free logs whose places only a search of the whole index finds, and their lives: the
        # collector does that.
        self._unforgotten: dict[int, int] = {}
        self._unlinked: set[int] = set()  # free logs whose files are gone

    # -- the whole hub

    def run(self, table: LogTable, boot: str) -> int:
        """Recover everything before the first worker starts.

        Fills the table, leaves a usable index.  Returns the greatest time in any id that
        this node made, in us.
        Raises OSError, lmdb.Error.
        """
        plan = self.plan_all()
        reason = self._why_rebuild(plan, boot)
        if reason is None:
            try:
                return self._run(table, boot, plan)
            except (lmdb.Error, ValueError, *index_state.NONSENSE) as error:
                index_state.note_doubt(self._osio, self._store.index, error)
                reason = f"it failed: {error}"
                plan = self.plan_all()
        done = self.rebuild(plan, reason)
        return self._run(table, boot, plan, done)

    def plan_all(self) -> Plan:
        """Every log of the store; new ones follow their numbers and lives."""
        self._osio.fsync_directory(self._store.logs)  # a name may be there and not yet durable
        headers = HeaderReader(self._osio, self._store, self._report)
        logs = headers.all()
        numbers = Numbers(self._osio, logs, headers.unreadable)
        unreadable, half_free = frozenset(headers.unreadable), frozenset(headers.half_free)
        return Plan(logs, predecessors(logs), numbers, unreadable, half_free)

    def _run(
        self, table: LogTable, boot: str, plan: Plan, done: dict[int, Recovered] | None = None
    ) -> int:
        index = self._open_index(self._store.index)
        try:
            if told := index_state.mark_dirty(self._osio, self._store.index, boot):
                self._report(f"warning: index: {told}")
            if (origin := self._origin()) is not None:
                keep_tombstones(index, origin)
            logs, freed = dict(plan.logs), set[int]()
            self._unforgotten.clear()
            if done is None:
                plan.numbers.follow(index.logs())
                freed = self._drop_free(index, logs, plan.unreadable)
                done = self.recover_logs(index, plan._replace(logs=logs))
            self._finish_freeing(index, logs, plan.half_free - freed)
            logs |= {number: one.log for number, one in done.items()}
            for number, log in logs.items():
                table.restore(_row(number, log, done.get(number)))
            for stale in table.rows():  # from before, if an index is rebuilt in a running hub
                if stale.number not in logs:
                    table.restore(stale._replace(state=LogState.NONE, owner=0, tail=0))
            for number in self._unforgotten:
                table.restore(self._left_to_collector(table.row(number)))
            for number in plan.unreadable | self._failed.keys():
                # Its number is not reused, it is not freed, and no collection waits for it.
                known = logs.get(number)
                life = known.life if known else index.log_counts(number).life
                table.restore(Row(number, LogState.ACTIVE, life, 0, 0, 0, 0, 0))
            _show_counts(table, logs, index)
            newest = time_of(index.greatest_id(self._store.node))
            index.sync()
        finally:
            index.close()
        return newest

    def _why_rebuild(self, plan: Plan, boot: str) -> str | None:
        reason = index_state.why_unusable(self._osio, self._store.index, boot)
        return reason or probe.why_damaged(self._store.index, lambda: self._disagreement(plan))

    def _disagreement(self, plan: Plan) -> str | None:
        """The first disagreement between the index and the logs."""
        index = Index(self._store.index, readonly=True)
        try:
            for number, counts in index.logs().items():
                if number in plan.unreadable:
                    continue
                log = plan.logs.get(number)
                if counts.live_messages and (log is None or log.life != counts.life):
                    return f"log {number} is not in the life that the statement names"
                end = plan.stops.get(counts.life) or (log.seal_offset if log else 0)
                if log and log.life == counts.life and 0 < end < counts.watermark:
                    return f"log {number} ends before the place that the statement names"
        finally:
            index.close()
        return None

    def rebuild(self, plan: Plan, reason: str) -> dict[int, Recovered]:
        """Rebuild the index from the logs alone.  Returns each log's recovery, without its
        entries."""
        self._report(f"index: {reason}; rebuilding it from the logs")
        done: dict[int, Recovered] = {}

        def sources() -> Iterator[Source]:
            for one in self._each(plan):
                its, tail = one.log, one.tail
                done[its.number] = one._replace(tail=tail._replace(entries=b""))
                if one.state != LogState.FREE:
                    yield Source(its.number, its.life, tail.end, tail.entries)

        expected = sum([log.state != FREE for log in plan.logs.values()])
        rebuild(self._store.index, sources(), self._report, self._origin(), expected)
        return done

    def _origin(self) -> Origin | None:
        """The origin of the tombstones in a new index; None if it keeps none."""
        now = self._osio.time_ns()
        return Origin(self._store.node, now) if self._store.clustered else None

    def _drop_free(
        self, index: Index, logs: dict[int, LogHeader], unreadable: frozenset[int]
    ) -> set[int]:
        """A log is free on disk, but the index still refers to it: the collector was interrupted.

        Returns the logs that are freed again."""
        freed = set()
        for number, counts in index.logs().items():
            log = logs.get(number)
            if number in unreadable:
                continue
            if log is None:
                self._forget(index, number, counts.life, None)
            elif log.life != counts.life:
                drop_log(index, number, counts.life)
            elif log.state == FREE:
                freed.add(number)
                if not self._free_again(index, log):
                    del logs[number]
        return freed

    def _finish_freeing(
        self, index: Index, logs: dict[int, LogHeader], half_free: frozenset[int]
    ) -> None:
        """Free what is only half free after a kill or a power cut.

        The index does not refer to it if it was empty, or if the index has been rebuilt.
        """
        for number in half_free & logs.keys():
            try:
                if not self._free_again(index, logs[number]):
                    del logs[number]
            except OSError as error:  # it costs no start: nothing of it is missing
                self._report(f"warning: log {number} could not be freed again: {error}")

    def _free_again(self, index: Index, log: LogHeader) -> bool:
        """A log was just being freed, and its free header may not be durable yet.  True if the file
        exists.

        If damage may hide what was in it, its places are left to the collector.
        """
        try:
            fd = log_files.lock_log(self._osio, self._store.logs, log.number)
        except log_files.LogBusyError:
            return True  # an orphan begins its next life
        try:
            now = header.read(self._osio, fd, self._store.secret)
            if now is not None and (now.life, now.state) != (log.life, FREE):
                return True  # since it was read, its next life began and was sealed
            ids = ids_in_freed(self._osio, fd, log)
            if now is None:  # a verified record says that it is free, and both headers are gone
                self._osio.unlink(log_path(self._store.logs, log.number))
                self._osio.fsync_directory(self._store.logs)
                there = False
            else:
                there = log_files.free(self._osio, self._store.logs, fd, now)
        finally:
            self._osio.close(fd)
        self._forget(index, log.number, log.life, ids)
        return there

    def _forget(self, index: Index, number: int, life: int, ids: list[bytes] | None) -> None:
        """Drop the places in a log that is gone or free; `ids`: what was in it, if known."""
        if ids is None and index.log_counts(number).life == life:
            self._unforgotten[number] = life
        else:
            drop_log(index, number, life, ids)

    # -- the logs of one dead process

    def recover_process(self, table: LogTable, dead: int) -> None:
        """Recover the logs of the process with row `dead`, while others live.

        Raises OSError, lmdb.Error, TableBusyError; then it must be repeated.
        """
        self._unforgotten.clear()
        self._unlinked.clear()
        owned = {row.number: row for row in table.owned_by(dead)}
        plan = self._plan_process(table, dead, owned)
        owned = {n: row for n, row in owned.items() if _is_still(table.row(n), row)}
        plan = plan._replace(logs={n: log for n, log in plan.logs.items() if n in owned})
        index = self._open_index(self._store.index)
        try:
            rows = self._recover_owned(index, plan, owned)
            for row in rows:
                # Its number may be that of a log of the dead one, which another process has freed.
                was = row._replace(owner=dead + 1) if _is_made(plan, row) else owned[row.number]
                if not table.restore(row, was) and row.number in self._unlinked:
                    # The new collector noted meanwhile that it is free.
                    table.restore(row, was._replace(owner=0))
            _show_counts(table, [row.number for row in rows], index)
            for error in self._failed.values():
                raise error
        except (lmdb.Error, *index_state.NONSENSE) as error:
            index_state.note_doubt(self._osio, self._store.index, error)
            raise
        finally:
            index.close()

    def _plan_process(self, table: LogTable, dead: int, owned: Iterable[int]) -> Plan:
        self._osio.fsync_directory(self._store.logs)  # a name may be there and not yet durable
        headers = HeaderReader(self._osio, self._store, self._report)
        logs = headers.of(owned)
        everything = headers.of(row.number for row in table.rows()) | logs
        numbers = Numbers(self._osio, everything, headers.unreadable, (table, dead))
        return Plan(logs, predecessors(everything), numbers)

    def _recover_owned(self, index: Index, plan: Plan, owned: dict[int, Row]) -> list[Row]:
        """The new rows for the dead process's logs, and for those made for them."""
        logs, rows = dict(plan.logs), []
        for number, row in owned.items():
            log = logs.get(number)
            if log is None:  # a poisoned one that the collector unlinked, or one never made
                self._forget(index, number, row.life, None)
            elif log.state == FREE and not self._free_again(index, log):
                self._unlinked.add(number)
                del logs[number]
            if number not in logs:
                rows.append(row._replace(state=LogState.NONE, owner=0, tail=0))
        done = self.recover_logs(index, plan._replace(logs=logs))
        logs |= {number: one.log for number, one in done.items()}
        rows += [
            _row(number, log, done.get(number))
            for number, log in logs.items()
            if number in done or log.state == FREE
        ]
        return [row if _is_made(plan, row) else self._left_to_collector(row) for row in rows]

    def _left_to_collector(self, row: Row) -> Row:
        if row.number not in self._unforgotten:
            return row
        return row._replace(state=LogState.COLLECTING, life=self._unforgotten[row.number])

    # -- logs

    def recover_logs(self, index: Index, plan: Plan) -> dict[int, Recovered]:
        """Seal unsealed logs, and enter missing records.

        A log whose lock is held is skipped and not in the result; nor is a free one.
        """
        done: dict[int, Recovered] = {}
        left: dict[int, LogHeader] = {}
        starts: dict[int, int] = {}
        for number, log in plan.logs.items():
            counts = index.log_counts(number)
            known = counts.watermark if counts.life == log.life else 0
            if 0 < log.seal_offset <= known and log.life not in plan.stops and log.state != FREE:
                tail = Tail(number, b"", log.seal_offset)
                done[number] = Recovered(log, LogState.SEALED, known, tail)
            else:
                left[number], starts[number] = log, max(known, log.align)
        changed: list[Recovered] = []
        for one in self._each(plan._replace(logs=left), starts):
            done[one.log.number] = one
            if one.state != LogState.FREE:
                changed.append(one)
                enter_messages(index, one)
        lives = {log.life: number for number, log in plan.logs.items()}
        for one in changed:
            if one.log.predecessor_life in lives:
                drop_moved(index, one, lives[one.log.predecessor_life])
        for one in changed:
            enter_deletions(index, one)
        return done

    def _each(self, plan: Plan, starts: dict[int, int] | None = None) -> Iterator[Recovered]:
        """End every log that is in use; a failure costs only that log."""
        self._failed.clear()
        worker = LogRecovery(self._osio, self._store, self._report, plan.numbers)
        for log in plan.logs.values():
            if log.state == FREE:
                continue
            start = starts[log.number] if starts is not None else log.align
            try:
                yield from worker.recover(log, start, plan.stops)
            except log_files.LogBusyError as error:
                self._report(f"warning: {error}; it will be recovered later")
            except OSError as error:
                self._report(f"warning: log {log.number} could not be recovered: {error}")
                self._failed[log.number] = error
        self.damaged += worker.damaged


def _row(number: int, log: LogHeader, one: Recovered | None) -> Row:
    """The row of a log.  If it is neither recovered nor free, a living process holds it."""
    state = one.state if one else LogState.FREE if log.state == FREE else LogState.ACTIVE
    end = one.tail.end if one else 0
    return Row(number, state, log.life, log.generation, 0, end, 0, 0)


def _is_made(plan: Plan, row: Row) -> bool:
    """Whether the recovery itself made this log."""
    return plan.numbers.taken.get(row.number) == row.life


def _is_still(now: Row, was: Row) -> bool:
    """Whether a log has not begun another life, nor gone to another process."""
    return (now.owner, now.life) == (was.owner, was.life)


def _show_counts(table: LogTable, logs: Iterable[int], index: Index) -> None:
    """Under the index's lock, so that no living process publishes newer counts meanwhile."""
    index.lock()
    try:
        counts = index.logs()
        for number in logs:
            row = counts.get(number, LogCounts())
            table.set_live(number, row.live_messages, row.live_octets)
    finally:
        index.unlock()
