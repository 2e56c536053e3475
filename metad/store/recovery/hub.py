"""Recovery: one path for a restart, a dead worker and a power cut.

For each log without a living writer and without a seal: take its lock, find its end, state the
end in a seal, enter its tail in the index.  After that nothing is ever appended to it.

Rules of this file:

* Without the log's flock nothing is touched: somebody living has it.
* Messages of all tails are entered before the deletions of all tails: order between logs never
  matters.  A watermark moves only when all of its log's tail is in the index, and entering
  something again changes nothing: killed anywhere, recovery can be done again.
* Damage never means "delete", and nothing from quarantine/ is put back by itself.
* A poisoned log ends where its successor says, and is never written to again, not even a seal.
  The successor is kept, even without mail of its own, for what it says.
* What is shown is durable.  The last group of a log without a seal may lie in the page cache alone
  (metad.store.log.successor) unless the index has it, which is told of a group after its sync: it
  is written anew, and the log ends in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from metad.errors import DataError, MetadError
from metad.store.identity import Store
from metad.store.ids import time_of
from metad.store.index import relocation
from metad.store.index import state as index_state
from metad.store.index.index import Batch, Index, LogCounts
from metad.store.log import files as log_files
from metad.store.log import quarantine
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.successor import read_ended, write_successor
from metad.store.log.tail import Report, Tail, TailReader, entries_from
from metad.store.log.writer import Footer, seal
from metad.store.log_table import Allocation, LogTable, Row, State
from metad.store.recovery.rebuild import Source, rebuild
from metad.system.osio import Osio

BATCH = 1000
Enter = Callable[[Index, Batch], None]


class Numbers:
    """Numbers and lives for logs that recovery has to make.

    Beside a living hub the table gives them, to the dead process `owner`: its logs are recovered
    again if this recovery is killed.  Before there is one, they follow those of the logs.
    """

    def __init__(
        self, osio: Osio, logs: dict[int, LogHeader], table: LogTable | None, owner: int | None
    ) -> None:
        self._osio = osio
        self._table = table
        self._owner = owner
        self._number = max(logs, default=0)
        self._life = max((log.life for log in logs.values()), default=0)

    def take(self, generation: int) -> Allocation:
        """Raises RefusedError."""
        now = self._osio.time_ns() // 10**9
        if self._table is not None and self._owner is not None:
            return self._table.allocate(generation, now, owner=self._owner)
        self._number += 1
        self._life = max(self._life + 1, now)
        return Allocation(self._number, self._life, fresh=True)

    def give_back(self, given: Allocation) -> None:
        """Nothing was made of it.  The life is used all the same."""
        if self._table is not None:
            self._table.restore(Row(given.number, State.NONE, given.life, 0, 0, 0, 0, 0))


class Recovered(NamedTuple):
    """A log after its recovery: its tail not yet entered, beyond `start`."""

    log: LogHeader
    state: State
    start: int
    tail: Tail


class Recovery:
    """Recovers the logs of one store.  Opened after the fork; the only opener of the index."""

    def __init__(self, osio: Osio, store: Store, report: Report) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self._tails = TailReader(osio, store, report)
        self._numbers = Numbers(osio, {}, None, None)

    @property
    def damaged(self) -> int:
        """Stretches of logs that were set aside."""
        return self._tails.damaged

    # -- the whole hub

    def run(self, table: LogTable, boot: str) -> int:
        """Recover everything before the first worker starts.

        Fills the table, leaves a usable index.  Returns the greatest time in any id, in us.
        Raises OSError, lmdb.Error.
        """
        self._osio.fsync_directory(self._store.logs)  # a name may be there and not yet durable
        logs = self.headers()
        self._numbers = Numbers(self._osio, logs, table, None)
        reason = self._why_rebuild(logs, boot)
        done = self.rebuild(logs, reason) if reason else {}
        index = Index(self._store.index)
        try:
            index_state.mark(self._osio, self._store.index, boot, clean=False)
            if not reason:
                self._drop_free(index, logs)
                done = self.recover_logs(index, logs)
            logs |= {number: one.log for number, one in done.items()}
            self._fill_table(table, logs, done)
            self._show_counts(table, logs, index)
            newest = time_of(index.greatest_id())
            index.sync()
        finally:
            index.close()
        lives = max((log.life for log in logs.values()), default=0)
        return max(newest, lives * 1_000_000)

    def headers(self) -> dict[int, LogHeader]:
        """Number and header of every log.  A file that is none is removed or put away."""
        found: dict[int, LogHeader] = {}
        for name in sorted(self._osio.listdir(self._store.logs)):
            stem, _, ending = name.partition(".")
            if ending != "log" or not stem.isascii() or not stem.isdigit():
                continue
            log = self._tails.header(int(stem))
            if log is not None:
                found[int(stem)] = log
            else:
                self._clear_away(int(stem))
        return found

    def _clear_away(self, number: int) -> None:
        """A file in which neither a header nor a record verifies: never finished, or trash.

        Raises DataError if it is a good log, but of a store with another secret.
        """
        path = log_path(self._store.logs, number)
        if self._tails.is_of_another_store(number):
            raise DataError(
                f"log {number} is good, but not under the secret in store.json: "
                "put the right store.json back"
            )
        if self._tails.is_blank(number):
            self._report(f"log {number} was never finished; removing it")
            self._osio.unlink(path)
        else:
            name = quarantine.quarantine_file(self._osio, self._store, path)
            self._report(f"warning: nothing in log {number} verifies; it is quarantine/{name} now")

    def _why_rebuild(self, logs: dict[int, LogHeader], boot: str) -> str | None:
        reason = index_state.why_unusable(self._osio, self._store.index, boot)
        if reason is not None:
            return reason
        stops = predecessors(logs)
        index = Index(self._store.index)
        try:
            for number, counts in index.logs().items():
                log = logs.get(number)
                if counts.live_messages and (log is None or log.life != counts.life):
                    return f"log {number} is not in the life that it speaks of"
                end = stops.get(counts.life) or (log.seal_offset if log else 0)
                if log and log.life == counts.life and 0 < end < counts.watermark:
                    return f"log {number} ends before what it speaks of"
        finally:
            index.close()
        return None

    def rebuild(self, logs: dict[int, LogHeader], reason: str) -> dict[int, Recovered]:
        """Make the index anew from the logs alone; each log's recovery, without its entries."""
        self._report(f"index: {reason}; rebuilding it from the logs")
        stops = predecessors(logs)
        done: dict[int, Recovered] = {}

        def sources() -> Iterator[Source]:
            for log in logs.values():
                if log.state == FREE:
                    continue
                try:
                    found = self._recover(log, log.align, stops)
                except log_files.LogBusyError as error:
                    self._report(f"warning: {error}: its mail is there after the next start")
                    continue
                for one in found:
                    its, tail = one.log, one.tail
                    done[its.number] = one._replace(tail=tail._replace(entries=b""))
                    if one.state != State.FREE:
                        yield Source(its.number, its.life, tail.end, tail.entries)

        rebuild(self._store.index, sources(), self._report)
        return done

    def _drop_free(self, index: Index, logs: dict[int, LogHeader]) -> None:
        """A log is free on disk and the index still speaks of it: the collector was cut short."""
        for number, counts in index.logs().items():
            log = logs.get(number)
            if log is None or log.life != counts.life:
                drop_log(index, number)
            elif log.state == FREE and not self._forget_free(index, log):
                del logs[number]

    def _forget_free(self, index: Index, log: LogHeader) -> bool:
        """A log was just being freed: what says so may not be durable yet.  True if it is there."""
        try:
            fd = log_files.lock_log(self._osio, self._store.logs, log.number)
        except log_files.LogBusyError:
            return True  # an orphan begins its next life
        try:
            there = log_files.free(self._osio, self._store.logs, fd, log)
        finally:
            self._osio.close(fd)
        drop_log(index, log.number)
        return there

    def _fill_table(
        self,
        table: LogTable,
        logs: dict[int, LogHeader],
        done: dict[int, Recovered],
    ) -> None:
        for number, log in logs.items():
            one = done.get(number)
            # Neither recovered nor free: somebody living holds it.
            state = one.state if one else State.FREE if log.state == FREE else State.ACTIVE
            end = one.tail.end if one else 0
            table.restore(Row(number, state, log.life, log.generation, 0, end, 0, 0))

    @staticmethod
    def _show_counts(table: LogTable, logs: Iterable[int], index: Index) -> None:
        """Under the index's lock: nobody who lives publishes newer counts meanwhile."""
        index.lock()
        try:
            counts = index.logs()
            for number in logs:
                row = counts.get(number, LogCounts())
                table.set_live(number, row.live_messages, row.live_octets)
        finally:
            index.unlock()

    # -- the logs of one dead process

    def recover_process(self, table: LogTable, dead: int) -> None:
        """Recover what the process with row `dead` had, while others live.

        Raises OSError, lmdb.Error, TableBusyError.
        """
        self._osio.fsync_directory(self._store.logs)  # a name may be there and not yet durable
        owned = table.owned_by(dead)
        logs = self.headers_of(row.number for row in owned)
        index = Index(self._store.index)
        try:
            for row in owned:
                if row.number not in logs:  # a poisoned one that the collector unlinked, or unborn
                    drop_log(index, row.number)
                    table.restore(row._replace(state=State.NONE, owner=0, tail=0))
            everything = self.headers_of(row.number for row in table.rows())
            for number, log in list(logs.items()):
                if log.state == FREE and not self._forget_free(index, log):
                    del logs[number]
                    table.restore(table.row(number)._replace(state=State.NONE, owner=0, tail=0))
            self._numbers = Numbers(self._osio, everything, table, dead)
            done = self.recover_logs(index, logs, everything | logs)
            logs |= {number: one.log for number, one in done.items()}
            ours = {n: log for n, log in logs.items() if n in done or log.state == FREE}
            self._fill_table(table, ours, done)
            self._show_counts(table, ours, index)
        finally:
            index.close()

    def headers_of(self, numbers: Iterable[int]) -> dict[int, LogHeader]:
        """Headers of some logs; those that are not there, or never were logs, are left out."""
        found: dict[int, LogHeader] = {}
        for number in numbers:
            try:
                log = self._tails.header(number)
            except FileNotFoundError:
                continue
            if log is not None:
                found[number] = log
        return found

    # -- logs

    def recover_logs(
        self,
        index: Index,
        logs: dict[int, LogHeader],
        everything: dict[int, LogHeader] | None = None,
    ) -> dict[int, Recovered]:
        """Seal what is not sealed, enter what is not entered.

        `everything`: the headers that may speak of poisoned logs, if not the same.  A log whose
        lock somebody holds is left alone and not in the answer; neither is one that is free.
        """
        stops = predecessors(everything or logs)
        done: dict[int, Recovered] = {}
        changed: list[Recovered] = []
        for number, log in logs.items():
            if log.state == FREE:
                continue
            counts = index.log_counts(number)
            known = counts.watermark if counts.life == log.life else 0
            if 0 < log.seal_offset <= known and log.life not in stops:
                tail = Tail(number, b"", log.seal_offset)
                done[number] = Recovered(log, State.SEALED, known, tail)
                continue
            try:
                found = self._recover(log, max(known, log.align), stops)
            except log_files.LogBusyError:
                continue
            for one in found:
                done[one.log.number] = one
                if one.state != State.FREE:
                    changed.append(one)
                    enter_messages(index, one)
        for one in changed:
            enter_deletions(index, one)
        return done

    def _recover(self, log: LogHeader, start: int, stops: dict[int, int]) -> list[Recovered]:
        """Find the end of a log and what lies beyond `start`, and state the end.

        With the log comes the one that was made for its last group, if one was.
        """
        fd = log_files.lock_log(self._osio, self._store.logs, log.number)
        try:
            poisoned_at = stops.get(log.life)
            if poisoned_at is not None:
                tail = self._tails.scanned(fd, log, min(start, poisoned_at), poisoned_at)
                return [Recovered(log, State.SEALED, start, tail)]
            found = self._tails.seal(fd, log)
            if found is not None:
                tail = self._tails.sealed(fd, log, start, found)
                return [Recovered(log, State.SEALED, start, tail)]
            tail = self._tails.scanned(fd, log, start, log.seal_offset or None)
            return self._ended(fd, Recovered(log, State.SEALED, start, tail))
        finally:
            self._osio.close(fd)

    def _ended(self, fd: int, one: Recovered) -> list[Recovered]:
        """State the end of a log: in itself, or in one that is made for its last group."""
        log, tail = one.log, one.tail
        if tail.undecided and (with_heir := self._with_heir(fd, one)):
            return with_heir
        try:
            return [one._replace(state=self._end(fd, log, one.start, tail))]
        except OSError:
            # Nothing more is written to that file; whoever is to say where it ends must be another.
            with_heir = self._with_heir(fd, one)
            if not with_heir:
                raise
            return with_heir

    def _with_heir(self, fd: int, one: Recovered) -> list[Recovered]:
        """The log without its last group, and the one that has it now; nothing if that cannot be
        made, as on a full disk: what was acknowledged is durable where it is."""
        log, tail = one.log, one.tail
        given = None
        try:
            ended = read_ended(self._osio, fd, log, tail)
            given = self._numbers.take(log.generation)
            heir = write_successor(self._osio, self._store, ended, given)
        except (OSError, MetadError, log_files.LogBusyError) as error:
            self._report(f"warning: log {log.number}: its last group stays where it is: {error}")
            if given is not None:
                self._numbers.give_back(given)
            return []
        moved = entries_from(tail.entries, ended.end)
        kept = tail.entries[: len(tail.entries) - len(moved)]
        old = one._replace(tail=tail._replace(entries=kept, end=ended.end))
        return [old, Recovered(heir.log, State.SEALED, heir.log.align, heir.tail)]

    def _end(self, fd: int, log: LogHeader, start: int, tail: Tail) -> State:
        """Seal a log, or free it if nothing ever was in it and nothing needs its header.

        The sync of the seal is one of everything in the file.  Raises OSError.
        """
        if tail.end == log.align and not (tail.damaged or log.predecessor_life):
            log_files.mark_free(self._osio, fd, log)
            return State.FREE
        seal(self._osio, fd, log, tail.end, Footer(tail.entries, tail.sequence, start))
        return State.SEALED


def predecessors(logs: dict[int, LogHeader]) -> dict[int, int]:
    """Where poisoned lives end, by what their successors say."""
    return {
        log.predecessor_life: log.predecessor_end
        for log in logs.values()
        if log.predecessor_life and log.state != FREE
    }


def enter_messages(index: Index, one: Recovered) -> None:
    """Enter the messages of a tail.  The watermark stays: the deletions are still to come."""
    log, messages = one.log, one.tail.records()[0]
    for at in range(0, max(len(messages), 1), BATCH):
        some = messages[at : at + BATCH]
        _write(index, relocation.move, Batch(log.number, log.life, one.start, some, []))


def enter_deletions(index: Index, one: Recovered) -> None:
    """Apply the deletions of a tail; with the last of them the watermark moves to the end."""
    log, deletions = one.log, one.tail.records()[1]
    for at in range(0, max(len(deletions), 1), BATCH):
        some = deletions[at : at + BATCH]
        last = at + BATCH >= len(deletions)
        watermark = max(one.tail.end, one.start) if last else one.start
        _write(index, Index.apply, Batch(log.number, log.life, watermark, [], some))


def drop_log(index: Index, number: int) -> None:
    """Take every place in log `number` out of the index, and its row, if it has one."""
    start: bytes | None = b"" if index.log_counts(number).life else None
    while start is not None:
        ids, start = relocation.ids_in(index, number, start)
        if ids:
            index.lock()
            try:
                relocation.drop_places(index, number, ids)
            finally:
                index.unlock()
    index.lock()
    try:
        relocation.drop_log(index, number)
    finally:
        index.unlock()


def _write(index: Index, enter: Enter, batch: Batch) -> None:
    index.lock()
    try:
        enter(index, batch)
    finally:
        index.unlock()
