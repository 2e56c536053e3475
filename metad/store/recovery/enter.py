"""Enters the records found by recovery in the index, in transactions of bounded size.

Rules of this file:

* The messages of all tails are entered before the deletions of all tails, so the order of logs
  never matters.  A watermark moves only when the whole tail of its log is in the index, and
  entering a record again changes nothing: recovery can be killed anywhere and repeated.
* Only the life of a log that is free on disk is dropped: the file may be in its next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metad.store.index import relocation
from metad.store.index.index import Index
from metad.store.index.rows import Batch
from metad.store.recovery.one_log import Recovered

BATCH = 1000
Enter = Callable[[Index, Batch], None]


def enter_messages(index: Index, one: Recovered) -> None:
    """Enter the messages of a tail.  The watermark stays: the deletions are still to come."""
    log, messages = one.log, one.tail.records()[0]
    for at in range(0, max(len(messages), 1), BATCH):
        some = messages[at : at + BATCH]
        _write(index, relocation.merge, Batch(log.number, log.life, one.start, some, []))


def enter_deletions(index: Index, one: Recovered) -> None:
    """Apply the deletions of a tail; with the last of them the watermark moves to the end."""
    log, deletions = one.log, one.tail.records()[1]
    for at in range(0, max(len(deletions), 1), BATCH):
        some = deletions[at : at + BATCH]
        last = at + BATCH >= len(deletions)
        watermark = max(one.tail.end, one.start) if last else one.start
        _write(index, Index.apply, Batch(log.number, log.life, watermark, [], some))


def drop_moved(index: Index, one: Recovered, number: int) -> None:
    """Remove the places that records of `one` had behind the end of log `number`, which it ends: a
    recovery that could not make `one` may have entered them there."""
    log, (messages, deletions) = one.log, one.tail.records()
    ids = [message.id for message in messages] + [each for one in deletions for each in one.each()]
    for some in _pieces(ids):
        with _locked(index):
            relocation.drop_places(
                index, number, log.predecessor_life, some, end=log.predecessor_end
            )


def drop_log(index: Index, number: int, life: int, ids: list[bytes] | None = None) -> None:
    """Remove every place in this life of log `number` from the index, and its row.

    `ids`: the messages of which the log has records; None: unknown, so all rows are read.
    """
    if index.log_counts(number).life == life:
        for some in _all_ids_in(index, number) if ids is None else _pieces(ids):
            with _locked(index):
                relocation.drop_places(index, number, life, some)
    with _locked(index):
        relocation.drop_log(index, number, life)


def _all_ids_in(index: Index, number: int) -> Iterator[list[bytes]]:
    start: bytes | None = b""
    while start is not None:
        ids, start = relocation.ids_in(index, number, start)
        yield from _pieces(ids)


def _pieces(ids: list[bytes]) -> Iterator[list[bytes]]:
    return (ids[at : at + BATCH] for at in range(0, len(ids), BATCH))


@contextmanager
def _locked(index: Index) -> Iterator[None]:
    index.lock()
    try:
        yield
    finally:
        index.unlock()


def _write(index: Index, enter: Enter, batch: Batch) -> None:
    with _locked(index):
        enter(index, batch)
