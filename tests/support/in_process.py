"""An index is tried and read in the process itself, not in a child, which a damaged one may end.

A child costs a test 20 to 30 ms: the process that it is forked from has all tests in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from metad.store.fsck import fsck, index_snapshot
from metad.store.fsck.grouping import Rows
from metad.store.identity import Store
from metad.store.index import probe


@contextmanager
def index_in_process() -> Iterator[None]:
    with (
        patch.object(probe, "why_damaged", probe._why),
        patch.object(fsck, "read_snapshot", _read_snapshot),
    ):
        yield


def _read_snapshot(
    store: Store,
    rows: Rows | None = None,
    get_on: Callable[[], None] = lambda: None,
    _reached: object = None,
) -> index_snapshot.Snapshot:
    return index_snapshot._read(store, rows, get_on)
