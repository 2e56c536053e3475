"""The rates of the last hour, for the status page: a sample every ten seconds, in memory."""

from __future__ import annotations

import itertools
from collections import deque
from typing import NamedTuple

from metad.monitor.facts import Facts

SAMPLE_SECONDS = 10.0
SAMPLES = 360
COUNTED = ("messages", "retrieved", "logins", "refused")


class Sample(NamedTuple):
    """Counters at a monotonic time in seconds."""

    at: float
    counts: dict[str, int]


class History:
    """Feed it facts; it keeps one sample per interval."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES + 1)

    def add(self, facts: Facts, now: float) -> None:
        """`now`: monotonic seconds."""
        if not self._samples or now - self._samples[-1].at >= SAMPLE_SECONDS:
            counts = {name: facts.totals[name] for name in COUNTED}
            self._samples.append(Sample(now, counts))

    def rates(self) -> dict[str, list[float]]:
        """Per second, oldest first; a counter that ran back (a restart) counts as zero."""
        found: dict[str, list[float]] = {name: [] for name in COUNTED}
        samples = list(self._samples)
        for before, after in itertools.pairwise(samples):
            for name, values in found.items():
                grown = max(after.counts[name] - before.counts[name], 0)
                values.append(round(grown / (after.at - before.at), 2))
        return found
