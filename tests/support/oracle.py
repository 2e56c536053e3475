"""The oracle: what a store must contain, whatever was done to it.

Every acknowledged message is readable and its digest is equal; order within a mailbox is kept;
nothing that was not sent appears; nothing deleted with an acknowledgement returns.  Operations
without an answer may or may not have happened.  Counts and usage must agree with what is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from metad.store.index.index import Index
from metad.store.log.place import Place
from metad.store.reader import Stored


class Readable(Protocol):
    """What the oracle examines: a `StoreKit`."""

    index: Index

    def listing(self, mailbox: int) -> list[tuple[bytes, int]]: ...
    def stored(self, message_id: bytes, mailbox: int | None = None) -> Stored: ...


def digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


@dataclass
class Ledger:
    """What was sent, acknowledged and deleted so far.  Fed by notes, so that a recorded run can
    be replayed to any point."""

    sent: dict[bytes, tuple[bytes, tuple[int, ...]]] = field(default_factory=dict)
    acked: set[bytes] = field(default_factory=set)
    deleting: set[tuple[int, bytes]] = field(default_factory=set)
    deleted: set[tuple[int, bytes]] = field(default_factory=set)

    def apply(self, note: tuple[str, object]) -> None:
        what: str = note[0]
        value: Any = note[1]
        if what == "sent":
            message_id, body, mailboxes = value
            before = self.sent.get(message_id, (body, ()))[1]  # of an earlier copy
            self.sent[message_id] = (body, tuple(dict.fromkeys(before + mailboxes)))
        else:
            getattr(self, what).update(value)

    def copy(self) -> Ledger:
        sets = (set(self.acked), set(self.deleting), set(self.deleted))
        return Ledger(dict(self.sent), *sets)

    def mailboxes(self) -> set[int]:
        return {mailbox for _, mailboxes in self.sent.values() for mailbox in mailboxes}

    def must_have(self, mailbox: int) -> set[bytes]:
        return {
            message_id
            for message_id in self.acked
            if mailbox in self.sent[message_id][1] and (mailbox, message_id) not in self.deleting
        }

    # -- the check

    def check(self, kit: Readable) -> int:
        """Raises AssertionError with the fault.  Returns the number of entries checked."""
        entries = 0
        seen: dict[bytes, Stored] = {}
        for mailbox in sorted(self.mailboxes() | {0}):
            listing = kit.listing(mailbox)
            entries += len(listing)
            self._check_mailbox(kit, mailbox, listing, seen)
        check_counts(kit.index, seen)
        return entries

    def _check_mailbox(
        self,
        kit: Readable,
        mailbox: int,
        listing: list[tuple[bytes, int]],
        seen: dict[bytes, Stored],
    ) -> None:
        ids = [message_id for message_id, _ in listing]
        assert ids == sorted(set(ids)), f"mailbox {mailbox} is not in order: {show(ids)}"
        lost = self.must_have(mailbox) - set(ids)
        assert not lost, f"mailbox {mailbox} lost {show(lost)}"
        for message_id, octets in listing:
            name = f"{message_id.hex()} in mailbox {mailbox}"
            assert message_id in self.sent, f"{name} was never sent"
            body, mailboxes = self.sent[message_id]
            assert mailbox in mailboxes, f"{name} was not sent there"
            assert (mailbox, message_id) not in self.deleted, f"{name} came back"
            if message_id not in seen:
                seen[message_id] = kit.stored(message_id)
            stored = seen[message_id]
            sizes = {r.mailbox: r.octets for r in stored.envelope.recipients}
            if mailbox not in sizes:  # copies of another node may name different mailboxes
                stored = kit.stored(message_id, mailbox)
                sizes = {r.mailbox: r.octets for r in stored.envelope.recipients}
            assert digest(bytes(stored.body)) == body, f"{name} has another body"
            assert sizes[mailbox] == octets, f"{name} has the size {octets}"
        self._check_usage(kit, mailbox, listing)

    def _check_usage(self, kit: Readable, mailbox: int, listing: list[tuple[bytes, int]]) -> None:
        usage = kit.index.usage(mailbox)
        sums = (sum(octets for _, octets in listing), len(listing))
        assert tuple(usage) == sums, f"usage of mailbox {mailbox} is {usage}, not {sums}"


def check_counts(index: Index, live: Iterable[bytes]) -> None:
    """The logs' live counts are those of the messages that some mailbox has."""
    counts: dict[int, list[int]] = {}
    for message_id in live:
        place: Place = index.places(message_id)[0]
        sums = counts.setdefault(place.log, [0, 0])
        sums[0] += 1
        sums[1] += place.size
    for number, row in index.logs().items():
        expected = counts.pop(number, [0, 0])
        found = [row.live_messages, row.live_octets]
        assert found == expected, f"log {number} counts {found} live, it has {expected}"
    assert not counts, f"logs {sorted(counts)} have mail and no counts"


def show(ids: Iterable[bytes]) -> str:
    return ", ".join(message_id.hex() for message_id in sorted(ids)[:5])
