"""One log of a dead process: its end found, stated durably, and what lies before it.

Rules of this file:

* Without the log's flock nothing is touched: a living process has it.  What was read before the
  lock was there is read again under it.
* Damage never means "delete", and nothing from quarantine/ is put back by itself.
* A poisoned log ends where its successor says, and is never written to again, not even a seal.
* What is shown is durable.  The last group of a log without a seal may lie in the page cache alone
  (metad.store.log.successor) unless the index has it, which is told of a group after its sync: it
  is written again, and the log ends in front of it.
* Where no log is available for the last group of survivors, theirs ends in front of it: nothing was
  freed for copies that the index lacks.  In the page cache they would pass for living ones.
* Another log that cannot be sealed, and that no other can end, is used as it is: what was read is
  served.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from metad.errors import MetadError
from metad.store.identity import Store
from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.header import FREE, LogHeader
from metad.store.log.successor import read_ended, write_successor
from metad.store.log.tail import Report, Tail, TailReader, entries_from
from metad.store.log.writer import Footer, seal
from metad.store.log_table import Allocation, LogTable, State
from metad.system.osio import Osio


class Numbers:
    """Numbers and lives for logs that recovery has to make.

    Beside a living hub the table gives them, to the dead process whose logs are recovered: it is
    recovered again if this recovery is killed.  Before there is one, they follow those of the logs.
    """

    def __init__(
        self,
        osio: Osio,
        logs: dict[int, LogHeader],
        unreadable: Iterable[int] = (),
        dead: tuple[LogTable, int] | None = None,
    ) -> None:
        self._osio = osio
        self._dead = dead
        self._number = max([*logs, *unreadable], default=0)
        self._life = max((log.life for log in logs.values()), default=0)

    def take(self, generation: int) -> Allocation:
        """Raises RefusedError."""
        now = self._osio.time_ns() // 10**9
        if self._dead is not None:
            table, owner = self._dead
            return table.allocate(generation, now, owner=owner)
        self._number += 1
        self._life = max(self._life + 1, now)
        return Allocation(self._number, self._life, fresh=True)

    def give_back(self, given: Allocation) -> None:
        """Nothing was made of it.  The life is used all the same."""
        if self._dead is not None:
            self._dead[0].put_back(given, State.NONE if given.fresh else State.FREE)


class Recovered(NamedTuple):
    """A log after its recovery: its tail not yet entered, beyond `start`."""

    log: LogHeader
    state: State
    start: int
    tail: Tail


class LogRecovery:
    """Recovers one log after another.  `numbers` names the logs that it has to make.

    `has_index`: the index knows what is entered of each log; it is not being rebuilt.
    """

    def __init__(
        self, osio: Osio, store: Store, report: Report, numbers: Numbers, *, has_index: bool
    ) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self._tails = TailReader(osio, store, report)
        self._numbers = numbers
        self._has_index = has_index

    @property
    def damaged(self) -> int:
        """Stretches that were set aside."""
        return self._tails.damaged

    def recover(self, log: LogHeader, start: int, stops: dict[int, int]) -> list[Recovered]:
        """Find the end of a log and what lies beyond `start`, and state the end.

        With the log comes the one that was made for its last group, if one was.
        """
        fd = log_files.lock_log(self._osio, self._store.logs, log.number)
        try:
            self._must_be_in_life(fd, log)
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

    def _must_be_in_life(self, fd: int, log: LogHeader) -> None:
        """`log` was read before the lock was there: the log may have been freed since, and used
        again, and a seal of its old life would lie in the mail of the new one.

        Raises LogBusyError.
        """
        try:
            now = header.read(self._osio, fd, self._store.secret)
        except OSError:
            return  # `log` is what its records say
        if now is not None and (now.life, now.state) != (log.life, log.state):
            raise log_files.LogBusyError(f"log {log.number} has begun another life")

    def _ended(self, fd: int, one: Recovered) -> list[Recovered]:
        """State the end of a log: in itself, or in one that is made for its last group."""
        log, tail = one.log, one.tail
        if tail.unsynced and (with_successor := self._with_successor(fd, one)):
            return with_successor
        if tail.unsynced and log.generation and self._has_index:
            return [self._cut(fd, one)]
        try:
            return [one._replace(state=self._end(fd, log, one.start, tail))]
        except OSError as error:
            # Nothing more is written to that file; only another log can say where it ends.
            with_successor = self._with_successor(fd, one)
            if not with_successor:
                self._report(f"warning: log {log.number} is used without a seal: {error}")
            return with_successor or [one]

    def _with_successor(self, fd: int, one: Recovered) -> list[Recovered]:
        """The log without its last group, and the one that has it now; nothing if that cannot be
        made, as on a full disk: what was acknowledged is durable where it is."""
        log, tail = one.log, one.tail
        given = None
        try:
            ended = read_ended(self._osio, fd, log, tail)
            given = self._numbers.take(log.generation)
            successor = write_successor(self._osio, self._store, ended, given)
        except (OSError, MetadError, log_files.LogBusyError) as error:
            self._report(f"warning: log {log.number}: its last group stays where it is: {error}")
            if given is not None:
                self._numbers.give_back(given)
            return []
        moved = entries_from(tail.entries, ended.end)
        kept = tail.entries[: len(tail.entries) - len(moved)]
        old = one._replace(tail=tail._replace(entries=kept, end=ended.end))
        return [old, Recovered(successor.log, State.SEALED, successor.log.align, successor.tail)]

    def _cut(self, fd: int, one: Recovered) -> Recovered:
        """A log of survivors, sealed in front of its last group.

        Raises OSError: then nothing of the log is entered, and the next recovery tries again.
        """
        log, tail = one.log, one.tail
        ended = read_ended(self._osio, fd, log, tail)
        lost = entries_from(tail.entries, ended.end)
        kept = tail.entries[: len(tail.entries) - len(lost)]
        sequence = ended.records[0].header.sequence if ended.records else tail.sequence
        seal(self._osio, fd, log, ended.end, Footer(kept, sequence, one.start))
        self._report(f"warning: log {log.number} of survivors ends before its last group")
        return one._replace(tail=tail._replace(entries=kept, end=ended.end))

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
