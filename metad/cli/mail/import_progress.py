"""How far an import has come: a bar on the terminal, rewritten once a second.

    [#########---------------------] 120 of 400 mailboxes, 52,310 messages, 4 min left: x@y.example

Rule of this file: without a terminal, or with --json, nothing is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from metad.cli.progress import left

PROGRESS_SECONDS = 1.0
WIDTH = 30


class Progress:
    """`quiet`: show nothing.  `done`: mailboxes.  `clock`: monotonic seconds."""

    def __init__(
        self, total: int, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._clock = clock
        self._began = self._last = clock()
        self.done = 0
        self._messages = 0
        self._address = ""
        self._is_shown = False
        self._quiet = quiet or not sys.stderr.isatty()

    def begin(self, address: str) -> None:
        """The next mailbox."""
        self._address = address

    def message(self) -> None:
        """One message more was read."""
        self._messages += 1
        if not self._quiet and self._clock() - self._last >= PROGRESS_SECONDS:
            self._last = self._clock()
            self._is_shown = True
            click.echo(f"\r\033[K{self.text()}", err=True, nl=False)

    def end(self) -> None:
        """The mailbox is complete."""
        self.done += 1

    def close(self) -> None:
        """Make room for the report."""
        if self._is_shown:
            click.echo("\r\033[K", err=True, nl=False)

    def text(self) -> str:
        messages = f"{self._messages:,} messages"
        if self._total <= 1:
            return f"{self._address}: {messages}"
        full = WIDTH * self.done // self._total
        bar = "#" * full + "-" * (WIDTH - full)
        which = f"{self.done:,} of {self._total:,} mailboxes"
        return f"[{bar}] {which}, {messages}{self._left()}: {self._address}"

    def _left(self) -> str:
        """The time that is left if the other mailboxes take as long as those before."""
        return left(self._clock() - self._began, self.done, self._total)
