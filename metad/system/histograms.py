"""Histograms in shared memory: counts of values in fixed buckets, and their sum.

    cells   0 .. n-1   values up to bounds[i] and above bounds[i-1]
            n          values above the last bound
            n+1        the sum of all values

Rules of this file:

* One process writes a histogram; an observation is one bisection and two additions.
* Bounds never depend on the configuration, because a scrape is compared with the previous one.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from metad.system.shared_memory import HISTOGRAM_CELLS, Cell, ProcessRow

# 100 µs to 10 s, three to a decade: a sync takes 50 µs on a good disk and seconds on a sick one.
TIME_BOUNDS = (
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
)  # fmt: skip
# A group has 900 records at most (metad.store.commit.group).
SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Shape(NamedTuple):
    """`bounds` in the unit of the values; divided by `scale` they are in the unit of `name`."""

    name: str
    cell: Cell
    bounds: tuple[int, ...]
    scale: int
    doc: str


COMMIT_TIME = Shape(
    "commit_seconds", Cell.COMMIT_TIME, TIME_BOUNDS, 1_000_000,
    "From the arrival of the oldest message of a group to its answer: waiting and sync.",
)  # fmt: skip
SYNC_TIME = Shape(
    "sync_seconds", Cell.SYNC_TIME, TIME_BOUNDS, 1_000_000, "The write and sync of each group."
)
GROUP_SIZE = Shape(
    "group_records", Cell.GROUP_SIZE, SIZE_BOUNDS, 1, "Messages and deletion records in a group."
)
HISTOGRAMS = (COMMIT_TIME, SYNC_TIME, GROUP_SIZE)


class Histogram:
    """The one that a process writes in its row."""

    __slots__ = ("_bounds", "_cells", "_sum")

    def __init__(self, row: ProcessRow, shape: Shape) -> None:
        self._cells = row.cells[shape.cell : shape.cell + HISTOGRAM_CELLS]
        self._bounds = shape.bounds
        self._sum = len(shape.bounds) + 1

    def observe(self, value: int) -> None:
        cells = self._cells
        cells[bisect_left(self._bounds, value)] += 1
        cells[self._sum] += value


class Counts(NamedTuple):
    """A histogram as read: the count of each bucket, not cumulative, and the sum of all values."""

    buckets: tuple[int, ...]
    total: int

    def __sub__(self, before: Counts) -> Counts:
        """The values since `before`; all values if it has been reset meanwhile."""
        found = tuple(now - then for now, then in zip(self.buckets, before.buckets, strict=True))
        return self if min(found) < 0 else Counts(found, self.total - before.total)


def read(rows: list[ProcessRow], shape: Shape) -> Counts:
    """The histogram of all rows together."""
    size = len(shape.bounds) + 2
    columns = zip(*(row.cells[shape.cell : shape.cell + size] for row in rows), strict=True)
    *buckets, total = (sum(column) for column in columns)
    return Counts(tuple(buckets), total)


def quantile(counts: Counts, shape: Shape, share: float) -> float | None:
    """An upper bound of the value below which `share` of all values lie, in the unit of the name;
    None without values."""
    wanted = share * sum(counts.buckets)
    if not wanted:
        return None
    for bound, count in zip(shape.bounds, counts.buckets, strict=False):
        wanted -= count
        if wanted <= 0:
            return bound / shape.scale
    return shape.bounds[-1] / shape.scale
