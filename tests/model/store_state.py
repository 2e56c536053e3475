"""The state of the store's model: messages, logs on a disk, index, log table, processes.

Rules of this file:

* A state is a tuple of tuples, so that the search identifies equal states.
* A record is written as kind, message, and where it is: `M0d`.  DURABLE; DIRTY in the page cache,
  which the next sync makes durable; LOST in the page cache, marked clean by the kernel after a
  failed sync, so that no sync makes it durable.  A place in a log whose record is gone is a HOLE.
* The outcome of a power cut is unknown: `survives` gives what every cut leaves and what some may
  leave.  Mail needs a copy, and a deletion a record, that every one leaves.
* Lives are only compared.  `canonical` numbers them by the logs that have them, so that age alone
  makes no new state.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

MESSAGES = (0, 1)
CAPACITY = 4  # records of a log

DURABLE, DIRTY, LOST, HOLE = "d", "c", "x", "---"
ACTIVE, FREEING, FREE = "active", "freeing", "free"  # FREEING: free only in the page cache
NOTHING = -1
UNFOUNDED = 1 << 9  # in the notes of a row that a deletion record made: it knows of no copies
FRESH = 99  # a life that no log has had; `canonical` gives it its number

# What the client, or the next session of the mailbox, knows about a message.
NEW, SENT, KEPT, UNKNOWN = "new", "sent", "kept", "unknown"
UNSURE, GONE = "unsure", "gone"  # its deletion was not answered; was
# In a cluster: gone, and every member has to learn of it; the same, and a copy of it has come late.
BURIED, COPIED = "gone, untold", "gone, untold, copied"
DEAD = (GONE, BURIED, COPIED)
GOING = {KEPT: "kept, going", UNKNOWN: "unknown, going", UNSURE: "unsure, going"}  # was sent


class Log(NamedTuple):
    """One file.  `ends`: (life, end) that its header states of a failed predecessor.

    Of survivors, `sure`: records that a confirmation covers; `last`: where their last group begins.
    """

    header: str
    life: int
    survivors: bool = False
    ends: tuple[int, int] | None = None
    records: tuple[str, ...] = ()
    seal: int = NOTHING
    sure: int = 0
    last: int = 0


class Index(NamedTuple):
    """The view.  `entries`, and each of `places` and `notes`, are bits: messages listed, logs with
    a copy, logs with a deletion record.  `tombs`: messages whose tombstone stands, in a cluster.

    `marks`: life and watermark of each log.  `wrong`: a bit in it was flipped.
    """

    entries: int
    places: tuple[int, ...]
    marks: tuple[tuple[int, int], ...]
    wrong: bool = False
    notes: tuple[int, ...] = (0,) * len(MESSAGES)
    tombs: int = 0


class Row(NamedTuple):
    """A row of the log table.  `owner`: W, C; w, c when that process is dead."""

    state: str
    life: int
    owner: str = ""


class Process(NamedTuple):
    """A worker or the collector.  `log`: it appends here; `taking`: a log being made ready.

    `named`: the life that the table named for it; `group`: records of the group under way.
    """

    step: str = "idle"
    log: int = NOTHING
    taking: int = NOTHING
    named: int = 0
    record: str = ""
    victim: int = NOTHING
    group: int = 0
    row: Row | None = None


class Reader(NamedTuple):
    """A recovery at work on `log`, with what it read of row and header before it had the lock.

    `life`: the header's.
    """

    step: str
    log: int
    row: Row
    header: str
    life: int


class Left(NamedTuple):
    """Failures that may still happen, in total and of each kind."""

    total: int = 0
    kills: int = 0
    cuts: int = 0
    halts: int = 0
    syncs: int = 0
    refusals: int = 0
    flips: int = 0
    unread: int = 0


class Cells(NamedTuple):
    """What sessions know about records that the index lacks, as bits of messages.

    `living`: acknowledged by the worker, which will enter them; `dead`: by one whose logs wait for
    recovery; `late`: records that the index refused, so they appear later.
    """

    living: int = 0
    dead: int = 0
    late: int = 0


class State(NamedTuple):
    """Everything.  No hub runs while `rows` is None; `view` is the index, None: to be rebuilt."""

    messages: tuple[str, ...]
    logs: tuple[Log, ...]
    view: Index | None
    rows: tuple[Row, ...] | None
    worker: Process
    collector: Process
    recovery: Reader | None
    left: Left
    cells: Cells = Cells()
    clustered: bool = False


IDLE = Process()


def first_state(logs: int, left: Left, *, clustered: bool = False) -> State:
    """A new store whose logs are free and whose hub runs."""
    files = tuple(Log(FREE, number + 1) for number in range(logs))
    rows = tuple(Row("free", number + 1) for number in range(logs))
    index = Index(0, (0,) * len(MESSAGES), ((0, 0),) * logs)
    messages = (NEW,) * len(MESSAGES)
    return State(messages, files, index, rows, IDLE, IDLE, None, left, clustered=clustered)


def put(items: tuple[Item, ...], at: int, item: Item) -> tuple[Item, ...]:
    """A tuple with one item replaced."""
    return (*items[:at], item, *items[at + 1 :])


# -- logs


def stops(logs: tuple[Log, ...]) -> dict[int, int]:
    """Where failed lives end, as the headers of their successors state."""
    return {log.ends[0]: log.ends[1] for log in logs if log.ends and log.header != FREE}


def end_of(log: Log, ends: dict[int, int]) -> int:
    """How many records of a log count."""
    if log.life in ends:
        return ends[log.life]
    return log.seal if log.seal != NOTHING else len(log.records)


def is_final(log: Log) -> bool:
    """Whether no recovery cuts a group off."""
    return not log.survivors or log.seal != NOTHING


def certain_end(log: Log, ends: dict[int, int]) -> int:
    """How many records of a log count whatever recovery comes next."""
    return end_of(log, ends) if log.life in ends or is_final(log) else log.sure


def readable(logs: tuple[Log, ...], number: int) -> tuple[str, ...]:
    """The records of a log as a reader finds them now."""
    log = logs[number]
    if log.header != ACTIVE:
        return ()
    return log.records[: end_of(log, stops(logs))]


def found(logs: tuple[Log, ...], number: int, what: str) -> bool:
    """Whether a log has a record such as `M0`, read and verified."""
    return any(record[:2] == what for record in readable(logs, number))


@lru_cache(1 << 16)
def survives(logs: tuple[Log, ...]) -> list[tuple[set[str], set[str]]]:
    """What every power cut leaves, and what some may leave; one result for each possible outcome of
    a log being freed.

    A log whose header says free in the page cache alone is there with all that it has, or is not.
    What no confirmation covers may be cut off by a recovery.
    """
    found: list[tuple[set[str], set[str]]] = []
    for headers in product(*((ACTIVE, FREE) if x.header == FREEING else (x.header,) for x in logs)):
        there = tuple(log for log, header in zip(logs, headers, strict=True) if header == ACTIVE)
        ends = stops(there)
        records = [record for log in there for record in log.records[: end_of(log, ends)]]
        certain = [record for log in there for record in log.records[: certain_end(log, ends)]]
        durable = {record[:2] for record in certain if record[2] == DURABLE}
        found.append((durable, {record[:2] for record in records}))
    return found


def synced(log: Log) -> Log:
    """After a successful sync: dirty records are durable, lost ones stay lost."""
    return log._replace(records=tuple(r[:2] + DURABLE if r[2] == DIRTY else r for r in log.records))


def unsynced(log: Log) -> Log:
    """After a failed sync."""
    return log._replace(records=tuple(r[:2] + LOST if r[2] == DIRTY else r for r in log.records))


# -- index


def watermark(state: State, number: int) -> int:
    """How many records of a log the index has entered, in this life of it."""
    assert state.view is not None
    life, mark = state.view.marks[number]
    return mark if life == state.logs[number].life else 0


def enter(
    index: Index,
    number: int,
    life: int,
    records: tuple[str, ...],
    mark: int,
    *,
    founded: bool = False,
    remembers: bool = True,
    buries: bool = False,
) -> Index:
    """Enter records of a log, messages before deletions.

    A message that has a place gets one more; one that has none is entered as new, unless a deletion
    record of it is noted.  `founded`: what has no row has no copy, because all logs are read;
    `remembers`: not in a mutant.  `buries`: a deletion makes a tombstone.
    """
    entries, places, notes, tombs = index.entries, index.places, index.notes, index.tombs
    for record in records:
        if record[0] == "M":
            message = int(record[1])
            is_known = places[message] or (remembers and notes[message])
            entries |= 0 if is_known else 1 << message
            places = put(places, message, places[message] | 1 << number)
    for record in records:
        if record[0] == "D":
            message = int(record[1])
            entries &= ~(1 << message)
            made = 0 if founded or places[message] or notes[message] else UNFOUNDED
            notes = put(notes, message, notes[message] | made | 1 << number)
            tombs |= buries << message
    marks = put(index.marks, number, (life, mark))
    return Index(entries, places, marks, index.wrong, notes, tombs)


def lags(state: State, what: str) -> bool:
    """Whether the index has still to enter such a record."""
    return any(
        record[:2] == what
        for number in range(len(state.logs))
        for record in readable(state.logs, number)[watermark(state, number) :]
    )


def forget(index: Index, number: int) -> Index:
    """Drop all places and notes in a log, and its row."""
    places = tuple(bits & ~(1 << number) for bits in index.places)
    notes = tuple(bits & ~(1 << number) for bits in index.notes)
    return index._replace(places=places, notes=notes, marks=put(index.marks, number, (0, 0)))


# -- one state for all that differ only in numbers


def canonical(state: State) -> State:
    """The same state with its logs in order, and their lives numbered by that order."""
    order = sorted(range(len(state.logs)), key=lambda number: _order(state, number))
    return numbered(state if order == sorted(order) else _moved(state, order))


def _order(state: State, number: int) -> tuple[object, ...]:
    """What tells a log from another one, apart from lives."""
    log = state.logs[number]
    key: tuple[object, ...] = (
        log.header,
        log.records,
        log.seal,
        log.survivors,
        log.sure,
        log.last,
        log.ends[1] if log.ends else NOTHING,
        number == state.worker.log,
        number == state.collector.log,
        number == state.collector.victim,
        state.recovery is not None and number == state.recovery.log,
    )
    if state.rows is not None:
        key = (*key, state.rows[number].state, state.rows[number].owner)
    if state.view is not None:
        bits = (*state.view.places, *state.view.notes)
        key = (*key, state.view.marks[number][1], *(b >> number & 1 for b in bits))
    return key


def _moved(state: State, order: list[int]) -> State:
    """The state with the logs in this order."""
    at = {NOTHING: NOTHING} | {old: new for new, old in enumerate(order)}
    index, rows, reader = state.view, state.rows, state.recovery
    worker, mine = state.worker, state.collector
    if index is not None:
        places, notes = (
            tuple(_moved_bits(bits, order) for bits in each) for each in (index.places, index.notes)
        )
        marks = tuple(index.marks[old] for old in order)
        index = index._replace(places=places, marks=marks, notes=notes)
    return state._replace(
        logs=tuple(state.logs[old] for old in order),
        rows=None if rows is None else tuple(rows[old] for old in order),
        view=index,
        worker=worker._replace(log=at[worker.log]),
        collector=mine._replace(log=at[mine.log], victim=at[mine.victim]),
        recovery=None if reader is None else reader._replace(log=at[reader.log]),
    )


def _moved_bits(bits: int, order: list[int]) -> int:
    moved = sum((bits >> old & 1) << new for new, old in enumerate(order))
    return moved | bits & UNFOUNDED


def numbered(state: State) -> State:
    """The same state with lives numbered by the logs that have them."""
    names = {log.life: number for number, log in enumerate(state.logs, 1)}
    names[0] = 0
    current = len(names)
    rows, index, mine, reader = state.rows, state.view, state.collector, state.recovery
    if rows is not None:
        for row in rows:
            names.setdefault(row.life, len(names))
        rows = tuple([_named(row, names) for row in rows])
    if index is not None:
        marks = tuple(
            [
                (names[life], mark) if life and life == log.life else (0, 0)
                for (life, mark), log in zip(index.marks, state.logs, strict=True)
            ]
        )
        index = index if marks == index.marks else index._replace(marks=marks)
    logs = tuple([_renamed(log, names, current) for log in state.logs])
    if mine.row is not None:
        mine = mine._replace(row=_named(mine.row, names))
    if reader is not None:
        life = names.get(reader.life, len(names))
        reader = reader._replace(row=_named(reader.row, names), life=life)
    worker, left, cells = state.worker, state.left, state.cells
    clustered = state.clustered
    return State(state.messages, logs, index, rows, worker, mine, reader, left, cells, clustered)


def _renamed(log: Log, names: dict[int, int], current: int) -> Log:
    """A statement about a life that no log has any more is void."""
    life, ends = names[log.life], log.ends
    if ends is not None:
        its = names.get(ends[0], current)
        ends = (its, ends[1]) if its < current else None
    elif life == log.life:
        return log
    return Log(log.header, life, log.survivors, ends, log.records, log.seal, log.sure, log.last)


def _named(row: Row, names: dict[int, int]) -> Row:
    """A row, maybe one read some time ago: then its life may be no log's any more."""
    life = names.get(row.life, len(names))
    return row if life == row.life else Row(row.state, life, row.owner)
