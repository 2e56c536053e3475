"""Which log the collector empties next: by benefit and cost, older generations less often.

The measure comes from log-structured file systems (Rosenblum and Ousterhout, 1992): a log that is
`u` live gives 1 - u of a log and costs what has to be read and written for it; and what has not
changed for a long time will not soon be emptier by itself, so its garbage is worth more now.
Theirs is (1 - u) * age / (1 + u).  Ours differs in two points, each tried on a month of simulated
mail (perf/write_amplification.py):

    (1 - u) * sqrt(age) / (0.1 + 2 u)

* Only live records are read, by the footer: the cost is 2 u and a little for the index.
* Mail lives from minutes to weeks.  With the whole age as a factor, logs of weeks were emptied
  that had hardly any garbage.

Generations sort mail by how long it has stayed already: a young log empties itself if it is left
alone for a while, an old one hardly changes.  Survivors among new mail keep logs from ever being
empty, and were moved again with it.  While the hub is idle nothing presses, so an older log has to
be emptier than a young one before it is touched.

Rules of this file: nothing but arithmetic on rows of the log table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from metad.store.log_table import Row, State

OLDEST = 3  # survivors of this generation stay in it
# Full logs are not full to the last octet: padding, the seal, room for one more message.
SLACK = 0.15
# What emptying a log costs beyond its live mail, as a share of a log: footer, index.
READ = 0.1
# The share of what was written to a log that must be dead, unless half of the log was never used.
LEAST_DEAD = 0.05


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """What is worth collecting.

    `log_size` octets; `garbage`: the share of a log of generation 0 that must be dead.  With
    `older` the share of live mail that is borne shrinks by that factor with each generation.
    `kept`: octets of deletion records that a collector had to keep, by log: they are not garbage.
    """

    log_size: int
    garbage: float = 0.7
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
        return (1 - live) * math.sqrt(max(now - row.life, 1)) / (READ + 2 * live)

    def is_worth(self, row: Row) -> bool:
        enough = 1 - self.live_share(row) >= self.least_garbage(row.generation)
        return enough and self.gains(row)

    def gains(self, row: Row) -> bool:
        """Whether moving what is alive gives room back.

        Room that was never used is no gain where the survivors leave as much unused: messages of a
        fifth of a log fill four fifths of the next one too, and would be moved for ever.
        """
        dead = row.tail - row.live_octets - self.kept.get(row.number, 0)
        return dead >= LEAST_DEAD * row.tail or row.tail <= self.log_size // 2


def next_generation(generation: int) -> int:
    """Where the survivors of a log go."""
    return min(generation + 1, OLDEST)


def has_garbage(row: Row, kept: int = 0) -> bool:
    """Whether anything in a log is dead, or most of it was never used: for a full collection."""
    return row.live_octets + kept < 0.97 * row.tail


def choose(
    rows: Iterable[Row], taste: GcPolicy, now: int, avoid: Collection[int] = ()
) -> Row | None:
    """The sealed log whose collection pays best, or None if none is worth it."""
    worth = (
        row
        for row in rows
        if row.state == State.SEALED and row.number not in avoid and taste.is_worth(row)
    )
    return max(worth, key=lambda row: taste.score(row, now), default=None)
