"""Compares, for each message, what the logs say with what the index says.

Rules of this file:

* The index must be consistent at any time: references, first places, live counts.
* Records beyond a log's watermark may or may not be in the index.  A deletion there may or may not
  have been applied.
* The collector was about to drop any place in a log that is free on disk.
* Damaged bytes are reported once, for the log; the index may or may not have lost the mail.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from metad.store.fsck.grouping import Grouped, Rows
from metad.store.fsck.index_snapshot import ENTRY as INDEX_ENTRY
from metad.store.fsck.index_snapshot import PLACES, TOMBSTONE, UID
from metad.store.fsck.log_check import Checked
from metad.store.index.rows import (
    UNFOUNDED,
    Deleted,
    unpack_deleted,
    unpack_places,
    unpack_references,
)
from metad.store.log import record
from metad.store.log.footer import ENTRY
from metad.store.log.place import Place

COPY, DELETION, RECORD_UID = 4, 5, 6  # tags of rows, besides those of the index
_COPY = struct.Struct(">IIIIIBB")  # log, offset, size, mailbox, octets, certain, damaged
_GONE = struct.Struct(">IBII")  # mailbox, certain, log, offset


class KnownLog(NamedTuple):
    """What fsck knows about a log that the index may refer to.  `checked`: None if it could not be
    read; `watermark`: 0 if the index does not know this life of it."""

    checked: Checked | None
    watermark: int
    written: bool


class Verdict(Enum):
    """About a place where no record was read."""

    WRONG = "wrong"
    OPEN = "open"  # cannot be judged
    DAMAGED = "damaged"


class Copy(NamedTuple):
    """One record of a message, for one mailbox."""

    place: Place
    mailbox: int
    octets: int
    certain: bool
    damaged: bool


def add_entries(rows: Rows, checked: Checked, watermark: int) -> None:
    """The rows of a log for the comparison.  Records below `watermark` must be in the index."""
    number = checked.log.number
    for mailbox, message_id, offset, size, octets, kind in ENTRY.iter_unpack(checked.entries):
        certain = offset < watermark
        if kind == record.MESSAGE:
            bad = bool(checked.damage) and checked.is_damaged(offset)
            packed = _COPY.pack(number, offset, size, mailbox, octets, certain, bad)
            rows.add(COPY, message_id, packed)
        elif kind == record.DELETION:
            rows.add(DELETION, message_id, _GONE.pack(mailbox, certain, number, offset))
    for message_id, uid in checked.uids:
        rows.add(RECORD_UID, message_id, uid)


@dataclass(slots=True)
class _Message:
    """All differences of one message."""

    name: str
    references: int = 0
    places: list[Place] | None = None
    entries: dict[int, int] = field(default_factory=dict)
    twice: set[int] = field(default_factory=set)  # in two levels of the index
    copies: list[Copy] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    maybe_gone: set[int] = field(default_factory=set)
    deleted: list[Deleted] = field(default_factory=list)
    records: set[Deleted] = field(default_factory=set)  # that delete it
    noted: set[Deleted] = field(default_factory=set)  # those that the index must note
    tombstones: set[int] = field(default_factory=set)  # mailboxes
    uid: bytes | None = None
    record_uids: set[bytes] = field(default_factory=set)
    loose: bool = False  # some of its places cannot be judged

    def at(self, place: Place) -> set[int]:
        """The mailboxes that the copy there names."""
        return {copy.mailbox for copy in self.copies if copy.place == place}


def _message(message_id: bytes, rows: Iterable[tuple[int, bytes]]) -> _Message:
    made = _Message(message_id.hex())
    for tag, octets in rows:
        if tag == INDEX_ENTRY:
            mailbox = int.from_bytes(octets[:4], "big")
            if mailbox in made.entries:
                made.twice.add(mailbox)
            made.entries[mailbox] = int.from_bytes(octets[4:], "big")
        elif tag == COPY:
            log, offset, size, mailbox, shown, certain, damaged = _COPY.unpack(octets)
            place = Place(log, offset, size)
            made.copies.append(Copy(place, mailbox, shown, bool(certain), bool(damaged)))
        elif tag == PLACES:
            made.references = unpack_references(octets)
            made.places = unpack_places(octets)
            made.deleted = unpack_deleted(octets)
        elif tag == DELETION:
            mailbox, certain, log, offset = _GONE.unpack(octets)
            (made.gone if certain else made.maybe_gone).add(mailbox)
            made.records.add(Deleted(log, offset, mailbox))
            if certain:
                made.noted.add(Deleted(log, offset, mailbox))
        elif tag == TOMBSTONE:
            made.tombstones.add(int.from_bytes(octets, "big"))
        elif tag == UID:
            made.uid = octets
        elif tag == RECORD_UID:
            made.record_uids.add(octets)
    return made


class Comparison:
    """Compares one part after another.  `live`: messages and octets per log, by the index's own
    places."""

    def __init__(
        self,
        known: dict[int, KnownLog],
        settled: bool,
        say: Callable[[str], None],
        *,
        clustered: bool = False,
    ) -> None:
        self._known = known
        self._settled = settled
        self._clustered = clustered
        # A missing message may have been deleted in a log that could not be read.
        self._blind = any(log.checked is None or log.checked.unreadable for log in known.values())
        self._is_damaged = self._blind or any(
            log.checked is not None and log.checked.damage for log in known.values()
        )
        self._say_line = say
        self.live: dict[int, list[int]] = {}
        self.messages = 0
        self.pending = 0  # places in logs that are free on disk

    def part(self, rows: Grouped) -> None:
        for message_id in sorted(rows):
            self._compare(_message(message_id, rows[message_id]))

    def _say(self, one: _Message, text: str) -> None:
        self._say_line(f"index: message {one.name} {text}")

    def _compare(self, one: _Message) -> None:
        self.messages += bool(one.entries)
        if one.places is None:
            self._without_row(one)
        else:
            self._places(one, one.places)
        self._entries(one)
        if one.tombstones:
            self._tombstones(one)
        if one.uid is not None and one.uid not in one.record_uids:
            self._uid(one, one.uid)

    def _tombstones(self, one: _Message) -> None:
        """Each stands for a deletion record, which is kept as long as it does."""
        if alive := one.tombstones & one.entries.keys():
            self._say(one, f"is in {_mailboxes(alive)}, where its tombstone stands")
        lacking = one.tombstones - one.gone - one.maybe_gone
        if lacking and self._settled and not self._is_damaged:
            self._say(one, f"has a tombstone in {_mailboxes(lacking)}, and no record deletes it")

    def _uid(self, one: _Message, uid: bytes) -> None:
        """The index may lack the unique id of an imported message, but not have another one."""
        if not one.loose and not any(copy.damaged for copy in one.copies):
            self._say(one, f"has the unique id {uid!r}, its record has not")

    def _without_row(self, one: _Message) -> None:
        if one.entries:
            self._say(one, f"is in {_mailboxes(one.entries)} and has no place")
        elif copies := {copy.place for copy in one.copies if copy.certain}:
            self._say(one, f"lacks its place in {_places(copies)}")
        elif one.noted:
            self._say(one, f"lacks the place of its deletion in {_places(one.noted)}")

    # -- places

    def _places(self, one: _Message, places: list[Place]) -> None:
        if one.references != len(one.entries):
            self._say(one, f"counts {one.references} mailboxes, but is in {len(one.entries)}")
        there = {copy.place for copy in one.copies}
        for place in places:
            if place not in there:
                self._judge(one, place)
        lacking = {copy.place for copy in one.copies if copy.certain} - set(places)
        if lacking:
            self._say(one, f"lacks its place in {_places(lacking)}")
        if len(set(places)) != len(places):
            self._say(one, "has a place twice")
        if one.entries:
            self._first(one, places)
        if not one.loose:
            self._deleted(one)

    def _deleted(self, one: _Message) -> None:
        """Check that its row names exactly the places of its deletion records."""
        for deleted in one.deleted:
            if deleted in one.records or deleted == UNFOUNDED:
                continue
            if self._verdict(Place(deleted.log, deleted.offset, 0)) == Verdict.WRONG:
                self._say(one, f"has a deletion in {_places({deleted})}, where none is")
        if unknown := one.noted - set(one.deleted):
            self._say(one, f"lacks the place of its deletion in {_places(unknown)}")

    def _judge(self, one: _Message, place: Place) -> None:
        verdict = self._verdict(place)
        if verdict == Verdict.WRONG:
            self._say(one, f"has a place in {_places({place})}, where it is not")
        else:
            one.loose = True

    def _verdict(self, place: Place) -> Verdict:
        """About a place where no record of the message was found."""
        known = self._known.get(place.log)
        if known is None:
            self.pending += not self._settled
            return Verdict.WRONG if self._settled else Verdict.OPEN
        if known.checked is None or (known.written and place.offset >= known.watermark):
            return Verdict.OPEN
        return Verdict.DAMAGED if known.checked.is_damaged(place.offset) else Verdict.WRONG

    def _first(self, one: _Message, places: list[Place]) -> None:
        """Its first place counts as live.  If any place names every mailbox that has the message,
        the first does; not in a cluster, where copies that come later may each name some of them:
        the reader takes one that names the mailbox, the collector asks each record."""
        if not places:
            self._say(one, f"is in {_mailboxes(one.entries)} and has no place")
            return
        live = self.live.setdefault(places[0].log, [0, 0])
        live[0] += 1
        live[1] += places[0].size
        if len(places) > 1 and not one.loose and not self._clustered:
            having, first = set(one.entries), one.at(places[0])
            fits = any(first < one.at(place) and having <= one.at(place) for place in places)
            if fits and not having <= first:
                self._say(one, "has a first place that does not name all its mailboxes")

    # -- entries

    def _entries(self, one: _Message) -> None:
        if one.twice:
            self._say(one, f"is twice in {_mailboxes(one.twice)}")
        for mailbox, octets in one.entries.items():
            sizes = {copy.octets for copy in one.copies if copy.mailbox == mailbox}
            if not sizes:
                if not one.loose:
                    self._say(one, f"is in mailbox {mailbox}, and no record says so")
            elif octets not in sizes:
                self._say(one, f"has {octets} bytes in mailbox {mailbox}, not {max(sizes)}")
            if mailbox in one.gone:
                self._say(one, f"is in mailbox {mailbox}, where it was deleted")
        wanted = {copy.mailbox for copy in one.copies if copy.certain and not copy.damaged}
        missing = wanted - one.gone - one.maybe_gone - one.entries.keys()
        if missing and not self._blind:
            self._say(one, f"is missing in {_mailboxes(missing)}")


def _mailboxes(mailboxes: Iterable[int]) -> str:
    each = sorted(mailboxes)
    return f"mailbox{'es' * (len(each) > 1)} {', '.join(map(str, each))}"


def _places(places: Iterable[Place | Deleted]) -> str:
    return ", ".join(f"log {place.log} at {place.offset}" for place in sorted(places))
