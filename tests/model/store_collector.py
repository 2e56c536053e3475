"""What the collector does, step by step.

    take the victim, copy what stays (page cache) -> sync -> index: new places -> confirmation
    -> header free, synced -> index: old places dropped -> row free

Rules of this file:

* It takes any log that is sealed and indexed to its end; one of survivors only if anything in it
  does not stay, or there would be no end to it.
* It carries out its decisions about a victim, whatever happens meanwhile.
"""

from __future__ import annotations

from tests.model.store_rules import (
    Rules,
    Steps,
    forgotten,
    freed,
    is_indexed,
    locked,
    sealed,
    spend,
    unanswered,
    with_log,
    with_row,
)
from tests.model.store_state import (
    ACTIVE,
    CAPACITY,
    DIRTY,
    FREE,
    FREEING,
    HOLE,
    IDLE,
    NOTHING,
    UNFOUNDED,
    Cells,
    Log,
    Row,
    State,
    end_of,
    enter,
    found,
    is_final,
    readable,
    stops,
    synced,
    unsynced,
    watermark,
)


class Collector(Rules):
    """The collector's steps."""

    def collector(self, state: State) -> Steps:
        """Every step that the collector may take now."""
        yield from getattr(self, f"_when_{state.collector.step}")(state)

    def _when_failed(self, state: State) -> Steps:
        """The next log records where the failed one ends."""
        for did, new in self._next_log(state, "C"):
            mine = new.collector
            if mine.log not in (state.collector.log, NOTHING):
                mine = mine._replace(step="idle", group=0)
            yield f"collector: {did}", new._replace(collector=mine)

    # -- between two collections

    def _when_idle(self, state: State) -> Steps:
        assert state.rows is not None
        mine = state.collector
        needs_log = False
        for number, row in enumerate(state.rows):
            if row.state == "collecting":
                yield from self._tidies(state, number)
            elif row.state == "sealed":
                if not is_indexed(state, number):
                    yield f"collector: enters the rest of log {number}", rest_entered(state, number)
                elif self._may_take(state, number):
                    group = self._survivors(state, number)
                    if group is None:
                        yield (
                            f"collector: log {number} and the index disagree: a rebuild",
                            suspect(state),
                        )
                    elif state.logs[number].survivors and len(group) == len(
                        readable(state.logs, number)
                    ):
                        continue
                    elif not group or self._fits(state, group):
                        yield from self._takes(state, number, group)
                    else:
                        needs_log = True
        if mine.log == NOTHING:
            if needs_log:
                for did, new in self._next_log(state, "C"):
                    yield f"collector: {did}", new
        elif state.logs[mine.log].records:
            yield f"collector: seals log {mine.log}", sealed(state, "C")

    @staticmethod
    def _fits(state: State, group: tuple[str, ...]) -> bool:
        log = state.collector.log
        return log != NOTHING and len(state.logs[log].records) + len(group) <= CAPACITY

    def _may_take(self, state: State, number: int) -> bool:
        log = state.logs[number]
        if log.header != ACTIVE or locked(state, number):
            return False
        if self.on("successors stay") and log.ends:
            return False  # the log that it ends is still there
        return self._gate(state) or not self.on("gate when copying")

    @staticmethod
    def _gate(state: State) -> bool:
        """Whether every survivors' log is indexed to its end, and none waits for recovery."""
        assert state.rows is not None
        return not any(
            log.survivors
            and log.header == ACTIVE
            and (row.owner in ("w", "c") or not is_indexed(state, number))
            for number, (log, row) in enumerate(zip(state.logs, state.rows, strict=True))
        )

    def _survivors(self, state: State, number: int) -> tuple[str, ...] | None:
        """The records of a victim to be copied; None: the index claims something that no log
        proves."""
        assert state.view is not None
        group: list[str] = []
        for record in readable(state.logs, number):
            if record == HOLE:
                continue
            what, message = record[:2], int(record[1])
            if record[0] == "D":
                is_noted = state.view.notes[message] >> number & 1
                if not is_noted and self.on("no row is no proof"):
                    return None
                elsewhere = state.view.places[message] & ~(1 << number)
                stays = bool(elsewhere) and self.on("needed deletions stay")
                stays |= bool(state.view.notes[message] & UNFOUNDED) and self.on("copies are known")
                is_untold = bool(state.view.tombs >> message & 1)
                stays |= is_untold and self.on("tombstones keep records")
                stays |= has_unread(state) and self.on("deletions outlast the unread")
            elif state.view.entries >> message & 1:
                stays = not self._is_elsewhere(state, number, message)
            elif self.on("death is proven") and not _is_deleted(state, message):
                return None
            else:
                stays = False
            if stays and what not in group:
                group.append(what)
        return tuple(group)

    def _is_elsewhere(self, state: State, number: int, message: int) -> bool:
        """Whether another log has a copy, which the index knows."""
        assert state.view is not None
        return any(
            state.view.places[message] >> other & 1
            and (found(state.logs, other, f"M{message}") or not self.on("copies are read"))
            and (self._is_relied_upon(state, other) or not self.on("copies are final"))
            for other in range(len(state.logs))
            if other != number
        )

    @staticmethod
    def _is_relied_upon(state: State, number: int) -> bool:
        return is_final(state.logs[number]) or number == state.collector.log

    def _takes(self, state: State, number: int, group: tuple[str, ...]) -> Steps:
        mine = state.collector
        row = Row("collecting", state.logs[number].life, "C")
        new = with_row(state, number, row)
        did = f"collector: takes log {number}"
        if not group:
            new = new._replace(collector=mine._replace(step="moved", victim=number))
            yield f"{did}, of which nothing stays", new
            return
        log = new.logs[mine.log]
        records = (*log.records, *(what + DIRTY for what in group))
        new = with_log(new, mine.log, log._replace(records=records, last=len(log.records)))
        taken = mine._replace(step="wrote", victim=number, group=len(group))
        new = new._replace(collector=taken)
        yield f"{did}, copies {' '.join(group)} to log {mine.log}", new

    # -- survivors

    def _when_wrote(self, state: State) -> Steps:
        mine = state.collector
        log = state.logs[mine.log]
        new = state._replace(collector=mine._replace(step="synced"))
        yield f"collector: syncs log {mine.log}", with_log(new, mine.log, synced(log))
        if not self.on("survivors durable first"):
            yield "collector: does without a sync", new
        if state.left.syncs:
            new = given_back(spend(with_log(state, mine.log, unsynced(log)), "syncs"))
            step = IDLE
            if self.on("failure is stated"):
                step = mine._replace(step="failed", victim=NOTHING)
            new = new._replace(collector=step)
            yield f"collector: the sync of log {mine.log} fails", new

    def _when_synced(self, state: State) -> Steps:
        assert state.view is not None
        mine = state.collector
        log = state.logs[mine.log]
        group = log.records[len(log.records) - mine.group :]
        index = enter(state.view, mine.log, log.life, group, len(log.records))
        moved = mine._replace(step="moved", group=0)
        new = state._replace(view=index, collector=moved)
        yield f"collector: enters the copies in log {mine.log}", new
        if not self.on("survivors entered first"):
            yield "collector: does not enter the copies", state._replace(collector=moved)
        if state.left.refusals:
            new = given_back(spend(state, "refusals"))
            new = new._replace(collector=mine._replace(step="idle", victim=NOTHING, group=0))
            if self.on("refusal ends the log"):
                new = sealed(new, "C")
            yield f"collector: the index refuses the copies in log {mine.log}", new

    # -- the end of the victim

    def _when_moved(self, state: State) -> Steps:
        mine = state.collector
        if not self._gate(state) and self.on("gate when freeing"):
            idle = mine._replace(step="idle", victim=NOTHING)
            yield (
                f"collector: gives log {mine.victim} back",
                given_back(state)._replace(collector=idle),
            )
            return
        if mine.log != NOTHING and self.on("confirmed before freed"):
            log = state.logs[mine.log]
            if log.sure < len(log.records):
                yield from self._confirms(state, log)
                return
        if not self.on("free before forgotten"):
            state = forgotten(state, mine.victim)
        log = state.logs[mine.victim]
        new = with_log(state, mine.victim, log._replace(header=FREEING))
        new = new._replace(collector=mine._replace(step="freeing"))
        yield f"collector: writes free to log {mine.victim}", new

    @staticmethod
    def _confirms(state: State, log: Log) -> Steps:
        """Written and synced in one step: one that is only written says no more."""
        mine = state.collector
        new = with_log(state, mine.log, log._replace(sure=len(log.records), last=0))
        yield f"collector: confirms the copies in log {mine.log}", new
        if state.left.syncs:
            new = given_back(spend(state, "syncs"))
            failed = mine._replace(step="failed", victim=NOTHING, group=0)
            yield f"collector: cannot confirm log {mine.log}", new._replace(collector=failed)

    def _when_freeing(self, state: State) -> Steps:
        mine = state.collector
        new = with_log(state, mine.victim, freed(self, state.logs[mine.victim]))
        new = new._replace(collector=mine._replace(step="freed"))
        yield f"collector: syncs log {mine.victim}, which is free", new

    def _when_freed(self, state: State) -> Steps:
        mine = state.collector
        number = mine.victim
        idle = mine._replace(step="idle", victim=NOTHING)
        new = forgotten(state, number)._replace(collector=idle)
        new = with_row(new, number, Row("free", state.logs[number].life))
        yield f"collector: the index forgets log {number}, the table says free", new
        if state.left.refusals:
            new = spend(state, "refusals")._replace(collector=idle)
            yield f"collector: the index refuses to forget log {number}", new

    # -- leftovers of an earlier collector

    def _tidies(self, state: State, number: int) -> Steps:
        """A log entered as being collected, which no living process has."""
        assert state.view is not None
        assert state.rows is not None
        if locked(state, number):
            return
        log, row = state.logs[number], state.rows[number]
        if log.header == ACTIVE:
            if log.life == state.view.marks[number][0]:
                new = with_row(state, number, Row("sealed", log.life))
                yield f"collector: log {number} was not freed: sealed again", new
            return
        if log.header == FREE or self.on("free is synced again"):
            state = with_log(state, number, freed(self, log))
        state = forgotten(state, number)
        mine = state.collector._replace(step="tidied", victim=number, row=row)
        yield (
            f"collector: log {number} is free: the index forgets it",
            state._replace(collector=mine),
        )

    def _when_tidied(self, state: State) -> Steps:
        assert state.rows is not None
        mine = state.collector
        number = mine.victim
        new = state._replace(collector=mine._replace(step="idle", victim=NOTHING, row=None))
        if state.rows[number] == mine.row or not self.on("tidying compares"):
            new = with_row(new, number, Row("free", state.logs[number].life))
            yield f"collector: log {number} is free in the table", new
        else:
            yield f"collector: the row of log {number} is another's now", new


def given_back(state: State) -> State:
    """The victim is sealed as before."""
    victim = state.collector.victim
    return with_row(state, victim, Row("sealed", state.logs[victim].life))


def rest_entered(state: State, number: int) -> State:
    """The index gets the missing records of a sealed log."""
    assert state.view is not None
    log = state.logs[number]
    end = end_of(log, stops(state.logs))
    rest = log.records[watermark(state, number) : end]
    index = enter(state.view, number, log.life, rest, end, buries=state.clustered)
    return state._replace(view=index)


def suspect(state: State) -> State:
    """The index is no longer trusted: everything stops, and the next start rebuilds it."""
    return down(state)._replace(view=None)


def down(state: State) -> State:
    """No process is left, and no shared memory."""
    return unanswered(state)._replace(
        rows=None, worker=IDLE, collector=IDLE, recovery=None, cells=Cells()
    )


def has_unread(state: State) -> bool:
    """Whether there is a log that the start had to leave out."""
    return any(row.state == "active" and not row.owner for row in state.rows or ())


def _is_deleted(state: State, message: int) -> bool:
    """Whether a log proves that a message was deleted: a record that the index has entered."""
    return any(
        record[:2] == f"D{message}"
        for number in range(len(state.logs))
        for record in readable(state.logs, number)[: watermark(state, number)]
    )
