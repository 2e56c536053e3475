"""Survivors of a log that is being emptied: copied, durable, then visible.

Rules of this file:

* A moved message names only its remaining recipients.  A message of no mailbox is not moved.
* A deletion record is kept as long as any copy of a message that it deletes may lie outside the
  victim (metad.store.gc.evidence), as long as some log could not be read, and, in a clustered
  store, as long as its tombstone exists: another member may still send the message.
* Survivors are durable before they enter the index; their old places stay in it.
* Before the victim is freed, the survivors' logs record durably that all copies in them are synced.
* Nothing that verifies is dropped unless a verified record permits it (metad.store.gc.evidence).
* Damage loses only the damaged record: its octets are copied to quarantine/, and everything that
  verifies is kept.  A damaged deletion record is rewritten from the log's footer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from metad import limits
from metad.store.gc.contents import Contents, RecordReader
from metad.store.gc.evidence import Evidence
from metad.store.gc.policy import next_generation
from metad.store.gc.survivor_logs import Enter, SurvivorLogs, Written
from metad.store.identity import Store
from metad.store.index import relocation
from metad.store.index.index import Index, Publish
from metad.store.index.relocation import Item, Looked
from metad.store.index.rows import Batch, Deleted, DisagreementError, LogCounts
from metad.store.index.tombstones import standing
from metad.store.log import record
from metad.store.log.encode import Append, append_deletion
from metad.store.log.header import LogHeader
from metad.store.log.quarantine import quarantine_range
from metad.store.log.scan import Damage
from metad.store.log_table import LogState, LogTable
from metad.system.osio import Osio

GROUP_OCTETS = 256 << 10
GROUP_RECORDS = 400
LOOKED_AT = 200  # records per read transaction


class Step(Enum):
    """What a step of a collection did; the caller decides when the next one runs."""

    LOOKED = "looked"
    COPIED = "copied"
    WAITS = "waits"
    DROPPED = "dropped"


@dataclass(slots=True)
class Figures:
    """What a collector has done so far.  `octets`: size of the logs freed."""

    logs: int = 0
    octets: int = 0
    moved: int = 0
    moved_octets: int = 0
    deletions: int = 0
    damaged: int = 0
    damaged_log: int = 0  # the last victim with damage


@dataclass(frozen=True, slots=True)
class Tools:
    """What a collector works with: the parts of one store, opened by its process."""

    osio: Osio
    store: Store
    index: Index
    table: LogTable
    survivors: SurvivorLogs
    next_id: Callable[[], bytes]
    report: Callable[[str], None]
    failpoint: Callable[[str], None] = field(default=lambda name: None)
    backup_lease: float = limits.BACKUP_LEASE

    def change(self, work: Callable[..., None], *arguments: object) -> None:
        """One write transaction, in turn with those of the workers, at normal priority."""
        self.index.lock()
        try:
            work(self.index, *arguments, self._publish)
        finally:
            self.index.unlock()

    def commit(self, generation: int, group: list[Append], enter: Enter) -> Written:
        """Make a group durable, then visible by `enter`, in transactions of a bounded number of
        rows.

        Parts that the index refuses stay in `survivors.behind`.  Raises OSError, lmdb.Error,
        MetadError.
        """
        self.catch_up()
        self.failpoint("copying")
        written = self.survivors.write(generation, group)
        self.failpoint("copied")
        self.survivors.behind += [(enter, part) for part in written.parts()]
        self.catch_up()
        return written

    def catch_up(self) -> None:
        """Enter the durable records of survivors' logs that the index lacks, and have the next log
        record where a failed one ends.  Until then no log is freed, and nothing more is written.
        """
        self.table.catch_up()
        self.survivors.settle()
        behind = self.survivors.behind
        while behind:
            enter, part = behind[0]
            self.change(enter, part)
            del behind[0]
            self.table.set_tail(part.log, part.watermark)
            self.failpoint("moved")

    def confirm(self) -> None:
        """Let the copies replace the originals that are about to be freed.  Raises OSError,
        lmdb.Error, MetadError."""
        self.catch_up()
        self.failpoint("confirming")
        self.survivors.behind += [(_move, batch) for batch in self.survivors.confirm()]
        self.failpoint("confirmed")
        self.catch_up()

    def _publish(self, rows: dict[int, LogCounts]) -> None:
        for number, counts in rows.items():
            self.table.set_live(number, counts.live_messages, counts.live_octets)


class Victim(NamedTuple):
    """A log being emptied.  `fd` holds its lock; `poisoned`: its writer failed."""

    number: int
    fd: int
    log: LogHeader
    contents: Contents
    poisoned: bool


class SurvivorCopy:
    """Moves the survivors of one victim."""

    def __init__(self, tools: Tools, victim: Victim, figures: Figures) -> None:
        self._tools = tools
        self._index = tools.index
        self._victim = victim
        self._figures = figures
        self._reader = RecordReader(
            tools.osio, victim.fd, tools.store, victim.number, victim.log.life
        )
        self._evidence = Evidence(tools.osio, tools.store, victim.number, victim.contents)
        self._group: list[Append] = []
        self._octets = 0

    def steps(self) -> Iterator[Step]:
        """Raises OSError, lmdb.Error, NoSpaceError, ValueError (a record of another version), and
        DisagreementError: something would be destroyed without a record that permits it."""
        try:
            self._set_aside(self._victim.contents.damage)
            # Deletions first: a copy made in this collection is no reason to keep a deletion
            # record.
            yield from self._deletions()
            yield from self._messages()
        finally:
            self._evidence.close()

    def _of_kind(self, kind: int) -> list[Item]:
        return [item for item in self._victim.contents.items if item.kind == kind]

    def _deletions(self) -> Iterator[Step]:
        may_drop = not self._is_log_left_out()
        for item in self._of_kind(record.DELETION):
            needed = self._needed(item) if may_drop else item.ids
            if needed:
                yield from self._add(self._deletion(item, b"".join(needed)))
        yield from self._flush()

    def _needed(self, item: Item) -> list[bytes]:
        """The ids for which a deletion record must be kept."""
        deleted = Deleted(self._victim.number, item.offset, item.mailbox)
        rows = zip(item.ids, relocation.rows_of(self._index, item.ids), strict=True)
        needed = [one for one, row in rows if not self._evidence.may_drop(deleted, one, row)]
        untold = standing(self._index, item.mailbox, set(item.ids).difference(needed))
        return [one for one in item.ids if one in untold or one in needed] if untold else needed

    def _is_log_left_out(self) -> bool:
        """Whether the start failed to read some log: it may have copies that the index lacks, and
        may become readable later."""
        rows = self._tools.table.rows()
        return any(row.state == LogState.ACTIVE and not row.owner for row in rows)

    def _deletion(self, item: Item, needed: bytes) -> Append:
        """The deletion record, reduced to the ids that are needed."""
        found = self._reader.read(item.offset, item.size)
        record_id = found.header.id if found else self._tools.next_id()
        self._figures.deletions += 1
        return append_deletion(record_id, record.Deletion(item.mailbox, needed), _ignore)

    def _messages(self) -> Iterator[Step]:
        items = self._of_kind(record.MESSAGE)
        for at in range(0, len(items), LOOKED_AT):
            found = relocation.look(self._index, self._victim.number, items[at : at + LOOKED_AT])
            yield Step.LOOKED
            for message in found:
                self._must_be_proven(message)
                append = self._survivor(message) if message.mailboxes else None
                if append is not None:
                    yield from self._add(append)
        yield from self._flush()

    def _survivor(self, message: Looked) -> Append | None:
        """The message in the form to be written, or None if nothing must be written."""
        if self._is_good_elsewhere(message):
            return None
        item = message.item
        found = self._reader.read(item.offset, item.size)
        if found is None:
            self._lose(message)
            return None
        envelope = record.unpack_envelope(found.envelope)
        stay = tuple(r for r in envelope.recipients if r.mailbox in message.mailboxes)
        packed = found.envelope
        if len(stay) != len(envelope.recipients):
            packed = record.pack_envelope(envelope._replace(recipients=stay))
        return Append(item.id, packed, (found.body,), len(found.body), _ignore, stay)

    def _must_be_proven(self, message: Looked) -> None:
        """Check that a mailbox lacks a message only because of a record, or of damage here."""
        lacking = self._evidence.unproven(message)
        item = message.item
        if not lacking or self._reader.read(item.offset, item.size) is None:
            return
        raise DisagreementError(
            f"log {self._victim.number} has message {item.id.hex()} for mailbox {lacking[0]}, "
            "the index has not, and no record deletes it"
        )

    def _is_good_elsewhere(self, message: Looked) -> bool:
        """Whether an earlier, interrupted collection copied it already."""
        return any(
            message.mailboxes <= self._evidence.living(place, message.item.id)
            and (self._evidence.is_final(place.log) or self._tools.survivors.is_in_use(place.log))
            for place in message.elsewhere
        )

    # -- groups

    def _add(self, append: Append) -> Iterator[Step]:
        if self._octets + append.size > GROUP_OCTETS or len(self._group) == GROUP_RECORDS:
            yield from self._flush()
        self._group.append(append)
        self._octets += append.size

    def _flush(self) -> Iterator[Step]:
        """Make the group durable, then visible in short transactions."""
        group, self._group, self._octets = self._group, [], 0
        if not group:
            return
        generation = next_generation(self._victim.log.generation)
        written = self._tools.commit(generation, group, _move)
        self._figures.moved += len(written.batch.messages)
        self._figures.moved_octets += written.batch.watermark - written.start
        yield Step.COPIED

    # -- damage

    def _lose(self, message: Looked) -> None:
        """A message in some mailbox does not verify, and there is no other copy."""
        item = message.item
        self._set_aside([Damage(item.offset, item.offset + item.size)])
        self._tools.change(relocation.forget, [message])
        self._tools.failpoint("lost")

    def _set_aside(self, damage: Iterable[Damage]) -> None:
        tools, victim = self._tools, self._victim
        for stretch in damage:
            name = quarantine_range(tools.osio, tools.store, victim.fd, victim.log, stretch)
            self._figures.damaged += 1
            self._figures.damaged_log = victim.number
            tools.report(
                f"warning: log {victim.number}: bytes {stretch.start} to {stretch.end} are "
                f"damaged; kept in quarantine/{name}"
            )


def _move(index: Index, batch: Batch, publish: Publish) -> None:
    relocation.move(index, batch, publish)


def _ignore(_: object) -> None:
    """No client is waiting for an answer, so the collector waits for the disk itself."""
