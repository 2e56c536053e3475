"""The progress of a command and its remaining time: a line on a terminal, rewritten once a second.

    12 of 40 logs, 3 min left

Rule of this file: a command that takes less than a second, has no terminal, or prints JSON shows
nothing.  Only a hub that is silent is named on a terminal whatever the command prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

SECONDS = 1.0
ROWS = 1024


def left(seconds: float, done: float, total: float) -> str:
    """The remaining time, after a comma, extrapolated from the `seconds` so far."""
    if done <= 0 or done >= total:
        return ""
    rest = seconds / done * (total - done)
    return f", {rest / 60:.0f} min left" if rest >= 60 else f", {rest:.0f} s left"


def tell_silence(hub: str, left: float) -> None:
    """Name the hub that is waited for, for at most `left` seconds more; 0: no longer."""
    if sys.stderr.isatty():
        text = f"waiting for {hub}, at most {left:.0f} s more" if left > 0 else ""
        click.echo(f"\r\033[K{text}", err=True, nl=False)


class Progress:
    """`unit`: what is counted, in the plural.  `clock`: monotonic seconds."""

    def __init__(
        self, unit: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unit = unit
        self._clock = clock
        self._began = self._last = clock()
        self._quiet = quiet or not sys.stderr.isatty()
        self._is_shown = False

    def show(self, done: int, total: int, more: str = "") -> None:
        """`done` of `total`, if that is known (not 0); `more` follows."""
        now = self._clock()
        if self._quiet or now - self._last < SECONDS:
            return
        self._last = now
        self._is_shown = True
        text = f"{done:,} of {total:,} {self._unit}{left(now - self._began, done, total)}"
        shown = text + more if total else more.removeprefix(", ")
        click.echo(f"\r\033[K{shown}", err=True, nl=False)

    def row(self, done: int, total: int) -> None:
        """Like `show`, for a loop of many quick turns: most calls do not look at the clock."""
        if not done % ROWS:
            self.show(done, total)

    def step(self, unit: str, done: int, total: int) -> None:
        """Like `show`, for a command of several steps: a new `unit` begins the next one."""
        if unit != self._unit:
            self._unit = unit
            self._began = self._clock()
        self.show(done, total)

    def close(self) -> None:
        """Clear the line for other output."""
        if self._is_shown:
            self._is_shown = False
            click.echo("\r\033[K", err=True, nl=False)
