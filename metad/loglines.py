"""Log lines to standard error: queued, and written once per turn of the loop.

    2026-11-23T21:14:02 metad/smtp[4711]: 0006…: client=192.0.2.1, size=512, nrcpt=1, status=stored

docs/logging.md has every field.

Rules of this file:

* A log that is not read blocks nothing: lines that do not fit at once are dropped, counted, and
  reported when there is room again.
* No client input is logged with a control character in it.
* Equal lines, and many lines of one client network, are combined: no client can fill a disk.
* In the journal the time is left out, and warnings carry their priority (sd-daemon(3)).  Syslog has
  its own form.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from metad.system import syslog
from metad.system.log_output import LogOutput
from metad.system.systemd import priority, to_journal

# Seconds over which repeated lines are combined, the lines of one source written in that time, and
# the lines remembered.
INTERVAL = 10.0
LINES_OF_SOURCE = 200
REMEMBERED = 10_000


def clean(text: str, most: int = 256) -> str:
    """A client's `text`, escaped for a log line: bounded, without control characters, including
    Unicode's: U+009B controls a terminal, U+202E reverses text, U+2028 ends a line."""
    if len(text) <= most and text.isprintable():
        return text
    return "".join([one if one.isprintable() else "?" for one in text[:most]])


def _pairs(fields: Mapping[str, object]) -> str:
    """`name=value, …`, addresses and the like in angle brackets.

    Without a call for each field, which would cost as much as all the rest.
    """
    return ", ".join(
        [
            f"{name}={','.join([f'<{one}>' for one in value])}"
            if isinstance(value, tuple)
            else f"{name}=<{value}>"
            if name in BRACKETED
            else f"{name}={value}"
            for name, value in fields.items()
        ]
    )


# Fields whose values a client or a user chose.
BRACKETED = frozenset({"argument", "from", "helo", "message-id", "user", "master"})


class LogLines:
    """The queue of one process.  Without `call_soon` each line is written at once.

    `as_json`: each line is one object of JSON.
    """

    def __init__(
        self,
        fd: int = 2,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        self._output = LogOutput(fd)
        self._call_soon = call_soon
        self._lines: list[str] = []
        self._pid = os.getpid()
        self._tag = f"[{self._pid}]:"
        self._second = -1
        self._stamp = ""
        self._in_journal = to_journal(fd)
        self._in_syslog = syslog.is_syslog(fd)
        self._rest = b""  # of a partly written line
        self._unreported = 0
        self._summaries = _Summaries()
        self.as_json = as_json
        self.dropped = 0

    def line(self, service: str, text: str) -> None:
        """Queue one line of `service` (smtp, pop3, master, …).  Repeated warnings are combined."""
        if not text.startswith("warning:") or self._is_new("", service, text):
            self._queue(service, text, None)

    def plain(self, service: str, text: str) -> None:
        """Queue a line of text that is not a warning."""
        lines = self._lines
        lines.append(f"metad/{service}{self._tag} {text}\n")
        if len(lines) == 1:
            (self._call_soon or _at_once)(self.flush)

    def event(
        self, service: str, event: str, fields: Mapping[str, object], subject: str = ""
    ) -> None:
        """Queue a line of fields: `event: name=value, …`; `subject` takes the event's place."""
        if self.as_json:
            named = {"event": event, "id": subject} if subject else {"event": event}
            self._queue(service, "", {**named, **fields})
        else:
            self._queue(service, f"{subject or event}: {_pairs(fields)}", None)

    def limited(self, source: str, service: str, event: str, fields: Mapping[str, object]) -> None:
        """The same, for what one client network (`source`) can cause again and again."""
        if self._is_new(source, service, f"{event}: {_pairs(fields)}"):
            self.event(service, event, fields)

    def limited_line(self, source: str, service: str, text: str) -> None:
        """The same for a line of text."""
        if self._is_new(source, service, text):
            self._queue(service, text, None)

    def _is_new(self, source: str, service: str, text: str) -> bool:
        summaries = self._summaries
        now = time.monotonic()
        if summaries.is_due(now):
            self._report_repeated(now)
        return summaries.note(source, service, text)

    def _report_repeated(self, now: float) -> None:
        for service, text, count in self._summaries.take(now):
            self._queue(service, f"{text} (repeated {count} times in {INTERVAL:g} s)", None)

    def tick(self) -> None:
        """Call this now and then: report combined and dropped lines."""
        now = time.monotonic()
        if self._summaries.is_due(now):
            self._report_repeated(now)
        if self._rest or self._unreported:
            self.flush()

    def _queue(self, service: str, text: str, event: dict[str, object] | None) -> None:
        lines = self._lines
        lines.append(self._made(service, text, event))
        if self._call_soon is None:
            self.flush()
        elif len(lines) == 1:
            self._call_soon(self.flush)

    def _made(self, service: str, text: str, event: dict[str, object] | None) -> str:
        if self.as_json:
            return self._json(service, event or {"event": "line", "text": text})
        mark = priority(text) if self._in_journal else ""
        return f"{mark}metad/{service}{self._tag} {text}\n"

    def _json(self, service: str, event: dict[str, Any]) -> str:
        head = {"time": round(time.time(), 3), "service": service, "pid": self._pid}
        return json.dumps({**head, **event}, ensure_ascii=False) + "\n"

    def _time(self) -> str:
        if self._in_journal or self.as_json:
            return ""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._stamp = (
                syslog.stamp(now)
                if self._in_syslog
                else time.strftime("%Y-%m-%dT%H:%M:%S ", time.localtime(now))
            )
        return self._stamp

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if (self._rest or self._unreported) and not self._catch_up():
            self._drop(len(lines))
        elif lines:
            self._write(lines)

    def _write(self, lines: list[str]) -> None:
        stamp = self._time()  # of this turn: a line is not queued for longer
        data = (stamp + stamp.join(lines)).encode("utf-8", "replace")
        written = self._output.write(data)
        if written == len(data):
            return
        if written and not data.startswith(b"\n", written - 1):  # the rest of that line is kept
            end = data.index(b"\n", written) + 1
            self._rest, written = data[written:end], end
        self._drop(data.count(b"\n", written))

    def _catch_up(self) -> bool:
        """Write the rest of a line, then how many were dropped.  Returns whether all of it
        fitted."""
        self._rest = self._rest[self._output.write(self._rest) :]
        if self._rest or not self._unreported:
            return not self._rest
        count, self._unreported = self._unreported, 0
        self._write([self._made("log", f"warning: {count} log lines were dropped unread", None)])
        if self._unreported:  # the report itself did not fit
            self.dropped -= 1
            self._unreported = count
        return not (self._rest or self._unreported)

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._unreported += count


def _at_once(call: Callable[[], object]) -> object:
    return call()


class _Summaries:
    """Lines of the current interval by source and text, with how often each was repeated."""

    def __init__(self) -> None:
        self._until = 0.0
        self._seen: dict[tuple[str, str, str], int] = {}
        self._of_source: dict[str, int] = {}

    def is_due(self, now: float) -> bool:
        """The interval is over."""
        return now >= self._until

    def note(self, source: str, service: str, text: str) -> bool:
        """Whether to write a line: it is new, and its source has not too many."""
        key = (source, service, text)
        seen = self._seen
        if key in seen:
            seen[key] += 1
            return False
        count = self._of_source.get(source, 0)
        if (source and count >= LINES_OF_SOURCE) or len(seen) >= REMEMBERED:
            key = (source, service, f"reject: client={source}: more lines of this client")
            if key not in seen and len(seen) >= 2 * REMEMBERED:  # a flood from many networks
                key = ("", "log", "more lines of other clients")
            seen[key] = seen.get(key, 0) + 1
            return False
        self._of_source[source] = count + 1
        seen[key] = 0
        return True

    def take(self, now: float) -> list[tuple[str, str, int]]:
        """Service, text and number of the repeated lines; a new interval begins."""
        found = [(service, text, n) for (_, service, text), n in self._seen.items() if n]
        self._seen.clear()
        self._of_source.clear()
        self._until = now + INTERVAL
        return found
