"""Footer entries: a sealed log's own index, and what the rebuild of the whole index reads.

One entry per recipient of a message and per id of a deletion record, one of a record of another
kind, 36 octets, big-endian so that sorting the octets sorts by mailbox and id:

    offset size
         0    4  mailbox
         4   16  message id
        20    4  offset of the record in the log
        24    4  size of the record
        28    4  octets of the message as POP3 shows it to this mailbox (0 in a deletion)
        32    1  kind of the record
        33    3  reserved, 0
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from metad.store.log import record

ENTRY = struct.Struct(">I16sIIIB3x")
ENTRY_SIZE = ENTRY.size


class Entry(NamedTuple):
    mailbox: int
    id: bytes
    offset: int
    size: int
    octets: int
    kind: int


def message_entries(
    message_id: bytes, offset: int, size: int, recipients: Sequence[record.RecipientFields]
) -> bytes:
    """The entries of one message at `offset`, packed."""
    return b"".join(
        [
            ENTRY.pack(mailbox, message_id, offset, size, octets, record.MESSAGE)
            for mailbox, _, octets in recipients
        ]
    )


def deletion_entries(deletion: record.Deletion, offset: int, size: int) -> bytes:
    """The entries of one deletion record at `offset`, packed."""
    mailbox = deletion.mailbox
    return b"".join(
        [ENTRY.pack(mailbox, each, offset, size, 0, record.DELETION) for each in deletion.each()]
    )


def other_entry(record_id: bytes, offset: int, size: int, kind: int) -> bytes:
    """The entry of a record that speaks of no mailbox, so that all records have one."""
    return ENTRY.pack(0, record_id, offset, size, 0, kind)


def speaks_of_mail(kind: int) -> bool:
    """Whether an entry of this kind is a message's or a deletion's."""
    return kind in (record.MESSAGE, record.DELETION)


def unpack(entries: bytes) -> list[Entry]:
    return [Entry(*fields) for fields in ENTRY.iter_unpack(entries)]
