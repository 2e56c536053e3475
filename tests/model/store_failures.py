"""Failures, and their recovery: for a dead process, and before a hub starts.

Rules of this file:

* A process is killed between any two steps, and another one is there at once.
* A power cut takes the index, the log table, and any choice of what was not durable.
* A recovery reads the row of a log, then its header, then works under the log's lock, then restores
  the row; between these steps anything may happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tests.model.store_collector import Collector, down
from tests.model.store_rules import (
    Steps,
    forgotten,
    free_rows,
    freed,
    is_indexed,
    killed,
    locked,
    spend,
    with_log,
    with_row,
    without_dead,
)
from tests.model.store_state import (
    ACTIVE,
    DURABLE,
    FREE,
    FREEING,
    FRESH,
    GONE,
    HOLE,
    IDLE,
    KEPT,
    MESSAGES,
    NOTHING,
    UNFOUNDED,
    Index,
    Log,
    Reader,
    Row,
    State,
    end_of,
    enter,
    forget,
    found,
    lags,
    put,
    readable,
    stops,
    synced,
    watermark,
)


class Hub(Collector):
    """All steps of the hub."""

    def successors(self, state: State) -> Steps:
        """The possible next steps: a sentence, and the resulting state (see `canonical`)."""
        if state.rows is None:
            yield from self._start(state)
        else:
            yield from self.worker(state)
            yield from self.collector(state)
            yield from self.recover(state)
            yield from self._forgets(state)
            if state.left.total:
                yield from self._kills(state)
                yield from self._flips(state)
        if state.left.cuts:
            yield from self._cuts(state)

    # -- recovery of a dead process's logs

    def recover(self, state: State) -> Steps:
        """The steps of a recovery beside living processes; one runs at a time."""
        assert state.rows is not None
        if state.recovery is None:
            for number, row in enumerate(state.rows):
                if row.owner in ("w", "c"):
                    reader = Reader("looked", number, row, FREE, 0)
                    yield (
                        f"recovery: reads the row of log {number}",
                        state._replace(recovery=reader),
                    )
        else:
            yield from getattr(self, f"_recovery_{state.recovery.step}")(state, state.recovery)

    def _recovery_looked(self, state: State, mine: Reader) -> Steps:
        """The header counts if the row is as it was before."""
        assert state.rows is not None
        number, log = mine.log, state.logs[mine.log]
        reader: Reader | None = mine._replace(step="read", header=log.header, life=log.life)
        if state.rows[number] != mine.row and self.on("rows compared after headers"):
            reader = None
        yield f"recovery: reads the header of log {number}", state._replace(recovery=reader)

    def _recovery_read(self, state: State, mine: Reader) -> Steps:
        """Take the log's lock, if no living process has it, and use the header read under it."""
        if not self.on("cell until entered"):
            state = state._replace(cells=state.cells._replace(dead=0))
        number, log = mine.log, state.logs[mine.log]
        header = log.header if self.on("freed by header under lock") else mine.header
        is_old = mine.row.life != log.life and mine.header == ACTIVE
        is_other = (log.life, log.header == ACTIVE) != (mine.life, mine.header == ACTIVE)
        goes_by_it = self.on("freed by header under lock") and self.on(
            "sealed by header under lock"
        )
        if locked(state, number) or (is_other and goes_by_it):
            waits = mine._replace(step="free") if mine.header != ACTIVE else None
            yield f"recovery: log {number} is another's", state._replace(recovery=waits)
        elif is_old and log.records and not self.on("sealed by header under lock"):
            spoiled = log._replace(records=(HOLE, *log.records[1:]))
            new = with_log(state, number, spoiled)._replace(recovery=mine._replace(step="entered"))
            yield f"recovery: seals log {number} where its old life ended", new
        elif header == ACTIVE:
            for did, new in self._ended(state, number, mine.row.owner):
                is_free = new.logs[number].header == FREE
                step = "free" if is_free else "entered" if is_indexed(new, number) else "ended"
                yield f"recovery: {did}", new._replace(recovery=mine._replace(step=step))
        else:
            if self.on("free is synced again") or log.header == FREE:
                state = with_log(state, number, freed(self, log))
            if self.on("forgotten under lock"):
                new = forgotten(state, number)._replace(recovery=mine._replace(step="free"))
                yield f"recovery: frees log {number} again, the index forgets it", new
            else:
                new = state._replace(recovery=mine._replace(step="forgets"))
                yield f"recovery: frees log {number} again", new

    def _recovery_forgets(self, state: State, mine: Reader) -> Steps:
        new = forgotten(state, mine.log)._replace(recovery=mine._replace(step="free"))
        yield f"recovery: the index forgets log {mine.log}", new

    def _recovery_ended(self, state: State, mine: Reader) -> Steps:
        """Enter the messages; the watermark stays if deletions follow."""
        assert state.view is not None
        number, log = mine.log, state.logs[mine.log]
        start, end = watermark(state, number), end_of(log, stops(state.logs))
        tail = log.records[start:end]
        messages = tuple(record for record in tail if record[0] == "M")
        is_all = len(messages) == len(tail)
        index = enter(state.view, number, log.life, messages, end if is_all else start)
        step = mine._replace(step="entered" if is_all else "deletes")
        new = state._replace(view=index, recovery=step)
        yield f"recovery: enters the messages of log {number}", new

    def _recovery_deletes(self, state: State, mine: Reader) -> Steps:
        assert state.view is not None
        number, log = mine.log, state.logs[mine.log]
        end = end_of(log, stops(state.logs))
        tail = log.records[watermark(state, number) : end]
        deletions = tuple(record for record in tail if record[0] == "D")
        index = enter(state.view, number, log.life, deletions, end, buries=state.clustered)
        new = state._replace(view=index, recovery=mine._replace(step="entered"))
        yield f"recovery: applies the deletions of log {number}", new

    def _recovery_entered(self, state: State, mine: Reader) -> Steps:
        new = self._restored(state, mine, "sealed")
        yield f"recovery: restores the row of log {mine.log}", new

    def _recovery_free(self, state: State, mine: Reader) -> Steps:
        yield f"recovery: the row of log {mine.log} says free", self._restored(state, mine, "free")

    def _restored(self, state: State, mine: Reader, what: str) -> State:
        """The row as it was found on disk, if the log has no new owner meanwhile."""
        assert state.rows is not None
        if state.rows[mine.log] == mine.row or not self.on("restoring compares"):
            state = with_row(state, mine.log, Row(what, state.logs[mine.log].life))
        return without_dead(state._replace(recovery=None))

    # -- the end of a log without a seal

    def _ended(self, state: State, number: int, owner: str) -> Steps:
        """Record where a log ends: by a seal, or by the log to which its last group is copied."""
        log = state.logs[number]
        if log.seal != NOTHING or log.life in stops(state.logs):
            yield f"log {number} has an end", state
        elif not log.records and log.ends is None:
            yield f"frees log {number}, which is empty", with_log(state, number, freed(self, log))
        else:
            start = max(_last_group(state, number), log.sure)
            if start < len(log.records) and self.on("last group is copied"):
                is_torn = HOLE in log.records[start:]  # that may have been the confirmation
                if log.survivors and self.on("survivors are cut") and not is_torn:
                    yield from self._cut(state, number, start, owner)
                    return
                copied = list(self._copied(state, number, start, owner, log.records[start:]))
                yield from copied or [self._in_place(state, number)]
            else:
                new = synced(log)._replace(seal=len(log.records), sure=0, last=0)
                yield f"seals log {number}", with_log(state, number, new)

    @staticmethod
    def _in_place(state: State, number: int) -> tuple[str, State]:
        """No log is available for the last group; what was acknowledged is durable there."""
        log = state.logs[number]
        new = synced(log)._replace(seal=len(log.records), sure=0, last=0)
        return f"seals log {number} with its last group", with_log(state, number, new)

    def _cut(self, state: State, number: int, start: int, owner: str) -> Steps:
        """The originals of the copies in the last group are there; its deletion records stay, if a
        log is available for them."""
        log = state.logs[number]
        deletions = tuple(record for record in log.records[start:] if record[0] == "D")
        copied = list(self._copied(state, number, start, owner, deletions)) if deletions else []
        new = synced(log._replace(records=log.records[:start], seal=start, sure=0, last=0))
        did = f"seals log {number} in front of its last group"
        yield from copied or [(did, with_log(state, number, new))]

    def _copied(
        self, state: State, number: int, start: int, owner: str, records: tuple[str, ...]
    ) -> Steps:
        """A free log gets these of the last group, complete and durable, and ends the old one."""
        log = state.logs[number]
        group = tuple(record[:2] + DURABLE for record in records if record != HOLE)
        heir = Log(ACTIVE, FRESH, log.survivors, (log.life, start), group, len(group))
        if state.rows is None:
            others = [number for number, log in enumerate(state.logs) if log.header == FREE][:1]
        else:
            others = [
                other
                for other in free_rows(state)
                if state.logs[other].header == FREE or not self.on("header read before copying")
            ]
        for other in others:
            new = with_log(state, other, heir)
            if new.rows is not None:
                new = with_row(new, other, Row("active", FRESH, owner))
            yield f"copies the last group of log {number} to log {other}", new

    # -- a start

    def _start(self, state: State) -> Steps:
        """Each log's end, then the index, then the table; no other process is there."""
        is_ready = True
        for number, log in enumerate(state.logs):
            if log.header == FREEING:
                is_ready = False
                yield f"start: frees log {number} again", with_log(state, number, freed(self, log))
            if log.header == ACTIVE and log.seal == NOTHING and log.life not in stops(state.logs):
                is_ready = False
                for did, new in self._ended(state, number, ""):
                    yield f"start: {did}", new
        if is_ready:
            yield "start: the hub runs", self._running(state)
            if state.left.unread:
                for number, log in enumerate(state.logs):
                    if log.header == ACTIVE:
                        yield from self._unread(state, number)
            if not self.on("deletions come last"):
                yield "start: the hub runs", self._running(state, -1)

    def _unread(self, state: State, number: int) -> Steps:
        """A log cannot be read.  Where it states the end of a log of survivors, that log is ended
        without its word.

        Of a worker's log, and where a power cut has torn the last group, what was refused would
        count."""
        log, broken = state.logs[number], NOTHING
        if log.ends is not None:
            lives = [other.life if other.header == ACTIVE else 0 for other in state.logs]
            broken = lives.index(log.ends[0]) if log.ends[0] in lives else NOTHING
        did = f"start: the hub runs without log {number}, which is unreadable"
        new = spend(state, "unread")
        if broken == NOTHING:
            yield did, self._running(new, without=number)
            return
        is_torn = HOLE in new.logs[broken].records
        if not new.logs[broken].survivors or new.logs[broken].seal != NOTHING or is_torn:
            return
        deaf = with_log(new, number, log._replace(ends=None))
        for how, ended in self._ended(deaf, broken, ""):
            end = len(ended.logs[broken].records)
            end = stops(ended.logs).get(ended.logs[broken].life, end)
            said = log._replace(ends=(new.logs[broken].life, end))
            ended = with_log(ended, number, said)  # noqa: PLW2901 - as it is when it can be read
            yield f"{did}; {how}", self._running(ended, without=number)

    def _running(self, state: State, order: int = 1, without: int = NOTHING) -> State:
        """The index, rebuilt or brought up to date, and the table from the headers."""
        index, logs = state.view, state.logs
        if index is None:
            index = Index(0, (0,) * len(MESSAGES), ((0, 0),) * len(logs))
        for kinds in ("M", "D") if self.on("deletions come last") else ("MD",):
            for number, log in list(enumerate(logs))[::order]:
                if number == without:
                    continue
                if log.header == FREE:
                    index = forget(index, number)
                    continue
                life, mark = index.marks[number]
                start = mark if life == log.life else 0
                tail = readable(logs, number)[start:]
                some = tuple(record for record in tail if record[0] in kinds)
                end = start + len(tail) if "D" in kinds else start
                index = enter(
                    index, number, log.life, some, end,
                    founded=state.view is None, remembers=self.on("deletions are remembered"),
                    buries=state.clustered,
                )  # fmt: skip
        if state.view is None and not self.on("a rebuild makes tombstones"):
            index = index._replace(tombs=0)
        rows = tuple(Row("free" if log.header == FREE else "sealed", log.life) for log in logs)
        if without != NOTHING:
            rows = put(rows, without, Row("active", logs[without].life))
        return state._replace(view=index, rows=rows)

    # -- the other members of a cluster

    def _forgets(self, state: State) -> Steps:
        """All members have had a tombstone for long enough: no copy of its message comes any more.

        It stays while a copy lies here, and while the index may lack one.
        """
        assert state.view is not None
        for message in MESSAGES:
            is_here = state.view.places[message] or lags(state, f"M{message}")
            if not self.on("forgotten in quiet"):
                is_here = state.view.places[message]
            if state.view.tombs >> message & 1 and not is_here:
                notes = put(state.view.notes, message, state.view.notes[message] & ~UNFOUNDED)
                index = state.view._replace(notes=notes, tombs=state.view.tombs & ~(1 << message))
                new = state._replace(view=index, messages=put(state.messages, message, GONE))
                yield f"the cluster forgets the tombstone of M{message}", new

    # -- failures

    def _kills(self, state: State) -> Steps:
        if state.left.kills:
            if state.worker != IDLE:
                is_known = self.on("cell outlives the worker")
                yield "kill -9 of the worker", killed(state, "W", is_known=is_known)
            if state.collector != IDLE:
                yield "kill -9 of the collector", killed(state, "C")
            if state.recovery is not None:
                yield "kill -9 of the recovery", spend(state, "kills")._replace(recovery=None)
        if state.left.halts:
            yield "kill -9 of the whole hub", down(spend(state, "halts"))

    @staticmethod
    def _flips(state: State) -> Steps:
        """One wrong entry, place or row."""
        if not state.left.flips:
            return
        assert state.rows is not None
        assert state.view is not None
        new = spend(state, "flips")
        index = state.view._replace(wrong=True)
        for message in MESSAGES:
            if not state.view.entries >> message & 1 and state.view.notes[message]:
                places, notes = put(index.places, message, 0), put(index.notes, message, 0)
                yield (
                    f"the index loses the row of M{message}",
                    new._replace(view=index._replace(places=places, notes=notes)),
                )
            if state.view.entries >> message & 1 and state.messages[message] == KEPT:
                entries = index.entries & ~(1 << message)
                yield (
                    f"the index loses the entry of M{message}",
                    new._replace(view=index._replace(entries=entries)),
                )
                for number, row in enumerate(state.rows):
                    if row.state == "sealed" and not found(state.logs, number, f"M{message}"):
                        bits = index.places[message] | 1 << number
                        yield (
                            f"the index has a false place of M{message}",
                            new._replace(
                                view=index._replace(places=put(index.places, message, bits))
                            ),
                        )
        for number, row in enumerate(state.rows):
            if row.state == "sealed":
                yield (
                    f"the table says free of log {number}",
                    with_row(new, number, row._replace(state="free")),
                )

    @staticmethod
    def _cuts(state: State) -> Steps:
        new = down(spend(state, "cuts"))._replace(view=None)
        for logs in product(*map(_after_cut, state.logs)):
            yield "power cut", new._replace(logs=logs)


def _after_cut(log: Log) -> Iterator[Log]:
    """A log after a possible power cut."""
    if log.header == FREEING:
        yield Log(FREE, log.life)
    kinds = [(r,) if r[2] == DURABLE or r == HOLE else (r[:2] + DURABLE, HOLE) for r in log.records]
    for records in product(*kinds):
        left = list(records)
        while left and left[-1] == HOLE:
            left.pop()
        header = ACTIVE if log.header == FREEING else log.header
        yield log._replace(header=header, records=tuple(left))


def _last_group(state: State, number: int) -> int:
    """The beginning of the group that is not known to be durable."""
    log = state.logs[number]
    records = log.records
    if log.survivors:
        return max(log.last, watermark(state, number) if state.view is not None else 0)
    if state.view is not None:
        return watermark(state, number)
    at = len(records) - 1
    while at > 0 and records[at - 1][2] not in (DURABLE, HOLE[2]):
        at -= 1
    return at
