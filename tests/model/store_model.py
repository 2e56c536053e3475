"""The protocol of the store, small enough for an exhaustive search.

Rules of this file:

* The model says what the store promises to do (docs/store-model.md), not how metad does it: it
  shares no code with metad, so that no mistake is in both.
* The search is breadth first and complete: the first counterexample is a shortest one, and no
  counterexample means that there is none within the bounds.
* `wrong` looks at one state.  It considers what any power cut may leave at this moment, so a trace
  need not include the cut.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.model.store_collector import has_unread
from tests.model.store_failures import Hub
from tests.model.store_state import (
    DEAD,
    KEPT,
    LOST,
    MESSAGES,
    UNKNOWN,
    UNSURE,
    Left,
    State,
    canonical,
    first_state,
    lags,
    numbered,
    survives,
)


class Found(NamedTuple):
    """The result of a search.  `wrong` is empty if every state is right."""

    states: int
    steps: int
    wrong: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:3} {did}" for number, did in enumerate(self.trace, 1)]
        return "\n".join([f"{self.wrong or 'nothing wrong'}: {self.states:,} states", *lines])


def search(hub: Hub, logs: int, left: Left, about: str = "") -> Found:
    """Visit every state that a new store with `logs` logs can reach, nearest first.

    `about`: the only fault that counts, in the words of `wrong`; empty: all.
    """
    with _no_cycles():
        return _search(hub, canonical(first_state(logs, left, clustered=hub.clustered)), about)


def _search(hub: Hub, start: State, about: str) -> Found:
    came: dict[State, State | None] = {start: None}
    level, depth = [start], 0
    while level:
        following: list[State] = []
        for state in level:
            for _, raw in hub.successors(state):
                new = canonical(raw)
                if new in came:
                    continue
                came[new] = state
                following.append(new)
                if said := wrong(new, about):
                    return Found(len(came), depth + 1, said, _trace(hub, came, new))
        level, depth = following, depth + 1
    return Found(len(came), depth)


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Without garbage collection: there are no cycles, and looking for them costs a fifth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _trace(hub: Hub, came: dict[State, State | None], last: State) -> tuple[str, ...]:
    """The steps that lead to a state, with constant numbers for logs."""
    path = []
    at: State | None = last
    while at is not None:
        path.append(at)
        at = came[at]
    first = first_state(len(last.logs), path[-1].left, clustered=hub.clustered)
    now, steps = numbered(first), []
    for following in reversed(path[:-1]):
        did, raw = next(s for s in hub.successors(now) if canonical(s[1]) == following)
        now = numbered(raw)
        steps.append(did)
    return tuple(steps)


# -- what must hold


def wrong(state: State, about: str = "") -> str:
    """What is wrong with a state, or nothing."""
    return next((said for said in _wrongs(state) if about in said), "")


def _wrongs(state: State) -> Iterator[str]:
    after = survives(state.logs)
    for message, what in zip(MESSAGES, state.messages, strict=True):
        copy, deletion = f"M{message}", f"D{message}"
        is_kept = all(copy in sure and deletion not in perhaps for sure, perhaps in after)
        is_gone = all(copy not in perhaps or deletion in sure for sure, perhaps in after)
        if what == KEPT and not is_kept:
            yield f"M{message} is acknowledged, and a power cut may lose it"
        if what in DEAD and not is_gone:
            yield f"M{message} is gone, and a power cut may bring it back"
        if state.view is not None and not state.view.wrong:
            yield from _wrong_listing(state, message, is_kept, is_gone)
    if state.rows is not None:
        for who, process in (("W", state.worker), ("C", state.collector)):
            if process.log >= 0 and state.rows[process.log].owner != who:
                yield f"the row of log {process.log} is not its writer's"
        yield from _wrong_heirs(state)


def _wrong_heirs(state: State) -> Iterator[str]:
    """A last group that a recovery copied waits for the recovery of the process that wrote it."""
    rows = state.rows or ()
    lives = {
        log.life: row.owner
        for log, row in zip(state.logs, rows, strict=True)
        if row.state == "active"
    }
    for number, (log, row) in enumerate(zip(state.logs, rows, strict=True)):
        writer = lives.get(log.ends[0], "") if log.ends and row.state == "active" else ""
        if row.owner and writer and row.owner.lower() != writer.lower():
            yield f"log {number} has the last group of another process"


def _wrong_listing(state: State, message: int, is_kept: bool, is_gone: bool) -> Iterator[str]:
    """The contents of the index are durable, and differ from the logs only where it lags."""
    assert state.view is not None
    what = state.messages[message]
    cells = state.cells
    is_waited_for = (cells.living | cells.dead) >> message & 1
    # While no hub runs, there are no sessions.
    is_late = cells.late >> message & 1 or state.rows is None or has_unread(state)
    if _is_in_place(state, message):
        is_kept = is_gone = True  # not acknowledged; recovery reported it
    if state.view.entries >> message & 1:
        if what == UNKNOWN and not is_kept:
            yield f"M{message} is listed, and a power cut may lose it"
        if what in DEAD and not (is_late and lags(state, f"D{message}")):
            yield f"M{message} is gone, and the index lists it"
        if not state.view.places[message]:
            yield f"M{message} is listed without a place"
    else:
        if what == UNSURE and not is_gone and not has_unread(state):
            yield f"M{message} is not listed any more, and a power cut may bring it back"
        if what == KEPT and not ((is_late or is_waited_for) and lags(state, f"M{message}")):
            yield f"M{message} is acknowledged, and the index does not list it"


def _is_in_place(state: State, message: int) -> bool:
    """Whether no log was available for a last group that may not be durable."""
    return any(
        record[1:] == f"{message}{LOST}" and log.seal >= 0
        for log in state.logs
        for record in log.records
    )
