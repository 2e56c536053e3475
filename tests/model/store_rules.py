"""The steps of a worker and the collector, by the rules of the store.

Rules of this file:

* A step is what happens between two moments at which a process may be killed: one write, one
  sync, one index transaction, one change of a row.
* Every rule has a name, in RULES.  A mutant is the model with some of them switched off.
* A process reads in the step that uses the data; only a recovery reads earlier, because it may be
  stopped in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.store_state import (
    ACTIVE,
    BURIED,
    CAPACITY,
    COPIED,
    DEAD,
    DIRTY,
    FREE,
    FRESH,
    GOING,
    GONE,
    IDLE,
    KEPT,
    MESSAGES,
    NEW,
    NOTHING,
    SENT,
    UNKNOWN,
    UNSURE,
    Log,
    Process,
    Row,
    State,
    end_of,
    enter,
    forget,
    put,
    stops,
    synced,
    unsynced,
    watermark,
)

Steps = Iterator[tuple[str, State]]

RULES = {
    "answer after sync": "250 and +OK come after the sync",
    "deletions entered first": "+OK comes after the index has the deletion",
    "cell before answer": "sessions can know that mail is not entered before its 250",
    "sessions wait": "a session waits for mail that was acknowledged and is not entered",
    "cell outlives the worker": "what a dead worker has not entered is known until its recovery",
    "cell until entered": "recovery has entered a log before its worker's cell is cleared",
    "entered before the seal": "what was answered is entered before its log is sealed",
    "failed sync is final": "a failed sync is never tried again on that log",
    "end stated first": "451 comes after the next log states where the failed one ends",
    "watermark is exact": "the watermark is the end of what is entered",
    "a life is new": "a log is reused under a life that no log has had",
    "header read before reuse": "a log is reused if its header, under its lock, is free and of the"
    " life that the table names",
    "nothing is appended after recovery": "no log is appended to by a second process",
    "survivors durable first": "survivors are durable before the index hears of them",
    "survivors entered first": "survivors are entered before the victim is freed",
    "refusal ends the log": "a survivors' log whose group the index refused is ended",
    "failure is stated": "a survivors' log whose sync failed is ended by its successor at once",
    "gate when copying": "no collection begins while a survivors' log is not indexed to its end",
    "gate when freeing": "no log is freed while a survivors' log is not indexed to its end",
    "needed deletions stay": "a deletion record is kept while a copy has a place elsewhere",
    "no row is no proof": "a deletion record is dropped only if the message's row notes it",
    "copies are known": "a deletion record is kept if its message's row was made for a deletion",
    "deletions outlast the unread": "a deletion record is kept while a log could not be read",
    "death is proven": "a message is dead by a deletion record that was read, not by the index",
    "copies are read": "a copy elsewhere counts if it was read and verified",
    "successors stay": "a log that states another's end outlives it",
    "free before forgotten": "places are dropped when the header that says free is durable",
    "tidying compares": "tidying changes a row if owner and life are as it read them",
    "restoring compares": "recovery restores a row if owner and life are as it read them",
    "rows compared after headers": "recovery believes a header if the row is the same afterwards",
    "freed by header under lock": "recovery frees a log by the header read under the log's lock",
    "sealed by header under lock": "recovery seals a log by the header read under the log's lock",
    "forgotten under lock": "recovery has the index forget a free log under the log's lock",
    "free is synced again": "a log found free is marked free again, and synced",
    "last group is copied": "the last group of an unsealed log is copied",
    "header read before copying": "the log for a last group is taken if its own header says free",
    "deletions come last": "a start enters the messages of all logs before any deletion",
    "deletions are remembered": "a message is not entered where its deletion is noted",
    "confirmed before freed": "a log is freed when a confirmation covers what was copied",
    "survivors are cut": "copies in a last group of survivors count behind a confirmation alone",
    "copies are final": "a copy in a log without a seal is made again, unless that log is in use",
    "tombstones keep records": "a deletion record is kept while its tombstone stands",
    "a rebuild makes tombstones": "a rebuild makes a tombstone of every deletion record",
    "forgotten in quiet": "a tombstone is forgotten when the index lacks no copy of its message",
}


class Rules:
    """The rules, without those that a mutant lacks, and the steps that they allow."""

    def __init__(
        self,
        off: frozenset[str] = frozenset(),
        deletable: tuple[int, ...] = (0,),
        *,
        clustered: bool = False,
    ) -> None:
        """`clustered`: a copy of a message may come, once, when it is deleted already."""
        assert off <= RULES.keys()
        self.clustered = clustered
        self._off = off
        self._deletable = deletable

    def on(self, rule: str) -> bool:
        assert rule in RULES
        return rule not in self._off

    # -- a new log

    def _next_log(self, state: State, who: str) -> Steps:
        """The table gives the first log whose row is free, and its next life begins there.

        The process may be killed in between, when only the table knows of it.
        """
        process = state.worker if who == "W" else state.collector
        for number in free_rows(state):
            named = state.rows[number].life if state.rows else 0
            taker = process._replace(taking=number, named=named)
            given = with_row(state, number, Row("preparing", FRESH, who))
            yield self._begin(with_process(given, who, taker), taker, who)
            if state.left.kills:
                yield f"is given log {number} and killed", killed(given, who)

    def _begin(self, state: State, process: Process, who: str) -> tuple[str, State]:
        """Begin the log's next life, if its own header says that it is free.

        The next log of a process whose last one failed records where that one ends.
        """
        number, log = process.taking, state.logs[process.taking]
        done = process._replace(taking=NOTHING, named=0)
        is_free = log.header == FREE and log.life == process.named and not locked(state, number)
        if self.on("header read before reuse") and not is_free:
            state = with_row(state, number, Row("collecting", FRESH, who))
            return f"leaves log {number} alone", with_process(state, who, done)
        ends = None
        if process.step == "failed":
            broken = state.logs[process.log]
            failed = process.group if who == "C" else 1
            ends = (broken.life, len(broken.records) - failed)
        is_new = self.on("a life is new")
        life = FRESH if is_new else log.life
        old = () if is_new else log.records
        new = Log(ACTIVE, life, who == "C", ends, old)
        done = done._replace(log=number, group=0)
        state = with_row(with_log(state, number, new), number, Row("active", life, who))
        said = f", which ends log {process.log} at {ends[1]}" if ends else ""
        return f"begins log {number}{said}", with_process(state, who, done)

    # -- the worker

    def worker(self, state: State) -> Steps:
        """Every step that the worker may take now, with its remaining failures."""
        step = state.worker.step
        if state.cells.living and state.worker.log != NOTHING:
            yield from self._worker_enters_answered(state)
        if step == "idle":
            yield from self._worker_idle(state)
        elif step == "wrote":
            yield from self._worker_syncs(state)
        elif step == "synced":
            yield from self._worker_enters(state)
        elif step == "behind":
            yield "worker: the index catches up", self._entered(state)
        elif step == "untold":
            new = _raised(state, state.worker.record)
            new = new._replace(worker=state.worker._replace(step="idle", record=""))
            yield "worker: sessions can know it", new
        elif step == "failed":
            yield from self._worker_states_the_end(state)

    def _worker_states_the_end(self, state: State) -> Steps:
        """The next log does, then the client is refused."""
        if state.cells.living:
            return
        for did, new in self._next_log(state, "W"):
            if new.worker.log in (state.worker.log, NOTHING):
                yield f"worker: {did}", new
            else:
                yield f"worker: {did}, then refuses {state.worker.record}", self._refused(new)

    def _worker_idle(self, state: State) -> Steps:
        assert state.rows is not None
        worker = state.worker
        if worker.log == NOTHING:
            if any(self._requests(state)):
                for did, new in self._next_log(state, "W"):
                    yield f"worker: {did}", new
            if not self.on("nothing is appended after recovery"):
                for number, row in enumerate(state.rows):
                    if row.state == "sealed" and len(state.logs[number].records) < CAPACITY:
                        new = with_row(state, number, Row("active", row.life, "W"))
                        new = new._replace(worker=worker._replace(log=number))
                        yield f"worker: goes on with log {number}", new
            return
        log = state.logs[worker.log]
        if len(log.records) < CAPACITY:
            for record in self._requests(state):
                yield f"worker: writes {record} to log {worker.log}", self._write(state, record)
        if state.cells.living and self.on("entered before the seal"):
            return
        if log.records and self.on("nothing is appended after recovery"):
            yield f"worker: seals log {worker.log}", sealed(state, "W")

    def _requests(self, state: State) -> Iterator[str]:
        """What clients may ask for: the next message, the deletion of one that is listed; and
        another member: that a copy is taken."""
        assert state.view is not None
        for message in MESSAGES:
            if state.messages[message] == NEW:
                yield f"M{message}"
                break
        for message in MESSAGES:
            if state.messages[message] == BURIED:
                yield f"M{message}"
        for message in self._deletable:
            is_listed = state.view.entries >> message & 1
            if is_listed and state.messages[message] in (KEPT, UNKNOWN, UNSURE):
                yield f"D{message}"

    def _write(self, state: State, record: str) -> State:
        worker, log = state.worker, state.logs[state.worker.log]
        at = len(log.records) if self.on("a life is new") else worker.group
        records = (*log.records[:at], record + DIRTY, *log.records[at + 1 :])
        before = state.messages[int(record[1])]
        if record[0] == "M":
            state = answered(state, record, SENT if before == NEW else COPIED)
        else:
            state = answered(state, record, GOING[before])
        worker = worker._replace(step="wrote", record=record, group=at + 1)
        state = with_log(state, worker.log, log._replace(records=records))._replace(worker=worker)
        return state if self.on("answer after sync") else acknowledged(state, record)

    def _worker_syncs(self, state: State) -> Steps:
        worker, log = state.worker, state.logs[state.worker.log]
        new = state._replace(worker=worker._replace(step="synced"))
        yield f"worker: syncs log {worker.log}", with_log(new, worker.log, synced(log))
        if state.left.syncs:
            new = spend(state, "syncs")._replace(worker=worker._replace(step="failed"))
            if not self.on("failed sync is final"):
                new = new._replace(worker=worker)  # and retries
            elif not self.on("end stated first"):
                new = self._refused(new)
                new = new._replace(worker=IDLE)
            new = with_log(new, worker.log, unsynced(log))
            yield f"worker: the sync of log {worker.log} fails", new

    def _worker_enters(self, state: State) -> Steps:
        """The group is durable.  Mail is acknowledged now; a deletion is entered first, with
        everything acknowledged before it."""
        worker = state.worker
        if worker.record[0] == "M" or not self.on("deletions entered first"):
            new = acknowledged(state, worker.record)
            new = new._replace(worker=worker._replace(step="idle", record=""))
            told = _raised(new, worker.record)
            if not self.on("sessions wait"):
                told = new
            elif not self.on("cell before answer"):
                told = new._replace(worker=worker._replace(step="untold"))
            yield f"worker: {worker.record} is answered", told
            return
        yield f"worker: {worker.record} is entered and answered", self._entered(state)
        if state.left.refusals:
            new = _refused_by_index(acknowledged(spend(state, "refusals"), worker.record))
            new = new._replace(worker=worker._replace(step="behind"))
            yield f"worker: the index refuses {worker.record}, which is answered", new

    def _worker_enters_answered(self, state: State) -> Steps:
        """One transaction, at any moment after the acknowledgements, even while a group is
        pending."""
        worker = state.worker
        under_way = worker.step in ("wrote", "synced", "failed")
        yield "worker: enters what was answered", self._caught_up(state, int(under_way))
        if state.left.refusals and worker.step == "idle":
            new = _refused_by_index(spend(state, "refusals"))
            new = new._replace(worker=worker._replace(step="behind"))
            yield "worker: the index refuses what was answered", new

    def _entered(self, state: State) -> State:
        """With the group: it is the end of an index that lagged."""
        record = state.worker.record
        idle = state.worker._replace(step="idle", record="")
        new = self._caught_up(state._replace(worker=idle), 0)
        return acknowledged(new, record) if record else new

    def _caught_up(self, state: State, under_way: int) -> State:
        """The index has all records of the worker's log, but for those `under_way`."""
        assert state.view is not None
        worker = state.worker
        log = state.logs[worker.log]
        end = (len(log.records) if self.on("a life is new") else worker.group) - under_way
        tail = log.records[watermark(state, worker.log) : end]
        mark = end + (not self.on("watermark is exact"))
        index = enter(
            state.view, worker.log, log.life, tail, mark,
            remembers=self.on("deletions are remembered"), buries=state.clustered,
        )  # fmt: skip
        return without_late(state._replace(view=index, cells=state.cells._replace(living=0)))

    @staticmethod
    def _refused(state: State) -> State:
        """The client is told that it failed."""
        worker = state.worker
        what = state.messages[int(worker.record[1])]
        before = {going: before for before, going in GOING.items()}
        if what != COPIED:
            state = answered(state, worker.record, before.get(what, GONE))
        return state._replace(worker=worker._replace(step="idle", record=""))


# -- small changes


def with_log(state: State, number: int, log: Log) -> State:
    return state._replace(logs=put(state.logs, number, log))


def with_row(state: State, number: int, row: Row) -> State:
    assert state.rows is not None
    return state._replace(rows=put(state.rows, number, row))


def with_process(state: State, who: str, process: Process) -> State:
    return state._replace(worker=process) if who == "W" else state._replace(collector=process)


def answered(state: State, record: str, what: str) -> State:
    """What the client knows now about the message of a record."""
    return state._replace(messages=put(state.messages, int(record[1]), what))


def acknowledged(state: State, record: str) -> State:
    if record[0] == "D":
        return answered(state, record, BURIED if state.clustered else GONE)
    if state.messages[int(record[1])] in DEAD:
        return state
    return answered(state, record, KEPT)


def _raised(state: State, record: str) -> State:
    """Sessions know that the index lacks a message."""
    living = state.cells.living | 1 << int(record[1])
    return state._replace(cells=state.cells._replace(living=living))


def _refused_by_index(state: State) -> State:
    """Records that the worker has not entered appear later."""
    cells, record = state.cells, state.worker.record
    late = cells.late | cells.living | (1 << int(record[1]) if record else 0)
    return state._replace(cells=cells._replace(living=0, late=late))


def spend(state: State, kind: str) -> State:
    """One fewer failure may still happen."""
    left = state.left
    less = {"total": left.total - 1, kind: getattr(left, kind) - 1}
    left = left._replace(**less)
    return state._replace(left=left if left.total else type(left)())


def locked(state: State, number: int) -> bool:
    """Whether a living process has the log's lock."""
    return number in (state.worker.log, state.collector.log) or (
        number == state.collector.victim and state.collector.step != "tidied"
    )


def forgotten(state: State, number: int) -> State:
    """The index drops all places in a log."""
    assert state.view is not None
    return state._replace(view=forget(state.view, number))


def free_rows(state: State) -> list[int]:
    """Logs that the table may allocate: one of each equivalent group."""
    assert state.rows is not None
    alike: dict[tuple[Log, bool, bool], int] = {}
    reading = state.recovery.log if state.recovery is not None else NOTHING
    for number, row in enumerate(state.rows):
        if row.state == "free":
            plain = state.logs[number]._replace(life=0)
            alike.setdefault((plain, number == reading, number == state.collector.victim), number)
    return list(alike.values())


def killed(state: State, who: str, *, is_known: bool = True) -> State:
    """After kill -9 of a process: its rows wait for a recovery, its clients for an answer.

    `is_known`: sessions know what the worker had not entered.
    """
    if who == "W":
        cells = state.cells
        dead = cells.dead | (cells.living if is_known else 0)
        state = unanswered(state)._replace(cells=cells._replace(living=0, dead=dead))
    state = with_process(state, who, IDLE)
    owner = who.lower()
    rows = tuple(r._replace(owner=owner) if r.owner == who else r for r in state.rows or ())
    return spend(without_dead(state._replace(rows=rows)), "kills")


def without_dead(state: State) -> State:
    """A dead worker whose logs are recovered is removed, with its pending entries."""
    if any(row.owner == "w" for row in state.rows or ()):
        return state
    return without_late(state._replace(cells=state.cells._replace(dead=0)))


def without_late(state: State) -> State:
    """Records that the index refused are entered, unless a dead worker left them."""
    if any(row.owner == "w" for row in state.rows or ()) or state.worker.step == "behind":
        return state
    return state._replace(cells=state.cells._replace(late=0))


def unanswered(state: State) -> State:
    """The worker is gone: clients waiting for its answer will not get it."""
    changed = {SENT: UNKNOWN} | dict.fromkeys(GOING.values(), UNSURE)
    return state._replace(messages=tuple(changed.get(one, one) for one in state.messages))


def sealed(state: State, who: str) -> State:
    """The process seals the log that it appends to."""
    process = state.worker if who == "W" else state.collector
    number, log = process.log, state.logs[process.log]
    state = with_log(state, number, synced(log)._replace(seal=len(log.records), sure=0, last=0))
    state = with_row(state, number, Row("sealed", log.life))
    return with_process(state, who, process._replace(log=NOTHING, group=0))


def is_indexed(state: State, number: int) -> bool:
    """Whether the index has all records of a log that count."""
    return watermark(state, number) >= end_of(state.logs[number], stops(state.logs))


def freed(rules: Rules, log: Log) -> Log:
    """A log that is durably free.  Its octets stay, which matters only if a life is used twice."""
    old = () if rules.on("a life is new") else log.records
    return Log(FREE, log.life, records=old)
