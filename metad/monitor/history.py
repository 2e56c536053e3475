"""Rates and latencies of the last hour, for the status page: a sample every ten seconds."""

from __future__ import annotations

import itertools
from collections import deque
from typing import NamedTuple

from metad.monitor.facts import Facts
from metad.system.histograms import COMMIT_TIME, Counts, quantile

SAMPLE_SECONDS = 10.0
SAMPLES = 360
COUNTED = ("messages", "bytes", "retrieved", "logins", "refused")
# Shares of the commits that took at most the time shown.
SHARES = {"half": 0.5, "most": 0.99}


class Sample(NamedTuple):
    """Counters at a monotonic time in seconds."""

    at: float
    counts: dict[str, int]
    commits: Counts | None


class History:
    """Feed it facts; it keeps one sample per interval."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES + 1)

    def add(self, facts: Facts, now: float) -> None:
        """`now`: monotonic seconds."""
        if not self._samples or now - self._samples[-1].at >= SAMPLE_SECONDS:
            counts = {name: facts.totals[name] for name in COUNTED}
            commits = facts.histograms.get(COMMIT_TIME.name)
            self._samples.append(Sample(now, counts, commits))

    def rates(self) -> dict[str, list[float]]:
        """Per second, oldest first; a counter that decreased (a restart) counts as zero."""
        found: dict[str, list[float]] = {name: [] for name in COUNTED}
        samples = list(self._samples)
        for before, after in itertools.pairwise(samples):
            for name, values in found.items():
                grown = max(after.counts[name] - before.counts[name], 0)
                values.append(round(grown / (after.at - before.at), 2))
        return found

    def latencies(self) -> dict[str, list[float | None]]:
        """Milliseconds within which half and 99 % of the commits ended, oldest first; None if there
        were none.  These are upper bounds: those of the histogram's buckets."""
        found: dict[str, list[float | None]] = {name: [] for name in SHARES}
        for before, after in itertools.pairwise(list(self._samples)):
            for name, share in SHARES.items():
                seconds = None
                if before.commits is not None and after.commits is not None:
                    seconds = quantile(after.commits - before.commits, COMMIT_TIME, share)
                found[name].append(None if seconds is None else round(1000 * seconds, 3))
        return found
