"""Counts of clients over all workers: each worker publishes its own in shared memory.

A worker publishes its number of connections in a cell of its row, and the counts of each network in
a table of its own: buckets of eight cells, each the network's 44-bit hash and a 20-bit count.

Rules of this file:

* Each worker writes only its own cells, and complete values: an overwritten cell is corrected by
  the next connection.
* Hashes are Python's own, salted by the master from which all workers were forked: no outsider can
  choose networks that fall into one bucket.
* A network whose bucket is full is not published; then each worker counts it separately.
"""

from __future__ import annotations

from metad import limits
from metad.system.shared_memory import Cell, ProcessRow, Role, SharedArea, Tally

_WAYS = 8
_COUNT_BITS = 20
_MOST = (1 << _COUNT_BITS) - 1
_KEY_MASK = (1 << 44) - 1
_FAILURE_BITS = 10
_MOST_FAILURES = (1 << _FAILURE_BITS) - 1
_FAILURE_SECONDS = 10  # the unit of their times


class SharedCounts:
    """The counts of one hub, as seen by one of its workers."""

    def __init__(self, area: SharedArea, row: ProcessRow) -> None:
        self._area = area
        self._row = row
        self._open = area.column(Cell.CONNECTIONS)
        self._roles = area.column(Cell.ROLE)
        self._tables = {which: row.tally(which) for which in Tally}
        self._seen: list[int] = []  # the roles of all rows when `_others` was made
        self._others: dict[Tally, list[memoryview]] = {}

    def publish_connections(self, count: int) -> None:
        self._row[Cell.CONNECTIONS] = count

    def connections(self) -> int:
        """The sum over all workers.  An impossible value is ignored: the cell was overwritten."""
        return _sum(self._open[: self._area.rows_used])

    def total(self, cell: Cell) -> int:
        """The sum over all workers, for a counter of connections."""
        return _sum(self._area.column(cell)[: self._area.rows_used])

    def publish(self, which: Tally, network: str, count: int) -> None:
        """Publish this worker's count of a network; 0 removes it from the table."""
        table = self._tables[which]
        key = _key(network)
        word = key << _COUNT_BITS | min(count, _MOST) if count else 0
        start = _bucket(key, len(table))
        cells = table[start : start + _WAYS].tolist()
        for at, cell in enumerate(cells, start):
            if cell >> _COUNT_BITS == key:
                table[at] = word
                return
        if count and 0 in cells:
            table[start + cells.index(0)] = word

    def of_others(self, which: Tally, network: str) -> int:
        """The sum of the other workers' counts of a network."""
        roles = self._roles.tolist()
        if roles != self._seen:
            self._find_others(roles)
        key = _key(network)
        found = 0
        for table in self._others[which]:
            start = _bucket(key, len(table))
            for cell in table[start : start + _WAYS].tolist():
                if cell >> _COUNT_BITS == key:
                    found += cell & _MOST
        return found

    # -- failed logins: a count of 10 bits with the time of the last failure, in 10 bits

    def publish_failures(self, network: str, count: int, now: float) -> None:
        """Publish this worker's failed logins of a network; an expired cell makes room."""
        table = self._tables[Tally.FAILURES]
        key = _key(network)
        word = key << _COUNT_BITS | _clock(now) << _FAILURE_BITS | min(count, _MOST_FAILURES)
        start = _bucket(key, len(table))
        cells = table[start : start + _WAYS].tolist()
        for at, cell in enumerate(cells):
            if cell >> _COUNT_BITS == key:
                table[start + at] = word
                return
        for at, cell in enumerate(cells):
            if not _failures(cell, now):
                table[start + at] = word
                return

    def failures_of_others(self, network: str, now: float) -> int:
        """The recent failed logins of a network in the other workers."""
        roles = self._roles.tolist()
        if roles != self._seen:
            self._find_others(roles)
        key = _key(network)
        found = 0
        for table in self._others[Tally.FAILURES]:
            start = _bucket(key, len(table))
            for cell in table[start : start + _WAYS].tolist():
                if cell >> _COUNT_BITS == key:
                    found += _failures(cell, now)
        return found

    def _find_others(self, roles: list[int]) -> None:
        """Find the tables of the other workers, which come and go."""
        rows = [
            self._area.process(index)
            for index, role in enumerate(roles)
            if role == Role.WORKER and index != self._row.index
        ]
        self._seen = roles
        self._others = {which: [row.tally(which) for row in rows] for which in Tally}

    def forget(self, which: Tally) -> None:
        """Remove all networks from this worker's table."""
        self._row.clear_tally(which)


def _sum(column: memoryview) -> int:
    counts = column.tolist()
    total: int = sum(counts)
    return total if total <= _MOST else sum(one for one in counts if one <= _MOST)


def _clock(now: float) -> int:
    return int(now / _FAILURE_SECONDS) & _MOST_FAILURES


def _failures(cell: int, now: float) -> int:
    """The failures in a cell, unless the last one has expired."""
    age = (_clock(now) - (cell >> _FAILURE_BITS & _MOST_FAILURES)) & _MOST_FAILURES
    return cell & _MOST_FAILURES if age * _FAILURE_SECONDS <= limits.LOGIN_FAILURE_MEMORY else 0


def _key(network: str) -> int:
    return hash(network) & _KEY_MASK or 1


def _bucket(key: int, cells: int) -> int:
    return key % (cells // _WAYS) * _WAYS
