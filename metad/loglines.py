"""Log lines to standard error: queued, and written once per turn of the loop.

    2026-11-23T21:14:02 metad/smtp[4711]: 0006…: client=192.0.2.1, size=512, nrcpt=1, status=stored

Rules of this file:

* A log that blocks never blocks mail: what the descriptor does not take at once is dropped and
  counted.
* Nothing a client sent goes out with a control character in it.
* In the journal the time is left out, and warnings carry their priority (sd-daemon(3)).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from metad.system.systemd import priority, to_journal

_CONTROL = dict.fromkeys((*range(32), 127), "?")


def clean(text: str, most: int = 256) -> str:
    """`text` of a client, fit for a log line: no control characters, bounded."""
    if len(text) <= most and text.isprintable():
        return text
    return text[:most].translate(_CONTROL)


class LogLines:
    """The queue of one process.  Without `call_soon` each line is written at once."""

    def __init__(
        self, fd: int = 2, call_soon: Callable[[Callable[[], None]], object] | None = None
    ) -> None:
        self._fd = fd
        self._call_soon = call_soon
        self._lines: list[str] = []
        self._tag = f"[{os.getpid()}]:"
        self._second = -1
        self._stamp = ""
        self._in_journal = to_journal(fd)
        self.dropped = 0

    def line(self, service: str, text: str) -> None:
        """Queue one line of `service` (smtp, pop3, master, …)."""
        lines = self._lines
        mark = priority(text) if self._in_journal else ""
        lines.append(f"{mark}metad/{service}{self._tag} {text}\n")
        if self._call_soon is None:
            self.flush()
        elif len(lines) == 1:
            self._call_soon(self.flush)

    def _time(self) -> str:
        if self._in_journal:
            return ""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S ", time.localtime(now))
        return self._stamp

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        stamp = self._time()  # of the turn: a line is queued for no longer
        data = (stamp + stamp.join(lines)).encode("utf-8", "replace")
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.dropped += data.count(b"\n", written)
