"""Which log the collector empties next: by benefit and cost, older generations less often.

The measure is that of log-structured file systems (Rosenblum and Ousterhout, 1992): a log that is
`u` live gives 1 - u of a log, costs 1 to read and u to write, and what has not changed for long
will not soon be free by itself, so that its garbage is worth more now:

    (1 - u) * age / (1 + u)

Generations make the age of a log's mail what the formula wants: what survived once lies with what
survived once, so a young log empties itself if it is left alone for a while, and an old one hardly
changes.  So an older generation has to be emptier before it is touched at all; moving the same mail
again and again is what a collector without generations pays for (perf/write_amplification.py).

Rules of this file: nothing but arithmetic on rows of the log table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from metad.store.table import Row, State

OLDEST = 3  # survivors of this generation stay in it


@dataclass(frozen=True, slots=True)
class Taste:
    """What is worth collecting.  `log_size` octets; `garbage` the least dead share of a log of
    generation 0; each generation asks for half of what is left more."""

    log_size: int
    garbage: float = 0.5

    def least_garbage(self, generation: int) -> float:
        """The dead share that a log of this generation must have."""
        return 1 - (1 - self.garbage) * 0.75 ** min(generation, OLDEST)


def next_generation(generation: int) -> int:
    """Where the survivors of a log go."""
    return min(generation + 1, OLDEST)


def live_share(row: Row, log_size: int) -> float:
    """Live octets as a share of the whole log: what is not used is gained like what is dead."""
    return min(row.live_octets / log_size, 1.0)


def score(row: Row, log_size: int, now: int) -> float:
    """Benefit over cost; `now` in Unix seconds.  A life begins at such a second."""
    live = live_share(row, log_size)
    age = max(now - row.life, 1)
    return (1 - live) * age / (1 + live)


def choose(rows: Iterable[Row], taste: Taste, now: int, avoid: Collection[int] = ()) -> Row | None:
    """The sealed log whose collection pays best, or None if none is worth it."""
    worth = [
        row
        for row in rows
        if row.state == State.SEALED
        and row.number not in avoid
        and 1 - live_share(row, taste.log_size) >= taste.least_garbage(row.generation)
    ]
    return max(worth, key=lambda row: score(row, taste.log_size, now), default=None)
