"""The conditions that keep a worker from accepting mail are in shared memory, with their begin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from metad.layers.logs import LogLayer
from metad.system.shared_memory import Cell


@pytest.fixture
def layer() -> Any:
    return SimpleNamespace(
        committer=SimpleNamespace(index_lags=False, rests=False, failed_writes=0),
        source=SimpleNamespace(has_space=True),
        osio=SimpleNamespace(time_ns=lambda: 7_000_000_000),
        row=dict.fromkeys(Cell, 0),
    )


def note(layer: Any) -> None:
    LogLayer._note_conditions(cast(LogLayer, layer))


@pytest.mark.parametrize(
    ("cell", "begin", "end"),
    [
        (Cell.INDEX_BEHIND, lambda one: setattr(one.committer, "index_lags", True),
         lambda one: setattr(one.committer, "index_lags", False)),
        (Cell.WRITES_FAIL, lambda one: setattr(one.committer, "rests", True),
         lambda one: setattr(one.committer, "rests", False)),
        (Cell.NO_SPACE, lambda one: setattr(one.source, "has_space", False),
         lambda one: setattr(one.source, "has_space", True)),
        (Cell.LOG_FAILED, lambda one: setattr(one.committer, "failed_writes", 2), None),
    ],
)  # fmt: skip
def test_a_condition_keeps_the_time_of_its_begin(
    layer: Any, cell: Cell, begin: Any, end: Any
) -> None:
    note(layer)
    assert not any(layer.row.values())
    begin(layer)
    note(layer)
    assert {one for one, value in layer.row.items() if value} == {cell}
    layer.osio.time_ns = lambda: 9_000_000_000
    note(layer)
    assert layer.row[cell] == 7
    if end is not None:
        end(layer)
        note(layer)
        assert layer.row[cell] == 0
