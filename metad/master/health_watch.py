"""The master checks every few seconds whether the hub is well, and records since when it is not.

Rules of this file:

* A problem is logged when it begins and when it ends, once each.
* Shared memory may hold anything: a failing check must not end the hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from metad.master.hub import Hub
from metad.monitor import facts as monitor_facts
from metad.monitor.health import Health, Report
from metad.store.log_table import Row

LOOK_SECONDS = 5.0


class HealthWatch:
    """`rows` gives the log table; `report(text)` writes to the log."""

    def __init__(
        self, hub: Hub, rows: Callable[[], list[Row]], report: Callable[[str], None]
    ) -> None:
        self._hub = hub
        self._rows = rows
        self._report = report
        self._health = Health(lambda: hub.config)
        self._looked = float("-inf")
        self._known: dict[str, str] = {}  # text of a problem -> kind: what was logged
        self._state = ""
        self._since = 0

    def look(self, now: float, phase: str) -> None:
        """To be called often; `now` in monotonic seconds; `phase`: empty if the hub serves."""
        if phase or now - self._looked < LOOK_SECONDS:
            return
        try:
            self.now()
        except Exception as error:
            self._report(f"warning: the hub's health cannot be checked: {error!r}")

    def now(self) -> Report:
        """What is wrong at this moment."""
        self._looked = time.monotonic()
        report = self._health.look(monitor_facts.take(self._hub.area, self._rows()))
        found = {one.text: one.remedy for one, _ in report.problems}
        for text, remedy in found.items():
            if text not in self._known:
                self._report(f"warning: {text} (to do: {remedy})")
        for text in self._known:
            if text not in found:
                self._report(f"no longer: {text}")
        self._known = found
        return report

    def facts(self, phase: str) -> dict[str, Any]:
        """For the status: the state, since when it is so (Unix time), and each problem.

        `phase`: what the hub is doing, empty if it serves.
        """
        report = self.now()
        state = phase or report.state
        if state != self._state:
            begun = [since for _, since in report.problems]
            self._since = min(begun) if begun and not phase else int(time.time())
            self._state = state
        return {"state": state, "since": self._since, "problems": report.facts()}
