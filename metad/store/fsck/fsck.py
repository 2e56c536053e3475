"""Checks a whole store: reads and verifies every log, and compares the index with the logs.

Rules of this file:

* It only reads; metad.store.fsck.repair makes changes.
* The index is read before the logs: everything that it knew then is durable in them.  While a hub
  runs, no log may be freed meanwhile (metad.store.backup_lock), and only the part below the
  watermark counts in a log that is being written.
* What the next start will fix by itself (a tail not entered, a free log still in the index, an
  index to be rebuilt) is a note, not damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from metad.store.backup_lock import Pin
from metad.store.fsck.cross_check import Comparison, KnownLog, add_entries
from metad.store.fsck.grouping import Rows
from metad.store.fsck.index_snapshot import Snapshot, count_rows, read_snapshot
from metad.store.fsck.log_check import (
    Checked,
    Headers,
    LogExtent,
    check_log,
    log_numbers,
    read_headers,
)
from metad.store.identity import Store
from metad.store.index import state as index_state
from metad.store.index.rows import LogCounts
from metad.store.log.header import FREE, LogHeader
from metad.store.log.scan import Damage
from metad.store.recovery import one_log
from metad.system.osio import Osio

ROWS_PER_LOG = 50_000  # a guess, to choose the number of parts
# Reasons to ignore an index that are not damage: the next start rebuilds it.
_HARMLESS = ("there is none", "the machine was rebooted", "its file has been replaced")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a store is checked.  `running`: a hub is running, and the caller holds the backup lock;
    `compare`: check the index too, not only checksums."""

    boot: str
    running: bool = False
    compare: bool = True


@dataclass(slots=True)
class Summary:
    """The result of a check.  `compared`: the index was compared; `damage`: ranges of logs to be
    quarantined, including `bad_headers`; `foreign`: logs of another store."""

    findings: int = 0
    logs: int = 0
    records: int = 0
    octets: int = 0
    messages: int = 0
    compared: bool = False
    notes: list[str] = field(default_factory=list)
    damage: list[tuple[LogHeader, Damage]] = field(default_factory=list)
    bad_headers: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings


class Fsck:
    """One check of a store.  `say` gets a line for each fault, `progress` what is counted, the
    number done and the total."""

    def __init__(
        self,
        osio: Osio,
        store: Store,
        plan: Plan,
        say: Callable[[str], None],
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
        pin: Pin | None = None,
    ) -> None:
        """`pin`: what keeps logs from being freed, beside a hub."""
        self._osio = osio
        self._store = store
        self._plan = plan
        self._say_line = say
        self._progress = progress
        self._pin = pin
        self._get_on: Callable[[], None] = pin.renew if pin is not None else lambda: None
        self._rows: Rows | None = None
        self._known: dict[int, KnownLog] = {}
        self._clean_end = False
        self.summary = Summary()

    def run(self) -> Summary:
        """Raises OSError if not even the directory can be read, and LeaseLostError: then what was
        reported may be wrong."""
        self._rows = self._make_rows() if self._plan.compare else None
        try:
            snapshot = self._snapshot()
            headers = self._headers(log_numbers(self._osio, self._store))
            self._logs(headers, snapshot)
            if self._pin is not None:
                self._pin.check()
            if snapshot is not None and self._rows is not None:
                self._rows_of_logs(headers, snapshot)
                self._compare(snapshot, self._rows)
        finally:
            if self._rows is not None:
                self._rows.close()
        return self.summary

    def _make_rows(self) -> Rows:
        logs = len(log_numbers(self._osio, self._store))
        return Rows(count_rows(self._store) + ROWS_PER_LOG * logs)

    def _say(self, text: str) -> None:
        self.summary.findings += 1
        self._say_line(text)

    # -- the index

    def _snapshot(self) -> Snapshot | None:
        """The present index; None, with the reason reported, if it cannot be used."""
        directory, plan = self._store.index, self._plan
        reason = index_state.why_unusable(self._osio, directory, plan.boot)
        if reason is not None:
            if reason.startswith(_HARMLESS):
                self.summary.notes.append(f"index: {reason}; the next start rebuilds it")
            else:
                self._say(f"index: {reason}")
            return None
        # A clean shutdown leaves an index that any boot can use.
        marked = index_state.why_unusable(self._osio, directory, "") is None
        self._clean_end = marked and not plan.running
        total = count_rows(self._store)
        snapshot = read_snapshot(
            self._store, self._rows, self._get_on,
            lambda done: self._progress("rows of the index", min(done, total), total),
        )  # fmt: skip
        for text in snapshot.findings:
            self._say(text)
        return snapshot if snapshot.readable else None

    # -- the logs

    def _headers(self, numbers: list[int]) -> dict[int, Headers]:
        found: dict[int, Headers] = {}
        for number in numbers:
            self._get_on()
            try:
                one = read_headers(self._osio, self._store, number)
            except OSError as error:
                self._say(f"log {number}: its headers cannot be read: {error}")
                one = Headers(number, None)
            if one is None:
                continue
            found[number] = one
            for text in one.findings:
                self._say(text)
            self._note_headers(one)
        return found

    def _note_headers(self, one: Headers) -> None:
        if one.foreign:
            self.summary.foreign.append(one.number)
        if one.bad:
            self.summary.bad_headers.append(one.number)
            if one.log is not None:
                self.summary.damage += [(one.log, stretch) for stretch in one.bad]

    def _logs(self, headers: dict[int, Headers], snapshot: Snapshot | None) -> None:
        logs = {number: one.log for number, one in headers.items() if one.log is not None}
        stops = one_log.predecessors(logs)
        for done, (number, one) in enumerate(headers.items()):
            self._progress("logs", done, len(headers))
            self._get_on()
            if one.log is None:
                self._known[number] = KnownLog(None, 0, False)
            elif one.log.state != FREE:
                row = snapshot.logs.get(number) if snapshot else None
                self._log(one.log, row, stops.get(one.log.life))

    def _log(self, log: LogHeader, row: LogCounts | None, stop: int | None) -> None:
        number, plan = log.number, self._plan
        watermark = row.watermark if row is not None and row.life == log.life else 0
        try:
            bound = LogExtent(stop, watermark, plan.running)
            checked = check_log(self._osio, self._store, log, bound)
        except OSError as error:
            self._say(f"log {number}: it cannot be read: {error}")
            self._known[number] = KnownLog(None, watermark, plan.running)
            return
        for text in checked.findings:
            self._say(text)
        self.summary.logs += 1
        self.summary.records += checked.records
        self.summary.octets += checked.octets
        self.summary.damage += [(log, stretch) for stretch in checked.damage]
        if self._rows is not None:
            add_entries(self._rows, checked, watermark)
        self._known[number] = KnownLog(checked, watermark, plan.running)
        if watermark:
            self._watermark(checked, watermark)
        elif checked.entries and self._clean_end and self._plan.compare:
            self._say(f"index: log {number} is not in it, and has mail")
        checked.entries, checked.uids = b"", []  # this fills memory

    def _watermark(self, checked: Checked, watermark: int) -> None:
        number = checked.log.number
        if watermark > checked.end and not checked.damage:
            self._say(
                f"index: it has log {number} up to {watermark}, the log ends at {checked.end}"
            )
        elif watermark < checked.end and not self._plan.running:
            text = f"it has log {number} up to {watermark}, the log goes on to {checked.end}"
            if self._clean_end and checked.sealed:
                self._say(f"index: {text}")
            else:
                self.summary.notes.append(f"index: {text}; the next start enters the rest")

    # -- both

    def _rows_of_logs(self, headers: dict[int, Headers], snapshot: Snapshot) -> None:
        """Logs in the index that are gone, free or in another life."""
        for number, row in snapshot.logs.items():
            one = headers.get(number)
            log = one.log if one is not None else None
            if one is not None and log is None:
                continue  # already reported
            there = log is not None and log.state != FREE and log.life == row.life
            if there:
                continue
            if row.live_messages or row.live_octets:
                self._say(f"index: log {number} has {row.live_messages} live messages {_gone(log)}")
            elif self._clean_end and log is None:
                self._say(f"index: log {number} is not there")
            self._known.pop(number, None)

    def _compare(self, snapshot: Snapshot, rows: Rows) -> None:
        comparison = Comparison(
            self._known, self._clean_end, self._say, clustered=self._store.clustered
        )
        for done, part in enumerate(rows):
            self._progress("parts of the index", done, len(rows))
            comparison.part(part)
        summary = self.summary
        summary.messages = comparison.messages
        summary.compared = True
        if comparison.pending:
            summary.notes.append(
                f"index: {comparison.pending} places in logs that are free or not there; "
                "the next collection drops them"
            )
        live = comparison.live
        for number in sorted(live.keys() | snapshot.logs.keys()):
            messages, octets = live.get(number, (0, 0))
            row = snapshot.logs.get(number, LogCounts())
            if (messages, octets) != (row.live_messages, row.live_octets):
                self._say(
                    f"index: log {number} is listed with {row.live_messages} live messages of "
                    f"{row.live_octets} bytes, but has {messages} of {octets}"
                )


def _gone(log: LogHeader | None) -> str:
    if log is None:
        return "and is not there"
    return "and is free" if log.state == FREE else f"and began a new life ({log.life})"
