"""Which log the collector empties next: by benefit and cost, older generations less often.

The measure is that of log-structured file systems (Rosenblum and Ousterhout, 1992): a log that is
`u` live gives 1 - u of a log, costs 1 to read and u to write, and what has not changed for long
will not soon be free by itself, so that its garbage is worth more now:

    (1 - u) * age / (1 + u)

Generations sort mail by how long it has stayed already: a young log empties itself if it is left
alone for a while, and an old one hardly changes.  An older generation has to be emptier before it
is touched at all; moving the same mail again and again is what a collector without generations
pays for (perf/write_amplification.py has the figures).

Rules of this file: nothing but arithmetic on rows of the log table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from metad.store.table import Row, State

OLDEST = 3  # survivors of this generation stay in it
# Full logs are not full to the last octet: padding, the seal, room for one more message.
SLACK = 0.15


@dataclass(frozen=True, slots=True)
class Taste:
    """What is worth collecting.

    `log_size` octets; `garbage`: the share of a log of generation 0 that must be dead.  With
    `older` the share of live mail that is borne shrinks by that factor with each generation.
    `kept`: octets of deletion records that a collector had to keep, by log: they are not garbage.
    """

    log_size: int
    garbage: float = 0.5
    older: float = 0.75
    kept: Mapping[int, int] = field(default_factory=dict)

    def least_garbage(self, generation: int) -> float:
        """The dead share that a log of this generation must have."""
        borne = (1 - self.garbage) * self.older ** min(generation, OLDEST)
        return max(1 - borne, SLACK)

    def live_share(self, row: Row) -> float:
        """Of the whole log: what was never used is gained like what is dead."""
        return min((row.live_octets + self.kept.get(row.number, 0)) / self.log_size, 1.0)

    def score(self, row: Row, now: int) -> float:
        """Benefit over cost; `now` in Unix seconds.  A life begins at such a second."""
        live = self.live_share(row)
        return (1 - live) * max(now - row.life, 1) / (1 + live)

    def is_worth(self, row: Row) -> bool:
        return 1 - self.live_share(row) >= self.least_garbage(row.generation)


def next_generation(generation: int) -> int:
    """Where the survivors of a log go."""
    return min(generation + 1, OLDEST)


def has_garbage(row: Row, kept: int = 0) -> bool:
    """Whether anything in a log is dead, or most of it was never used: for a full collection."""
    return row.live_octets + kept < 0.97 * row.tail


def choose(rows: Iterable[Row], taste: Taste, now: int, avoid: Collection[int] = ()) -> Row | None:
    """The sealed log whose collection pays best, or None if none is worth it."""
    worth = (
        row
        for row in rows
        if row.state == State.SEALED and row.number not in avoid and taste.is_worth(row)
    )
    return max(worth, key=lambda row: taste.score(row, now), default=None)
