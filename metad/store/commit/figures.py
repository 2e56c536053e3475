"""What a committer measures, in its process's row: three histograms and the bytes written.

Rule of this file: once per group, never per message; a group costs about a microsecond here.
"""

from __future__ import annotations

from metad.system.histograms import COMMIT_TIME, GROUP_SIZE, SYNC_TIME, Histogram
from metad.system.shared_memory import HEAD_CELLS, PROCESS_CELLS, Cell, ProcessRow


class CommitFigures:
    """`row`: where they are published; None: nowhere."""

    __slots__ = ("_commit", "_group", "_row", "_sync")

    def __init__(self, row: ProcessRow | None = None) -> None:
        if row is None:
            cells = memoryview(bytearray(8 * (HEAD_CELLS + PROCESS_CELLS))).cast("Q")
            row = ProcessRow(cells, 0)
        self._row = row
        self._commit = Histogram(row, COMMIT_TIME)
        self._sync = Histogram(row, SYNC_TIME)
        self._group = Histogram(row, GROUP_SIZE)

    def synced(self, octets: int, seconds: float) -> None:
        """A group of `size` bytes was written and synced."""
        self._sync.observe(int(seconds * 1e6))
        self._row.add(Cell.LOG_OCTETS, octets)

    def finished(self, records: int, seconds: float) -> None:
        """A group is decided; its oldest record waited for `seconds`."""
        self._commit.observe(int(seconds * 1e6))
        self._group.observe(records)
