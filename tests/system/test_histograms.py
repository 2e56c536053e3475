"""Histograms in shared memory: buckets, sums, several processes, resets, quantiles."""

from __future__ import annotations

import pytest

from metad.system.histograms import (
    COMMIT_TIME,
    GROUP_SIZE,
    HISTOGRAMS,
    Counts,
    Histogram,
    Shape,
    quantile,
    read,
)
from metad.system.shared_memory import (
    HEAD_CELLS,
    HISTOGRAM_CELLS,
    PROCESS_CELLS,
    Cell,
    ProcessRow,
)


def rows(count: int) -> list[ProcessRow]:
    cells = memoryview(bytearray(8 * (HEAD_CELLS + count * PROCESS_CELLS))).cast("Q")
    return [ProcessRow(cells, index) for index in range(count)]


def test_the_histograms_lie_apart_from_all_other_cells_and_from_each_other() -> None:
    used = [cell + at for shape in HISTOGRAMS for cell in [shape.cell] for at in
            range(HISTOGRAM_CELLS)]  # fmt: skip
    starts = {shape.cell for shape in HISTOGRAMS}
    others = [int(cell) for cell in Cell if cell not in starts]
    assert len({*used, *others}) == len(used) + len(others)
    assert max(used) < PROCESS_CELLS


@pytest.mark.parametrize("shape", HISTOGRAMS, ids=lambda shape: shape.name)
def test_bounds_ascend_and_fit_with_the_rest_and_the_sum(shape: Shape) -> None:
    assert list(shape.bounds) == sorted(set(shape.bounds))
    assert len(shape.bounds) + 2 <= HISTOGRAM_CELLS


def test_a_value_belongs_to_the_bucket_whose_bound_it_reaches() -> None:
    (row,) = rows(1)
    histogram = Histogram(row, GROUP_SIZE)
    for value in (1, 2, 3, 4, 512, 513, 900):
        histogram.observe(value)
    counts = read([row], GROUP_SIZE)
    assert counts.buckets == (1, 1, 2, 0, 0, 0, 0, 0, 0, 1, 2)
    assert counts.total == 1 + 2 + 3 + 4 + 512 + 513 + 900


def test_processes_are_added_up_and_a_dead_ones_row_may_be_cleared() -> None:
    first, second = rows(2)
    Histogram(first, COMMIT_TIME).observe(99)
    Histogram(second, COMMIT_TIME).observe(101)
    counts = read([first, second], COMMIT_TIME)
    assert (counts.buckets[:3], counts.total) == ((1, 1, 0), 200)
    first.cells[:] = memoryview(bytes(8 * PROCESS_CELLS)).cast("Q")
    assert read([first, second], COMMIT_TIME).total == 101


def test_a_difference_is_what_came_and_after_a_reset_it_is_everything() -> None:
    before, after = Counts((1, 2), 9), Counts((3, 2), 19)
    assert after - before == Counts((2, 0), 10)
    assert before - after == before


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    (row,) = rows(1)
    assert quantile(read([row], COMMIT_TIME), COMMIT_TIME, 0.5) is None
    histogram = Histogram(row, COMMIT_TIME)
    for value in (50, 50, 900, 99_000_000):
        histogram.observe(value)
    counts = read([row], COMMIT_TIME)
    assert quantile(counts, COMMIT_TIME, 0.5) == 0.0001
    assert quantile(counts, COMMIT_TIME, 0.75) == 0.001
    assert quantile(counts, COMMIT_TIME, 0.99) == 10
