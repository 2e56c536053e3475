"""The table of counters: unique names and cells, and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.system import counters
from metad.system.counters import COLLECTOR, HUB, OPEN, Counter
from metad.system.shared_memory import Cell, Role

PAGE = Path(__file__).parents[2] / "docs" / "counters.md"


@pytest.mark.parametrize("table", [(*OPEN, *HUB), COLLECTOR])
def test_names_and_cells_are_unique(table: tuple[Counter, ...]) -> None:
    assert len({one.name for one in table}) == len({one.cell for one in table}) == len(table)


def test_the_page_has_the_tables_as_they_are() -> None:
    assert PAGE.read_text().endswith("\n\n" + counters.as_markdown())


def test_no_cell_is_that_of_the_deaths_of_a_role():
    """They follow `DEATHS` by the number of the role; that of no role is the cell itself."""
    deaths = {Cell.DEATHS + role for role in Role} - {Cell.DEATHS}
    assert not deaths & {int(cell) for cell in Cell}
