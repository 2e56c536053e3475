"""Back-off: how long to wait before retrying after a failure.

The delay doubles with each failure in a row and is bounded, so that immediate failures do not spin,
and recovery is noticed soon.
"""

from __future__ import annotations

from typing import NamedTuple


class Backoff(NamedTuple):
    """Seconds of the first delay, and of the longest."""

    first: float
    longest: float

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; none: no wait."""
        if failures <= 0:
            return 0.0
        # 2.0**1024 overflows, and by then any bound is reached.
        return float(min(self.first * 2.0 ** min(failures - 1, 64), self.longest))
