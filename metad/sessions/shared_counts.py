"""What all workers together have of clients: each shows its own counts to the others.

A worker shows how many connections it has in a cell of its row, and what each network has in a
table of its own: buckets of eight cells, each a network's 44-bit hash and a count of 20 bits.

Rules of this file:

* Each worker writes its own cells only, and whole values: what somebody scribbled over is right
  again with the next connection.
* Hashes are Python's own, with the salt of the master that all workers were forked from: nobody
  outside can choose networks that meet in a bucket.
* A network that finds its bucket full is not shown; then it is counted by each worker alone.
"""

from __future__ import annotations

from metad.system.shared_memory import Cell, ProcessRow, Role, SharedArea, Tally

_WAYS = 8
_COUNT_BITS = 20
_MOST = (1 << _COUNT_BITS) - 1
_KEY_MASK = (1 << 44) - 1


class SharedCounts:
    """The counts of one hub, as one of its workers sees them."""

    def __init__(self, area: SharedArea, row: ProcessRow) -> None:
        self._area = area
        self._row = row
        self._open = area.column(Cell.CONNECTIONS)
        self._roles = area.column(Cell.ROLE)
        self._tables = {which: row.tally(which) for which in Tally}
        self._seen: list[int] = []  # the roles of all rows when `_others` was made of them
        self._others: dict[Tally, list[memoryview]] = {}

    def show_connections(self, count: int) -> None:
        self._row[Cell.CONNECTIONS] = count

    def connections(self) -> int:
        """Of all workers.  What no worker can have is no count: somebody scribbled there."""
        counts = self._open.tolist()
        total = sum(counts)
        return total if total <= _MOST else sum(one for one in counts if one <= _MOST)

    def show(self, which: Tally, network: str, count: int) -> None:
        """What this worker has of a network; 0 takes it out of the table."""
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
        """What the other workers show of a network."""
        roles = self._roles.tolist()
        if roles != self._seen:
            self._meet(roles)
        key = _key(network)
        found = 0
        for table in self._others[which]:
            start = _bucket(key, len(table))
            for cell in table[start : start + _WAYS].tolist():
                if cell >> _COUNT_BITS == key:
                    found += cell & _MOST
        return found

    def _meet(self, roles: list[int]) -> None:
        """Workers come and go; their tables are found once."""
        rows = [
            self._area.process(index)
            for index, role in enumerate(roles)
            if role == Role.WORKER and index != self._row.index
        ]
        self._seen = roles
        self._others = {which: [row.tally(which) for row in rows] for which in Tally}

    def forget(self, which: Tally) -> None:
        """Show nothing of any network."""
        self._row.clear_tally(which)


def _key(network: str) -> int:
    return hash(network) & _KEY_MASK or 1


def _bucket(key: int, cells: int) -> int:
    return key % (cells // _WAYS) * _WAYS
