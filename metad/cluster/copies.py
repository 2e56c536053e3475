"""The body of COPY: one message, as it lies in a log, for some of its mailboxes.

    id 16 | digest of the record's body 16 | length of the unique id 1 | length of the envelope 4
    unique id, envelope (metad.store.log.record), body

Rule of this file: what arrives is checked before it is stored; the digest has no seed, so it is the
same on every node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xxhash import xxh3_128, xxh3_128_digest

from metad.errors import ClusterError
from metad.store.log import record
from metad.system.osio import Buffer

_HEAD = struct.Struct(">16s16sBI")


class Copy(NamedTuple):
    """A message as another member sent it.  `packed`: its envelope as a record has it."""

    id: bytes
    uid: str
    packed: bytes
    envelope: record.Envelope
    body: memoryview


def pack_copy(message_id: bytes, uid: str, packed: bytes, body: Sequence[Buffer]) -> list[Buffer]:
    """The parts of a COPY of a message whose envelope is `packed`."""
    digest = xxh3_128()
    for part in body:
        digest.update(part)
    unique = uid.encode()
    head = _HEAD.pack(message_id, digest.digest(), len(unique), len(packed))
    return [head + unique + packed, *body]


def unpack_copy(data: bytes) -> Copy:
    """Raises ClusterError if it is not whole and sound."""
    try:
        message_id, digest, uid_size, packed_size = _HEAD.unpack_from(data)
        at = _HEAD.size + uid_size
        uid = data[_HEAD.size : at].decode()
        packed = data[at : at + packed_size]
        body = memoryview(data)[at + packed_size :]
        if len(packed) != packed_size or xxh3_128_digest(body) != digest:
            raise ClusterError("a copy does not verify")
        envelope = record.unpack_envelope(packed)
        if not envelope.recipients:
            raise ClusterError("a copy for no mailbox")
        return Copy(message_id, uid, packed, envelope, body)
    except (struct.error, ValueError, TypeError) as error:
        raise ClusterError(f"not a copy: {error}") from None


def for_mailboxes(packed: bytes, mailboxes: Iterable[int]) -> bytes:
    """The same envelope, naming the recipients of these mailboxes alone."""
    envelope = record.unpack_envelope(packed)
    wanted = set(mailboxes)
    named = tuple(one for one in envelope.recipients if one.mailbox in wanted)
    return record.pack_envelope(envelope._replace(recipients=named))
