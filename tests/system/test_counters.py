"""The table of counters: unique names and cells, and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.system import counters
from metad.system.counters import COLLECTOR, HUB, OPEN, Counter

PAGE = Path(__file__).parents[2] / "docs" / "counters.md"


@pytest.mark.parametrize("table", [(*OPEN, *HUB), COLLECTOR])
def test_names_and_cells_are_unique(table: tuple[Counter, ...]) -> None:
    assert len({one.name for one in table}) == len({one.cell for one in table}) == len(table)


def test_the_page_has_the_tables_as_they_are() -> None:
    assert PAGE.read_text().endswith("\n\n" + counters.as_markdown())
