"""Recovery: one path for a restart, a dead worker and a power cut.

For each log without a living writer and without a seal: take its lock, sync it, find its end,
enter its tail in the index, state the end in a seal.  After that nothing is ever appended to it.

Rules of this file:

* Without the log's flock nothing is touched: somebody living has it.
* Messages of all tails are entered before the deletions of all tails: order between logs never
  matters.
* Damage is copied to quarantine/ and reported; it never means "delete", and nothing from there is
  put back by itself.
* A poisoned log ends where its successor says, and is not written to again, not even a seal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

from metad.errors import DamagedError
from metad.osio import Osio
from metad.store import footer, header, index_state, logfile, record
from metad.store.header import FREE, LogHeader
from metad.store.identity import Store
from metad.store.ids import ID_SIZE, time_of
from metad.store.index import Batch, Index, LogCounts, Message, Place
from metad.store.log import Footer, seal
from metad.store.scan import Damage, Found, Scanner, find_seal
from metad.store.table import LogTable, Row, State

Report = Callable[[str], None]
BATCH = 1000


class Tail(NamedTuple):
    """What lies in a log beyond some offset, ready for the index."""

    messages: list[Message]
    deletions: list[record.Deletion]
    entries: bytes
    damage: list[Damage]
    end: int
    sequence: int


class Recovery:
    """Recovers the logs of one store.  Opened after the fork; the only opener of the index."""

    def __init__(self, osio: Osio, store: Store, report: Report) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self.damaged = 0

    # -- the whole hub

    def run(self, table: LogTable, boot: str) -> int:
        """Recover everything before the first worker starts.

        Fills the table, leaves a usable index.  Returns the greatest time in any id, in us.
        Raises OSError, lmdb.Error, DamagedError.
        """
        logs = self._headers()
        reason = self._why_rebuild(logs, boot)
        index = self._fresh_index(reason) if reason else Index(self._store.index)
        try:
            index_state.mark(self._osio, self._store.index, boot, clean=False)
            ends = self.recover_logs(index, logs, rebuild=reason is not None)
            self._fill_table(table, logs, ends, index)
            newest = time_of(index.greatest_id())
            lives = max((log.life for log in logs.values()), default=0)
            index.sync()
        finally:
            index.close()
        return max(newest, lives * 1_000_000)

    def _headers(self) -> dict[int, LogHeader]:
        """Number and header of every log file.  Raises DamagedError for one without any."""
        found: dict[int, LogHeader] = {}
        for name in sorted(self._osio.listdir(self._store.logs)):
            if not name.endswith(".log"):
                continue
            number = int(name[:-4])
            log = self.read_header(number)
            if log is None:
                raise DamagedError(f"log {number}: no header verifies; see metad fsck")
            found[number] = log
        return found

    def read_header(self, number: int) -> LogHeader | None:
        fd = self._osio.open(header.log_path(self._store.logs, number), os.O_RDONLY)
        try:
            return header.read(self._osio, fd, self._store.secret)
        finally:
            self._osio.close(fd)

    def _why_rebuild(self, logs: dict[int, LogHeader], boot: str) -> str | None:
        reason = index_state.why_unusable(self._osio, self._store.index, boot)
        if reason is not None:
            return reason
        index = Index(self._store.index)
        try:
            for number, counts in index.logs().items():
                log = logs.get(number)
                if log is None or log.life != counts.life:
                    return f"log {number} is not in the life that it speaks of"
        finally:
            index.close()
        return None

    def _fresh_index(self, reason: str) -> Index:
        self._report(f"index: {reason}; rebuilding it from the logs")
        shutil.rmtree(self._store.index, ignore_errors=True)
        self._osio.mkdir(self._store.index)
        return Index(self._store.index)

    def _fill_table(
        self, table: LogTable, logs: dict[int, LogHeader], ends: dict[int, int], index: Index
    ) -> None:
        counts = index.logs()
        for number, log in logs.items():
            state = State.FREE if log.state == FREE or ends.get(number) == 0 else State.SEALED
            table.restore(
                Row(number, state, log.life, log.generation, 0, ends.get(number, 0), 0, 0)
            )
            row = counts.get(number, LogCounts())
            table.set_live(number, row.live_messages, row.live_octets)

    # -- logs

    def recover_logs(
        self, index: Index, logs: dict[int, LogHeader], *, rebuild: bool = False
    ) -> dict[int, int]:
        """Seal and enter what is not sealed or not entered; where each log ends (0: it is free).

        A log whose lock somebody holds is left alone and not in the answer.
        """
        stops = self._predecessors(logs)
        ends: dict[int, int] = {}
        deletions: list[Batch] = []
        for number, log in logs.items():
            if log.state == FREE:
                ends[number] = 0
                continue
            counts = index.log_counts(number)
            start = counts.watermark if counts.life == log.life else 0
            try:
                tail = self._recover(log, start, stops.get(log.life))
            except logfile.LogBusyError:
                continue
            ends[number] = 0 if tail.end == log.align and not tail.damage else tail.end
            if tail.messages or not start:
                self._enter(index, log, tail)
            if tail.deletions:
                deletions.append(Batch(number, log.life, tail.end, [], tail.deletions))
        if rebuild:
            deletions.sort(key=lambda batch: batch.log)
        for batch in deletions:
            for at in range(0, len(batch.deletions), BATCH):
                index.apply(batch._replace(deletions=batch.deletions[at : at + BATCH]))
        return ends

    def _predecessors(self, logs: dict[int, LogHeader]) -> dict[int, int]:
        """Where poisoned lives end, by what their successors say."""
        return {
            log.predecessor_life: log.predecessor_end
            for log in logs.values()
            if log.predecessor_life and log.state != FREE
        }

    def _enter(self, index: Index, log: LogHeader, tail: Tail) -> None:
        messages = tail.messages
        for at in range(0, max(len(messages), 1), BATCH):
            some = messages[at : at + BATCH]
            index.apply(Batch(log.number, log.life, tail.end, some, []))

    def _recover(self, log: LogHeader, start: int, stop: int | None) -> Tail:
        """The tail of a log from `start`; seals it if it has no seal and may have one."""
        fd = logfile.lock_log(self._osio, self._store.logs, log.number)
        try:
            sealed = find_seal(self._osio, fd, log) if stop is None else None
            if sealed is not None and start >= sealed.end:
                return Tail([], [], b"", [], sealed.end, 0)
            if sealed is not None and start <= sealed.covers_from == log.align:
                return tail_of_entries(log.number, sealed.entries, sealed.end)
            self._osio.fdatasync(fd)
            tail = self._scan(fd, log, start, sealed.end if sealed else stop)
            if sealed is None and stop is None:
                self._seal(fd, log, start, tail)
            return tail
        finally:
            self._osio.close(fd)

    def _seal(self, fd: int, log: LogHeader, start: int, tail: Tail) -> None:
        if tail.end == log.align and not tail.damage:
            logfile.mark_free(self._osio, fd, log)
            return
        covered = Footer(tail.entries, tail.sequence, start or log.align)
        seal(self._osio, fd, log, tail.end, covered)

    def _scan(self, fd: int, log: LogHeader, start: int, stop: int | None) -> Tail:
        scanner = Scanner(self._osio, fd, log, start, stop)
        messages: list[Message] = []
        deletions: list[record.Deletion] = []
        entries: list[bytes] = []
        damage: list[Damage] = []
        for item in scanner:
            if isinstance(item, Damage):
                damage.append(item)
                self._quarantine(fd, log, item)
            elif item.header.kind == record.MESSAGE:
                messages.append(message_of(log.number, item))
                entries.append(messages[-1].entries)
            else:
                deletions.append(record.unpack_deletion(item.envelope, item.body))
                entries.append(
                    footer.deletion_entries(deletions[-1], item.offset, item.header.size)
                )
        return Tail(messages, deletions, b"".join(entries), damage, scanner.end, scanner.sequence)

    def _quarantine(self, fd: int, log: LogHeader, damage: Damage) -> None:
        """Keep the octets of a damaged stretch in a file of their own, and say so."""
        self.damaged += 1
        name = f"{log.number:08d}-{log.life}-{damage.start}.damaged"
        path = os.path.join(self._store.quarantine, name)
        self._report(
            f"warning: log {log.number}: octets {damage.start} to {damage.end} are damaged; "
            f"kept in quarantine/{name}"
        )
        out = self._osio.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            data = self._osio.pread(fd, damage.end - damage.start, damage.start)
            self._osio.pwrite(out, data, 0)
            self._osio.fsync(out)
        finally:
            self._osio.close(out)


def message_of(number: int, found: Found) -> Message:
    """What the index needs of a message record that a scan found."""
    envelope = record.unpack_envelope(found.envelope)
    size = found.header.size
    entries = footer.message_entries(found.header.id, found.offset, size, envelope.recipients)
    return Message(found.header.id, Place(number, found.offset, size), entries)


def tail_of_entries(number: int, entries: bytes, end: int) -> Tail:
    """The same as a scan of the whole log, from its footer alone."""
    messages: list[Message] = []
    deletions: list[record.Deletion] = []
    step = footer.ENTRY_SIZE
    at = 0
    while at < len(entries):
        first = footer.Entry(*footer.ENTRY.unpack_from(entries, at))
        stop = at + step
        place = entries[at + 20 : at + 28]
        while entries[stop + 20 : stop + 28] == place:
            stop += step
        if first.kind == record.MESSAGE:
            where = Place(number, first.offset, first.size)
            messages.append(Message(first.id, where, entries[at:stop]))
        else:
            ids = b"".join(entries[i + 4 : i + 4 + ID_SIZE] for i in range(at, stop, step))
            deletions.append(record.Deletion(first.mailbox, ids))
        at = stop
    return Tail(messages, deletions, entries, [], end, 0)
