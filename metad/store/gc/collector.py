"""The garbage collector: empties sealed logs, one at a time, in short steps.

    take the victim's lock, table: COLLECTING
      -> survivors written and synced -> index: their new places, beside the old ones      (repeat)
      -> survivors' logs: a confirmation that the copies are synced
      -> the victim's header: free, synced (or the file unlinked)
      -> index: the victim's places dropped, then its row -> table: FREE

Rules of this file:

* Each arrow is an order that a crash at any point must not break: nothing is lost and nothing
  returns.  The failpoints are between the arrows.
* Only logs that are sealed, and indexed up to their seal, are collected, under the log's own lock.
* A log that records where a poisoned one ends is freed after that one.
* A file that cannot be read is left alone; one that cannot be written to is unlinked: a failed file
  is not used again.
* On a full disk a file is unlinked instead of being kept as a free log: the index needs its blocks
  for the pages that forget the log.
* Nothing here waits or sleeps: the steps are those of a generator, and its caller decides when to
  take the next one (metad.workers.collector).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress

import lmdb

from metad.errors import MetadError
from metad.store.backup_lock import FreeLock
from metad.store.ballast import CRITICAL
from metad.store.gc.contents import Contents, must_be_readable, read_contents
from metad.store.gc.copy import Figures, Step, SurvivorCopy, Tools, Victim
from metad.store.index import relocation
from metad.store.index import state as index_state
from metad.store.index.relocation import Item
from metad.store.index.rows import DisagreementError
from metad.store.log import files as log_files
from metad.store.log import header, record
from metad.store.log.footer import speaks_of_mail
from metad.store.log.freed import ids_in_freed
from metad.store.log.header import LogHeader
from metad.store.log.scan import Damage
from metad.store.log_table import LogState, Row

MOST_WAITS = 40  # for a recovery, before the log is skipped for a while
DROPPED = 250  # places per write transaction: below a millisecond


class NotCollectableError(MetadError):
    """This log is not to be collected now; `str()` says why."""


class Collector:
    """Empties logs.  One per store at a time, in one process."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._osio = tools.osio
        self._logs = tools.store.logs
        self._table = tools.table
        self._free_lock = FreeLock(tools.osio, tools.store, tools.backup_lease, tools.report)
        self._words: dict[int, LogHeader] = {}
        self.figures = Figures()

    def close(self) -> bool:
        """Seal the survivors' logs and release everything.  False: some need a recovery."""
        with suppress(OSError, lmdb.Error, MetadError):
            self._tools.catch_up()
        settled = self._tools.survivors.seal()
        self._free_lock.close()
        return settled

    # -- one log

    def collect(self, number: int) -> Generator[Step, None, None]:
        """Empty log `number` and free it.  Run the generator to its end, or close it between two
        steps.

        Raises NotCollectableError, OSError, lmdb.Error, RefusedError, ValueError; then the log is
        unchanged, and may be collected another time.  DisagreementError: the index is suspect,
        which is noted durably.
        """
        try:
            yield from self._collect(number)
        except (DisagreementError, lmdb.Error) as error:
            index_state.note_doubt(self._osio, self._tools.store.index, error)
            raise

    def _collect(self, number: int) -> Generator[Step, None, None]:
        yield from self._wait_for_recovery()
        fd = self._lock(number)
        freeing = False
        try:
            victim = self._take(number, fd)
            yield Step.LOOKED
            yield from SurvivorCopy(self._tools, victim, self.figures).steps()
            self._tools.confirm()
            while not self._free_lock.acquire():  # a backup reads the logs
                yield Step.WAITS
            self._must_be_settled()
            freeing = True
            state = self._free(victim)
            if state == LogState.FREE:
                yield from self._forget_victim(victim)
        finally:
            if not freeing:
                self._give_back(number)
            self._osio.close(fd)
        if state == LogState.NONE:  # its blocks have just gone back
            yield from self._forget_victim(victim)
        self._release(number, state)

    # -- survivors' logs of others

    def _wait_for_recovery(self) -> Iterator[Step]:
        """While a survivors' log waits for its recovery, the index lacks copies: wait for the
        recovery."""
        for _ in range(MOST_WAITS):
            if not self._unrecovered():
                break
            yield Step.WAITS
        self._must_be_settled()

    def _must_be_settled(self) -> None:
        """No deletion record is dropped, and no log freed, while the index lacks a survivor.

        Raises NotCollectableError, OSError, lmdb.Error, NoSpaceError.
        """
        self._tools.catch_up()
        if waiting := self._unrecovered():
            self._free_lock.release()
            raise NotCollectableError(f"log {waiting[0]} waits for its recovery")

    def _unrecovered(self) -> list[int]:
        """Survivors' logs that a dead collector left unsealed."""
        unsealed = (LogState.PREPARING, LogState.ACTIVE)
        return [
            row.number
            for row in self._table.rows()
            if row.generation and row.state in unsealed and not self._table.is_mine(row)
        ]

    def _lock(self, number: int) -> int:
        try:
            return log_files.lock_log(self._osio, self._logs, number)
        except log_files.LogBusyError as error:
            raise NotCollectableError(str(error)) from None

    def _take(self, number: int, fd: int) -> Victim:
        """Mark the log as being collected, if it may be, and read its contents."""
        if self._table.row(number).state != LogState.SEALED:
            raise NotCollectableError(f"log {number} is not sealed")
        log = header.read(self._osio, fd, self._tools.store.secret)
        if log is None or log.state == header.FREE or log.number != number:
            raise NotCollectableError(f"log {number} has no good header")
        if log.life != self._table.row(number).life:
            raise NotCollectableError(f"log {number} is in another life than the table says")
        self._table.change(number, LogState.COLLECTING)
        self._tools.failpoint("taken")
        stop = self._stop(log)
        return Victim(number, fd, log, self._contents(fd, log, stop), stop is not None)

    def _contents(self, fd: int, log: LogHeader, stop: int | None) -> Contents:
        """The contents of the log.  Raises NotCollectableError if the index lacks some of them."""
        contents = read_contents(self._osio, fd, log, stop)
        if not all(map(speaks_of_mail, {item.kind for item in contents.items})):
            raise NotCollectableError(f"log {log.number} has records of a later release")
        counts = self._tools.index.log_counts(log.number)
        indexed = counts.watermark if counts.life == log.life else log.align
        if indexed < contents.end:
            raise NotCollectableError(f"log {log.number} is not indexed to its end")
        if indexed > contents.end:  # nothing verifies after that
            damage = [*contents.damage, Damage(contents.end, indexed)]
            contents = contents._replace(damage=damage, complete=False)
        for stretch in contents.damage:
            must_be_readable(self._osio, fd, stretch)
        return contents

    def _give_back(self, number: int) -> None:
        if self._table.row(number).state == LogState.COLLECTING:
            self._table.change(number, LogState.SEALED)

    # -- poisoned logs

    def _stop(self, log: LogHeader) -> int | None:
        """Where this log ends according to its successor; None if its writer did not fail.

        Raises NotCollectableError if it is such a successor and must outlive a log.
        """
        stop = None
        for row in self._table.rows():
            if row.state in (LogState.FREE, LogState.NONE, LogState.PREPARING):
                continue
            if log.predecessor_life and row.life == log.predecessor_life:
                raise NotCollectableError(f"log {log.number} says where log {row.number} ends")
            other = self._header(row)
            if other is not None and other.predecessor_life == log.life:
                stop = other.predecessor_end
        return stop

    def _header(self, row: Row) -> LogHeader | None:
        """The header of a log, cached if it is sealed: then it no longer changes."""
        known = self._words.get(row.number)
        if known is not None and known.life == row.life:
            return known
        try:
            fd = self._osio.open(header.log_path(self._logs, row.number), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            found = header.read(self._osio, fd, self._tools.store.secret)
        finally:
            self._osio.close(fd)
        if found is not None and row.state == LogState.SEALED:
            self._words[row.number] = found
        return found

    # -- free

    def _free(self, victim: Victim) -> LogState:
        """From here on, nothing in the log counts.  Returns the new state of its number.

        A poisoned log is never written to again, and one with a second name is never overwritten:
        their files are unlinked, and on a full disk any.  The lock that keeps backups out is held
        at the beginning.
        """
        failpoint = self._tools.failpoint
        try:
            failpoint("freeing")
            is_shared = self._osio.fstat(victim.fd).st_nlink > 1
            if victim.poisoned or is_shared or self._disk_is_full():
                state = self._unlink(victim.number)
            else:
                state = self._mark_free(victim.fd, victim.log)
            failpoint("freed")
        finally:
            self._free_lock.release()
        self.figures.logs += 1
        self.figures.octets += victim.log.size
        return state

    def _disk_is_full(self) -> bool:
        """Whether the index may lack the pages to forget a log: then its blocks must go back."""
        return self._osio.free_space(self._logs) < CRITICAL

    def _unlink(self, number: int) -> LogState:
        self._osio.unlink(header.log_path(self._logs, number))
        self._osio.fsync_directory(self._logs)
        return LogState.NONE

    def _mark_free(self, fd: int, log: LogHeader) -> LogState:
        return LogState.FREE if log_files.free(self._osio, self._logs, fd, log) else LogState.NONE

    def _ids(self, victim: Victim) -> Iterator[list[bytes]]:
        """Ids of the former records of the log, one transaction's worth at a time."""
        if not victim.contents.complete:
            yield from self._ids_by_index(victim.number)
            return
        ids = list({one for item in victim.contents.items for one in _ids_of(item)})
        yield from _pieces(ids)

    def _ids_by_index(self, number: int) -> Iterator[list[bytes]]:
        start: bytes | None = b""
        while start is not None:
            ids, start = relocation.ids_in(self._tools.index, number, start)
            yield from _pieces(ids) if ids else [[]]

    def _drop_places(self, number: int, life: int, slices: Iterable[list[bytes]]) -> Iterator[Step]:
        """Remove this life of a log, which is free on disk, from the index."""
        for ids in slices:
            if ids:
                self._tools.change(relocation.drop_places, number, life, ids)
                self._tools.failpoint("dropped")
            yield Step.DROPPED
        self._tools.change(relocation.drop_log, number, life)
        self._tools.failpoint("forgotten")

    def _forget_victim(self, victim: Victim) -> Iterator[Step]:
        return self._drop_places(victim.number, victim.log.life, self._ids(victim))

    def _release(self, number: int, state: LogState) -> None:
        """The number may be used again."""
        self._table.change(number, state)
        self._tools.failpoint("released")

    # -- leftovers

    def tidy(self) -> Generator[Step, None, None]:
        """Finish what an earlier collector began, and reclaim free logs that were in use.

        A log that is free on disk is removed from the index and becomes free in the table; any
        other is sealed as before.  Raises OSError, lmdb.Error, RefusedError.
        """
        for row in self._table.rows():
            if row.state != LogState.COLLECTING:
                continue
            try:
                fd = self._lock(row.number)
            except NotCollectableError:
                continue
            except FileNotFoundError:
                self._osio.fsync_directory(self._logs)  # its removal may not be durable yet
                yield from self._forget(row.number, row.life, None)
                self._put(row, row._replace(state=LogState.NONE))
                continue
            try:
                ids = self._ids_on_disk(fd)
                became = self._on_disk(row, fd)
                if became is not None and became.state == LogState.FREE:
                    yield from self._forget(row.number, became.life, ids)
            finally:
                self._osio.close(fd)
            if became is not None:
                if became.state == LogState.NONE:  # its blocks have just gone back
                    yield from self._forget(row.number, became.life, ids)
                self._put(row, became)

    def _on_disk(self, row: Row, fd: int) -> Row | None:
        """The true state of a log without an owner; None: leave it alone for now."""
        log = header.read(self._osio, fd, self._tools.store.secret)
        if log is None:
            return None
        if log.state == header.FREE:
            if not log_files.try_reader_lock(fd, exclusive=True):
                return None  # a long transfer is still reading it
            full = self._disk_is_full()  # marked again: a killed process may not have synced it
            state = self._unlink(row.number) if full else self._mark_free(fd, log)
            return row._replace(state=state, life=log.life, tail=0)
        if log.life == self._tools.index.log_counts(row.number).life:
            return row._replace(state=LogState.SEALED, life=log.life)
        return None

    def _ids_on_disk(self, fd: int) -> list[bytes] | None:
        """The former contents of a free log; None if it does not show them itself."""
        log = header.read(self._osio, fd, self._tools.store.secret)
        if log is None or log.state != header.FREE:
            return None
        return ids_in_freed(self._osio, fd, log)

    def _put(self, was: Row, row: Row) -> None:
        """Set the state of the log, unless another process owns it by now."""
        self._table.restore(row._replace(owner=0), was)
        self._tools.failpoint("released")

    def _forget(self, number: int, life: int, ids: list[bytes] | None) -> Iterator[Step]:
        if self._tools.index.log_counts(number).life == life:
            known = self._ids_by_index(number) if ids is None else _pieces(ids)
            yield from self._drop_places(number, life, known)


def _pieces(ids: list[bytes]) -> Iterator[list[bytes]]:
    """One transaction's worth at a time."""
    return (ids[at : at + DROPPED] for at in range(0, len(ids), DROPPED))


def _ids_of(item: Item) -> list[bytes]:
    """The messages whose rows may name a record."""
    return [item.id] if item.kind == record.MESSAGE else item.ids
