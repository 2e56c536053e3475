"""Which log the collector empties next: by benefit and cost; older generations less often.

The measure comes from log-structured file systems (Rosenblum and Ousterhout, 1992).  A log with a
live share `u` yields 1 - u of a log, and costs the reading and writing of the rest.  A log that has
not changed for long will not soon become emptier by itself, so its garbage is worth more now.
Theirs is (1 - u) * age / (1 + u).  Ours differs in two points, each tried on a month of simulated
mail (perf/write_amplification.py):

    (1 - u) * sqrt(age) / (0.1 + 2 u)

* Only live records are read, by the footer: the cost is 2 u and a little for the index.
* Mail lives from minutes to weeks.  With the full age as a factor, logs several weeks old were
  collected that had hardly any garbage.

Generations sort mail by how long it has stayed already: a young log empties by itself if it is left
alone for a while; an old one hardly changes.  Survivors mixed with new mail would keep logs from
ever becoming empty, and would be moved again and again.  While the hub is idle there is no hurry,
so an older log must be emptier than a young one before it is collected.

Rule of this file: only arithmetic on rows of the log table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from metad.store.log_table import LogState, Row

OLDEST = 3  # survivors of this generation stay in it
# Full logs are not full to the last octet: padding, the seal, space too small for another message.
SLACK = 0.15
# The cost of emptying a log beyond its live mail, as a share of a log: footer, index.
READ = 0.1
# The share of a log's written data that must be dead, unless half of the log was never used.
LEAST_DEAD = 0.05


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """What is worth collecting.

    `log_size` octets; `garbage`: the share of a log of generation 0 that must be dead.  `older`:
    the tolerated share of live mail shrinks by this factor with each generation.  `kept`: octets of
    deletion records that a collector had to keep, by log; they are not garbage.
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
        """The garbage of the whole log: unused space is gained like dead space."""
        return min((row.live_octets + self.kept.get(row.number, 0)) / self.log_size, 1.0)

    def score(self, row: Row, now: int) -> float:
        """Benefit over cost; `now` in Unix seconds.  A life begins at a Unix second."""
        live = self.live_share(row)
        return (1 - live) * math.sqrt(max(now - row.life, 1)) / (READ + 2 * live)

    def is_worth(self, row: Row) -> bool:
        enough = 1 - self.live_share(row) >= self.least_garbage(row.generation)
        return enough and self.gains(row)

    def gains(self, row: Row) -> bool:
        """Whether moving the live mail gains space.

        Unused space is no gain if the survivors leave as much unused: messages of a fifth of a log
        fill four fifths of the next one too, and would be moved forever.
        """
        dead = row.tail - row.live_octets - self.kept.get(row.number, 0)
        return dead >= LEAST_DEAD * row.tail or row.tail <= self.log_size // 2


def next_generation(generation: int) -> int:
    """The generation to which the survivors of a log go."""
    return min(generation + 1, OLDEST)


def has_garbage(row: Row, kept: int = 0) -> bool:
    """For a full collection: whether a log has garbage, or most of it was never used."""
    return row.live_octets + kept < 0.97 * row.tail


def choose(
    rows: Iterable[Row], taste: GcPolicy, now: int, avoid: Collection[int] = ()
) -> Row | None:
    """The sealed log whose collection pays best, or None if none is worth it."""
    worth = (
        row
        for row in rows
        if row.state == LogState.SEALED and row.number not in avoid and taste.is_worth(row)
    )
    return max(worth, key=lambda row: taste.score(row, now), default=None)
