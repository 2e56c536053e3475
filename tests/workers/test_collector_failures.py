"""How long the collector leaves a log alone that could not be collected."""

from __future__ import annotations

import time
from typing import Any

import pytest

from metad.store.log_table import LogState, Row
from metad.system.shared_memory import Cell
from metad.workers.collector import (
    AVOID_SECONDS,
    AVOID_SHORT_SECONDS,
    CollectorWorker,
    Work,
)


class Figures(dict[int, int]):
    def add(self, cell: int) -> None:
        self[cell] = self.get(cell, 0) + 1


class Failing(CollectorWorker):
    """The disk takes nothing."""

    def __init__(self, work: Work) -> None:
        self.reports: list[str] = []
        self._row: Any = Figures({Cell.WORK: work})
        self._avoid = {}
        self._collector: Any = self

    def collect(self, number: int) -> None:
        return None

    def tidy(self) -> None:
        return None

    def _drive(self, steps: object) -> None:
        raise OSError(28, "No space left on device")

    def _report(self, text: str) -> None:
        self.reports.append(text)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(Work.SHORT, AVOID_SHORT_SECONDS), (Work.IDLE, AVOID_SECONDS), (Work.ASKED, AVOID_SECONDS)],
)
def test_a_log_that_failed_is_tried_again_soon_only_if_space_is_short(
    work: Work, seconds: float
) -> None:
    """Regression: mail stayed deferred for a minute after one failed collection."""
    worker = Failing(work)
    before = time.monotonic()
    worker._collect(Row(6, LogState.SEALED, 1, 0, 0, 0, 0, 0))
    after = time.monotonic()
    assert before + seconds <= worker._avoid[6] <= after + seconds
    assert worker._row[Cell.UNCOLLECTED] == 1
    assert worker.reports == [
        "warning: log 6 could not be collected: [Errno 28] No space left on device"
    ]


def test_a_tidying_that_fails_ends_no_round() -> None:
    worker = Failing(Work.SHORT)
    worker._tidy()
    assert len(worker.reports) == 1
    assert "No space left on device" in worker.reports[0]
