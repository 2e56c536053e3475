"""The body of COPY: messages, as they lie in a log, each for some of its mailboxes.

    bytes that follow 4 | digest of these 16 | length of the unique id 1 | length of the envelope 4
    | id 16 | unique id | envelope (metad.store.log.record) | body          then the next message

The digest has no seed: it is the same on every node.  The answer is empty if all are stored;
otherwise it has the places in the request, 2 bytes each and from 0 on, of those that are not.

Rules of this file:

* What arrives is checked before it is stored.
* A message that does not verify costs no other one of its request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from xxhash import xxh3_128_digest

from metad.errors import ClusterError
from metad.store.log import record
from metad.system.osio import Buffer

# Messages of one request: what each costs a member besides its bytes stays small beside them.
MOST_TOGETHER: Final = 128
_HEAD = struct.Struct(">I16s")
_INNER = struct.Struct(">BI16s")
_DIGEST = 16
_SIZE = 4
_PLACE = struct.Struct(">H")
_MOST: Final = 0xFFFFFFFF  # of a mailbox's number, and of the bytes that POP3 shows
_new = tuple.__new__


class Copy(NamedTuple):
    """A message as another member sent it.  `packed`: its envelope as a record has it."""

    id: bytes
    uid: str
    packed: bytes
    recipients: tuple[record.Recipient, ...]
    body: bytes


def pack_copy(message_id: bytes, uid: str, packed: bytes, body: Iterable[Buffer]) -> list[bytes]:
    """The parts of a COPY of a message whose envelope is `packed`."""
    unique = uid.encode()
    inner = _INNER.pack(len(unique), len(packed), message_id)
    payload = b"".join((inner, unique, packed, *body))
    return [_HEAD.pack(_DIGEST + len(payload), xxh3_128_digest(payload)), payload]


def unpack_copies(data: bytes) -> list[Copy | ClusterError]:
    """All messages of a request; an error in the place of one that is not sound.

    Raises ClusterError if they cannot be told apart, or are too many.
    """
    found: list[Copy | ClusterError] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _HEAD.size or len(found) == MOST_TOGETHER:
            raise ClusterError("not copies: cut off, or too many")
        size, digest = _HEAD.unpack_from(data, at)
        start, stop = at + _HEAD.size, at + _SIZE + size
        if start > stop or stop > end:
            raise ClusterError("not copies: a length is wrong")
        try:
            payload = data[start:stop]
            if xxh3_128_digest(payload) != digest:
                raise ClusterError("a copy does not verify")
            found.append(_unpack(payload))
        except ClusterError as error:
            found.append(error)
        except (struct.error, ValueError, TypeError) as error:
            found.append(ClusterError(f"not a copy: {error}"))
        at = stop
    if not found:
        raise ClusterError("no copies")
    return found


def _unpack(payload: bytes) -> Copy:
    """One that verifies.  Raises ClusterError, and what a value of another type raises."""
    uid_size, packed_size, message_id = _INNER.unpack_from(payload)
    at = _INNER.size
    uid = ""
    if uid_size:
        uid = payload[at : at + uid_size].decode()
        at += uid_size
    packed = payload[at : at + packed_size]
    envelope = record.unpack_envelope(packed)
    recipients = envelope.recipients
    if not recipients or len(packed) != packed_size:
        raise ClusterError("a copy for no mailbox")
    if not _fits(envelope):
        raise ClusterError("a copy has an envelope that cannot be")
    return _new(Copy, (message_id, uid, packed, recipients, payload[at + packed_size :]))


def _fits(envelope: record.Envelope) -> bool:
    """Whether a log and the index can hold it: one record that cannot be written costs its whole
    group."""
    time_us, client, helo, sender, recipients, stuffed, uid = envelope
    for mailbox, address, octets in recipients:
        if not (type(mailbox) is type(octets) is int and type(address) is str):
            return False
        if not (0 <= mailbox <= _MOST and 0 <= octets <= _MOST):
            return False
    texts = type(client) is type(helo) is type(sender) is type(uid) is str
    return texts and type(time_us) is type(stuffed) is int


def unpack_copy(data: bytes) -> Copy:
    """The only message of a request.  Raises ClusterError if it is not sound."""
    found = unpack_copies(data)
    if len(found) != 1:
        raise ClusterError(f"{len(found)} copies in place of one")
    if isinstance(found[0], ClusterError):
        raise found[0]
    return found[0]


def pack_places(places: Iterable[int]) -> bytes:
    return b"".join(map(_PLACE.pack, places))


def unpack_places(body: bytes, count: int) -> set[int]:
    """The places of those that are not stored, of `count`.  Raises ClusterError."""
    if len(body) % _PLACE.size:
        raise ClusterError("not an answer to copies")
    places = {place for (place,) in _PLACE.iter_unpack(body)}
    if not all(place < count for place in places):
        raise ClusterError("not an answer to copies")
    return places


def for_mailboxes(packed: bytes, mailboxes: Iterable[int]) -> bytes:
    """The same envelope, naming the recipients of these mailboxes alone."""
    envelope = record.unpack_envelope(packed)
    wanted = set(mailboxes)
    named = tuple(one for one in envelope.recipients if one.mailbox in wanted)
    return record.pack_envelope(envelope._replace(recipients=named))
