"""The phases of a hub's life; metad.master.master goes from one to the next."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Phases of a hub, by the names that `metad status` shows."""

    RECOVERING = "recovering"
    STARTING = "starting"
    SERVING = "serving"
    REBUILDING = "rebuilding"
    DRAINING = "draining"
    CLOSING = "closing"
    ENDED = "ended"

    @property
    def busy(self) -> str:
        """Its name; empty while the hub serves."""
        return "" if self is Phase.SERVING else str(self.value)
