"""Records to be appended, and a group of them as bytes of one log.

Rules of this file: no I/O except reading a spooled body; no decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from xxhash import xxh3_128_digest

from metad.errors import RefusedError
from metad.store.ids import ID_SIZE, NO_ID
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from metad.store.log.writer import LogWriter
from metad.system.osio import Buffer

Done = Callable[[RefusedError | None], None]
# Makes a NamedTuple from a complete tuple: half the cost of calling its class, several times per
# message.
_new = tuple.__new__


class Body(Protocol):
    """A body that is not in memory: its bytes in chunks, any number of times."""

    def chunks(self) -> Iterator[Buffer]: ...


class Append:
    """One record to be appended: a message, or a deletion.

    `parts`: its body in memory; None: `spooled` has it.  `size` of the record and `entries_size` of
    its footer entries, in bytes.  `held`: bytes of the memory budget that it uses until `done`.
    """

    __slots__ = (
        "deletion", "done", "entries_size", "envelope", "held", "id", "parts", "recipients",
        "size", "spooled", "uid",
    )  # fmt: skip
    deletion: record.Deletion | None
    spooled: Body  # of a message without parts

    def __init__(
        self,
        record_id: bytes,
        envelope: bytes,
        parts: Sequence[Buffer] | None,
        octets: int,
        done: Done,
        recipients: tuple[record.RecipientFields, ...],
    ) -> None:
        """A message whose body has `octets` octets."""
        self.id = record_id
        self.envelope = envelope
        self.parts = parts
        self.done = done
        self.size = record.HEADER_SIZE + len(envelope) + octets
        self.recipients = recipients
        self.entries_size = len(recipients) * footer.ENTRY_SIZE
        self.uid = ""
        self.deletion = None
        self.held = 0


def append_deletion(record_id: bytes, deletion: record.Deletion, done: Done) -> Append:
    """The record of a deletion."""
    mailbox, ids = deletion.mailbox, deletion.ids
    item = Append(record_id, record.pack_deletion(mailbox), (ids,), len(ids), done, ())
    item.deletion = deletion
    item.entries_size = len(ids) // ID_SIZE * footer.ENTRY_SIZE
    return item


def append_confirmation() -> Append:
    """The record that confirms that everything before it in its log is synced."""
    return append_deletion(NO_ID, record.Deletion(0, b""), lambda _: None)


def sizes(group: Collection[Append]) -> tuple[int, int]:
    """Bytes of a group's records, and of their footer entries."""
    return sum([item.size for item in group]), sum([item.entries_size for item in group])


class Encoded(NamedTuple):
    """A group as it will be written to a log: buffers, their size, footer entries, and the rows for
    the index."""

    buffers: list[Buffer]
    size: int
    entries: bytes
    messages: list[Message]
    deletions: list[record.Deletion]


def encode(writer: LogWriter, group: Sequence[Append]) -> Encoded:
    """The bytes of a group, encoded for the writer's end and life."""
    buffers: list[Buffer] = []
    entries: list[bytes] = []
    messages: list[Message] = []
    deletions: list[record.Deletion] = []
    number, seed, life, sequence = writer.number, writer.seed, writer.life, writer.sequence
    make_header, pack_entry = record.make_header, footer.ENTRY.pack
    at = writer.end
    for item in group:
        data, payload = _payload(item, seed)
        record_id, deletion, size = item.id, item.deletion, item.size
        kind = record.MESSAGE if deletion is None else record.DELETION
        buffers.append(make_header(kind, life, sequence, record_id, payload) + data)
        sequence += 1
        if deletion is not None:
            packed = footer.deletion_entries(deletion, at, size)
            deletions.append(deletion._replace(offset=at))
        else:
            recipients = item.recipients
            if len(recipients) == 1:
                mailbox, _, octets = recipients[0]
                packed = pack_entry(mailbox, record_id, at, size, octets, kind)
            else:
                packed = footer.message_entries(record_id, at, size, recipients)
            place = _new(Place, (number, at, size))
            messages.append(_new(Message, (record_id, place, packed, item.uid)))
        entries.append(packed)
        at += size
    writer.sequence = sequence
    return Encoded(buffers, at - writer.end, b"".join(entries), messages, deletions)


def _payload(item: Append, seed: int) -> tuple[bytes, record.PayloadFields]:
    """The part of the payload in memory, and the digest of the whole payload."""
    envelope, parts = item.envelope, item.parts
    if parts is None:
        return envelope, record.digest_payload(envelope, item.spooled.chunks(), seed)
    data = b"".join((envelope, *parts))
    octets = len(envelope)
    digest = xxh3_128_digest(data, seed)
    return data, (octets, len(data) - octets, digest, seed)


def write_parts(buffers: list[Buffer], group: Sequence[Append]) -> Iterator[Sequence[Buffer]]:
    """The units of writing: a whole group in memory, a spooled message piece by piece."""
    yield buffers
    last = group[-1]
    if last.parts is None:
        for chunk in last.spooled.chunks():
            yield [chunk]
