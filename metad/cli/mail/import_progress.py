"""How far an import has come: a bar on the terminal, rewritten once a second.

    [#########---------------------] 120 of 400 mailboxes, 52,310 messages, 4 min left: x@y.example
    x@y.example: 52,310 messages, 43%, 4 min left

Rule of this file: without a terminal, or with --json, nothing is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from metad.cli import progress
from metad.cli.progress import left

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
        self._share = 0.0  # of this mailbox's source
        self._address = ""
        self._is_shown = False
        self._quiet = quiet or not sys.stderr.isatty()

    def begin(self, address: str) -> None:
        """The next mailbox."""
        self._address = address
        self._share = 0.0

    def message(self) -> None:
        """One message more was read."""
        self._messages += 1
        self._show()

    def reached(self, done: int, total: int) -> None:
        """So much of the mailbox's source has been read."""
        self._share = min(done / total, 1.0) if total else 0.0
        self._show()

    def _show(self) -> None:
        if not self._quiet and self._clock() - self._last >= progress.SECONDS:
            self._last = self._clock()
            self._is_shown = True
            click.echo(f"\r\033[K{self.text()}", err=True, nl=False)

    def end(self) -> None:
        """The mailbox is complete."""
        self.done += 1
        self._share = 0.0

    def close(self) -> None:
        """Make room for the report."""
        if self._is_shown:
            click.echo("\r\033[K", err=True, nl=False)

    def text(self) -> str:
        messages = f"{self._messages:,} messages"
        if self._total <= 1:
            share = f", {self._share:.0%}" if self._share else ""
            return f"{self._address}: {messages}{share}{self._left()}"
        full = WIDTH * self.done // self._total
        bar = "#" * full + "-" * (WIDTH - full)
        which = f"{self.done:,} of {self._total:,} mailboxes"
        return f"[{bar}] {which}, {messages}{self._left()}: {self._address}"

    def _left(self) -> str:
        """The time that is left if the rest takes as long as what has been read."""
        return left(self._clock() - self._began, self.done + self._share, self._total)
