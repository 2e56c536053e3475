"""Hub time: follows the wall clock forward, never back, and ignores large jumps.

Ids contain hub time, so it must never run back.  Following a wall clock that is years ahead for a
minute would bind the store to that time permanently.

Rules of this file:

* Hub time follows the wall clock forward by up to a day at once, at a start by up to 100 days
  behind the greatest id that this node made.
* A greater jump is reported, not followed, and nothing expires until the clocks agree again or an
  operator confirms the clock (`metad store time --accept`).
* A wall clock that is behind stops nothing: hub time continues at its own pace, and the smaller of
  the two gives the age of mail.
"""

from __future__ import annotations

from collections.abc import Callable

from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea

DAY_NS = 86_400 * 10**9
JUMP_NS = DAY_NS
START_JUMP_NS = 100 * DAY_NS
AGREES, SUSPECT = 0, 1


def begin(osio: Osio, area: SharedArea, greatest_id_us: int) -> None:
    """Set hub time at a start: the wall clock, or just after the greatest id of this node."""
    least = (greatest_id_us + 1) * 1000
    real = osio.time_ns()
    is_plausible = not greatest_id_us or real - least <= START_JUMP_NS
    now = max(real, least) if is_plausible else least
    area.clock_suspect = AGREES if is_plausible else SUSPECT
    area.clock_offset = now - osio.boottime_ns()


class HubTime:
    """Kept by one process: the master."""

    def __init__(self, osio: Osio, area: SharedArea, report: Callable[[str], None]) -> None:
        self._osio = osio
        self._area = area
        self._report = report
        self._reported = False

    def ahead_ns(self) -> int:
        """How far the wall clock is ahead of hub time."""
        return self._osio.time_ns() - self._osio.boottime_ns() - self._area.clock_offset

    def look(self) -> None:
        """Follow the wall clock if it did not jump.  Call this every few seconds."""
        ahead = self.ahead_ns()
        if ahead > JUMP_NS:
            self._area.clock_suspect = SUSPECT
            self._report_jump(ahead)
            return
        if ahead > 0:
            self._area.clock_offset += ahead
        if self._area.clock_suspect:
            self._area.clock_suspect = AGREES
            self._report("the clock agrees with the mail again; mail expires")
        self._reported = False

    def answer(self, *, accept: bool) -> dict[str, int | bool]:
        """For `metad store time`, in microseconds.  `accept`: the wall clock is right, so hub time
        follows it at any distance."""
        ahead = self.ahead_ns()
        if accept and ahead > 0:
            self._area.clock_offset += ahead
            self.look()
        real = self._osio.time_ns() // 1000
        return {
            "clock_us": real,
            "hub_time_us": real - self.ahead_ns() // 1000,
            "suspect": self._area.clock_suspect == SUSPECT,
        }

    def _report_jump(self, ahead: int) -> None:
        if not self._reported:
            self._reported = True
            self._report(
                f"warning: the clock is {ahead // DAY_NS} days ahead of the newest mail; nothing "
                "expires until metad store time --accept says that it is right"
            )
