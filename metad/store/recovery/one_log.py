"""One log of a dead process: finds its end, records it durably, and reads the part before it.

Rules of this file:

* Without the log's flock nothing is touched: a living process holds it.  Data read before the lock
  was taken is read again under it.
* Damage never means "delete", and nothing is restored from quarantine/ automatically.
* A poisoned log ends where its successor says, and is never written to again, not even with a seal.
* What is shown is durable.  The last group of a log without a seal may lie in the page cache alone
  (metad.store.log.successor) unless the index has it, which is told of a group after its sync: it
  is written again, and the log ends in front of it.
* The copies in such a group of survivors do not count: before a log was freed for them, a
  confirmation was written behind them (metad.store.gc.survivor_logs), so their originals are there.
  What else could tell that the group failed, another log's header, need not be readable.  The
  deletion records in it count, as they do in any other log's last group.  Where something is
  damaged, that may have been the confirmation: then all of it counts.
* Another log that cannot be sealed, and that no other can end, is used as it is: what was read is
  served.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from metad.errors import MetadError
from metad.store.identity import Store
from metad.store.index.rows import LogCounts
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import FREE, LogHeader
from metad.store.log.record import DELETION
from metad.store.log.scan import Found
from metad.store.log.successor import Ended, read_ended, write_successor
from metad.store.log.tail import Report, Tail, TailReader, entries_from
from metad.store.log.writer import Footer, seal
from metad.store.log_table import Allocation, LogState, LogTable
from metad.system.osio import Osio

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Numbers:
    """Numbers and lives for logs that recovery must make.

    In a living hub, the table assigns them to the dead process whose logs are recovered, so that
    they are recovered again if this recovery is killed.  Before a hub exists, they follow those of
    the logs.
    """

    def __init__(
        self,
        osio: Osio,
        logs: dict[int, LogHeader],
        unreadable: Iterable[int] = (),
        dead: tuple[LogTable, int] | None = None,
    ) -> None:
        self.taken: dict[int, int] = {}  # the life of each number that was given out
        self._osio = osio
        self._dead = dead
        self._number = max([*logs, *unreadable], default=0)
        self._life = max((log.life for log in logs.values()), default=0)

    def follow(self, known: Mapping[int, LogCounts]) -> None:
        """Before a hub exists: give no number or life of a log that the index still knows.

        Its file may be gone: a log in its place would pass for it.
        """
        self._number = max([self._number, *known])
        self._life = max([self._life, *(counts.life for counts in known.values())])

    def take(self, generation: int) -> Allocation:
        """Raises RefusedError."""
        now = self._osio.time_ns() // 10**9
        if self._dead is not None:
            table, owner = self._dead
            given = table.allocate(generation, now, owner=owner)
        else:
            self._number += 1
            self._life = max(self._life + 1, now)
            given = Allocation(self._number, self._life, fresh=True)
        self.taken[given.number] = given.life
        return given

    def give_back(self, given: Allocation, *, there: bool) -> None:
        """The log was not made.  Its life is used up nevertheless.

        `there`: its file still is; a free log was unlinked to be replaced.
        """
        if self._dead is not None:
            is_free = there and not given.fresh
            self._dead[0].put_back(given, LogState.FREE if is_free else LogState.NONE)


class Recovered(NamedTuple):
    """A log after its recovery: its tail not yet entered, beyond `start`."""

    log: LogHeader
    state: LogState
    start: int
    tail: Tail


class LogRecovery:
    """Recovers one log after another.  `numbers` assigns numbers to logs that it must make."""

    def __init__(self, osio: Osio, store: Store, report: Report, numbers: Numbers) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self._tails = TailReader(osio, store, report)
        self._numbers = numbers

    @property
    def damaged(self) -> int:
        """Ranges that were quarantined."""
        return self._tails.damaged

    def recover(self, log: LogHeader, start: int, stops: dict[int, int]) -> list[Recovered]:
        """Find the end of a log and the records beyond `start`, and record the end durably.

        Also returns the log that was made for its last group, if any.
        """
        fd = log_files.lock_log(self._osio, self._store.logs, log.number)
        try:
            self._must_be_in_life(fd, log)
            poisoned_at = stops.get(log.life)
            if poisoned_at is not None:
                tail = self._tails.scanned(fd, log, min(start, poisoned_at), poisoned_at)
                return [Recovered(log, LogState.SEALED, start, tail)]
            found = self._tails.seal(fd, log)
            if found is not None:
                tail = self._tails.sealed(fd, log, start, found)
                return [Recovered(log, LogState.SEALED, start, tail)]
            tail = self._tails.scanned(fd, log, start, log.seal_offset or None)
            return self._ended(fd, Recovered(log, LogState.SEALED, start, tail))
        finally:
            self._osio.close(fd)

    def _must_be_in_life(self, fd: int, log: LogHeader) -> None:
        """`log` was read before the lock was taken.  Since then the log may have been freed and
        reused, and a seal of its old life would overwrite mail of the new one.

        Raises LogBusyError.
        """
        try:
            now = header.read(self._osio, fd, self._store.secret)
        except OSError:
            return  # `log` is what its records say
        if now is not None and (now.life, now.state) != (log.life, log.state):
            raise log_files.LogBusyError(f"log {log.number} has begun another life")

    def _ended(self, fd: int, one: Recovered) -> list[Recovered]:
        """Record the end of a log: in itself, or in a log made for its last group."""
        log, tail = one.log, one.tail
        if tail.unsynced and log.generation and not tail.torn:
            return self._survivors_ended(fd, one)
        if tail.unsynced:
            successor = self._successor(fd, one)
            if successor is None:
                # No seal: it would name what a power cut may take, if a sync failed before.
                return [one]
            if successor:
                return successor
        try:
            return [one._replace(state=self._end(fd, log, one.start, tail))]
        except OSError as error:
            # Nothing more is written to that file; only another log can record where it ends.
            successor = self._successor(fd, one)
            if not successor:
                self._report(f"warning: log {log.number} is used without a seal: {error}")
            return successor or [one]

    def _survivors_ended(self, fd: int, one: Recovered) -> list[Recovered]:
        """A log of survivors, ended before its last group, whose deletion records stay.

        Raises OSError: then nothing of the log is entered, and the next recovery tries again.
        """
        ended = read_ended(self._osio, fd, one.log, one.tail)
        stay = [each for each in ended.records if _is_deletion(each)]
        if stay and (successor := self._with_successor(one, ended._replace(records=stay))):
            return successor
        try:
            return [self._cut(fd, one, ended)]
        except OSError:
            if stay or not (successor := self._with_successor(one, ended._replace(records=()))):
                raise
            return successor

    def _successor(self, fd: int, one: Recovered) -> list[Recovered] | None:
        """Like `_with_successor`, with the whole last group."""
        try:
            ended = read_ended(self._osio, fd, one.log, one.tail)
        except OSError as error:
            self._report(_stays(one.log, error))
            return None
        return self._with_successor(one, ended)

    def _with_successor(self, one: Recovered, ended: Ended) -> list[Recovered] | None:
        """The log without its last group, and the one that has it now.  Empty if there is no room
        for that: acknowledged mail is durable where it is.  None if the disk failed."""
        given = None
        try:
            given = self._numbers.take(one.log.generation)
            successor = write_successor(self._osio, self._store, ended, given)
        except (OSError, MetadError, log_files.LogBusyError) as error:
            self._report(_stays(one.log, error))
            if given is not None:
                there = log_files.is_there(self._osio, self._store.logs, given.number)
                self._numbers.give_back(given, there=there)
            is_failure = isinstance(error, OSError) and error.errno not in NO_ROOM
            return None if is_failure else []
        old = one._replace(tail=_in_front_of(ended.end, one.tail))
        return [old, Recovered(successor.log, LogState.SEALED, successor.log.align, successor.tail)]

    def _cut(self, fd: int, one: Recovered, ended: Ended) -> Recovered:
        """A log of survivors, sealed before its last group.  Raises OSError."""
        tail = _in_front_of(ended.end, one.tail)
        sequence = ended.records[0].header.sequence if ended.records else tail.sequence
        seal(self._osio, fd, one.log, ended.end, Footer(tail.entries, sequence, one.start))
        if len(tail.entries) < len(one.tail.entries):
            self._report(f"log {one.log.number} of survivors ends before its last group")
        return one._replace(tail=tail)

    def _end(self, fd: int, log: LogHeader, start: int, tail: Tail) -> LogState:
        """Seal a log, or free it if it was never used and nothing needs its header.

        The sync of the seal covers everything in the file.  Raises OSError.
        """
        if tail.end == log.align and not (tail.damaged or log.predecessor_life):
            log_files.mark_free(self._osio, fd, log)
            return LogState.FREE
        seal(self._osio, fd, log, tail.end, Footer(tail.entries, tail.sequence, start))
        return LogState.SEALED


def _is_deletion(found: Found) -> bool:
    return found.header.kind == DELETION and not found.header.is_confirmation


def _in_front_of(end: int, tail: Tail) -> Tail:
    """The part of a tail that lies before `end`."""
    behind = entries_from(tail.entries, end)
    return tail._replace(entries=tail.entries[: len(tail.entries) - len(behind)], end=end)


def _stays(log: LogHeader, error: Exception) -> str:
    return f"warning: log {log.number}: its last group stays where it is: {error}"


def predecessors(logs: dict[int, LogHeader]) -> dict[int, int]:
    """Where poisoned lives end, according to their successors."""
    return {
        log.predecessor_life: log.predecessor_end
        for log in logs.values()
        if log.predecessor_life and log.state != FREE
    }
