"""A record of a log: its bytes, made and verified.  docs/log-format.md shows the same.

    offset size
         0    4  magic "mRec"
         4    1  kind: 1 message, 2 deletion, 3 seal, 4 freed, 5 released; others up to 31
         5    1  format version, 1
         6    2  reserved, 0
         8    8  life of the log when this was written
        16    8  sequence number in that life, from 0
        24    4  length of the envelope
        28    4  length of the body
        32   16  id (of the message; of a deletion record its own; zero for a seal)
        48   16  payload digest: XXH3-128 of envelope and body, seeded
        64    8  header check: XXH3-64 of octets 0 to 63, seeded
        72       envelope (msgpack), body

All integers are little-endian.  The seed comes from the store's secret, the log's number and its
life: a record of the file's earlier life, of another log, or a mailed piece of one never verifies.

Rules of this file: no I/O; nothing is trusted before its check has passed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from metad.store.ids import ID_SIZE, NO_ID

MAGIC = b"mRec"
VERSION = 1
MESSAGE, DELETION, SEAL, FREED, RELEASED = 1, 2, 3, 4, 5
# A later release may write records of any kind up to this one.  They are read as records, and what
# they say is ignored; a log that has one is not collected.
LAST_KIND = 31

_PREFIX = struct.Struct("<4sBBHQQII16s16s")
_HEADER = struct.Struct("<4sBBHQQII16s16sQ")
_CHECK = struct.Struct("<Q")
_RELEASED = struct.Struct("<QQ")
HEADER_SIZE = _HEADER.size
CHECKED_SIZE = _PREFIX.size

Bytes = bytes | bytearray | memoryview
# One per process: creating one for each call, as packb does, costs more than the packing.
_pack = msgpack.Packer().pack
_new = tuple.__new__


class Header(NamedTuple):
    """A verified record header.  `size` is that of the whole record."""

    kind: int
    life: int
    sequence: int
    envelope_size: int
    body_size: int
    id: bytes
    digest: bytes

    @property
    def size(self) -> int:
        return HEADER_SIZE + self.envelope_size + self.body_size

    @property
    def is_confirmation(self) -> bool:
        """A deletion of nothing.  Its writer knew then that everything before it was synced."""
        return self.kind == DELETION and not self.body_size and self.id == NO_ID


class Recipient(NamedTuple):
    """One mailbox that a message is for: numeric user id, address as given in RCPT, POP3 size."""

    mailbox: int
    address: str
    octets: int


class Envelope(NamedTuple):
    """The metadata of a message.  `stuffed` counts the stuffed dots in its body.

    `uid`: the unique id that an imported message had on its old server.
    """

    time_us: int
    client: str
    helo: str
    sender: str
    recipients: tuple[Recipient, ...]
    stuffed: int = 0
    uid: str = ""


# The same as plain tuples, which cost a third: of a message that is being stored.
RecipientFields = tuple[int, str, int]
EnvelopeFields = tuple[int, str, str, str, tuple[RecipientFields, ...], int, str]


class Deletion(NamedTuple):
    """Ids that one mailbox deleted, each 16 octets, packed.

    `offset`: where in its log the record lies; 0 if it is not in one yet.  `told`: what the index
    of a clustered store notes about each id (metad.store.index.tombstone_rows); not in the record.
    """

    mailbox: int
    ids: bytes
    offset: int = 0
    told: bytes = b""

    def each(self) -> list[bytes]:
        ids = self.ids
        return [ids[i : i + ID_SIZE] for i in range(0, len(ids), ID_SIZE)]

    def groups(self, most: int) -> Iterator[Deletion]:
        """The same in deletions of `most` ids each; one that is not in a log yet."""
        told_size = len(self.told) * ID_SIZE // max(len(self.ids), 1)  # of one id
        for at in range(0, len(self.ids) // ID_SIZE, most):
            ids = self.ids[at * ID_SIZE : (at + most) * ID_SIZE]
            told = self.told[at * told_size : (at + most) * told_size]
            yield Deletion(self.mailbox, ids, told=told)


def seed_of(secret: bytes, number: int, life: int) -> int:
    """The 64-bit checksum seed of log `number` in its life `life`."""
    text = struct.pack("<IQ", number, life)
    return int.from_bytes(hashlib.blake2b(text, key=secret, digest_size=8).digest(), "little")


def make_header(
    kind: int, life: int, sequence: int, record_id: bytes, payload: PayloadFields
) -> bytes:
    """The 72 octets in front of a record whose payload has been digested."""
    envelope_size, body_size, digest, seed = payload
    prefix = _PREFIX.pack(
        MAGIC, kind, VERSION, 0, life, sequence,
        envelope_size, body_size, record_id, digest,
    )  # fmt: skip
    return prefix + _CHECK.pack(xxh3_64_intdigest(prefix, seed))


def make_freed(secret: bytes, number: int, life: int) -> bytes:
    """A record that says that log `number` has been free since its life `life`."""
    payload = digest_payload(b"", [], seed_of(secret, number, life))
    return make_header(FREED, life, 0, bytes(ID_SIZE), payload)


# The same as a plain tuple: of a message in memory.
PayloadFields = tuple[int, int, bytes, int]


class Payload(NamedTuple):
    """Sizes and digest of an envelope and its body under a log's seed."""

    envelope_size: int
    body_size: int
    digest: bytes
    seed: int


def digest_payload(envelope: bytes, chunks: Iterable[Bytes], seed: int) -> Payload:
    """Digest a payload whose body is given in any number of chunks."""
    state = xxh3_128(envelope, seed=seed)
    size = 0
    for chunk in chunks:
        state.update(chunk)
        size += len(chunk)
    return Payload(len(envelope), size, state.digest(), seed)


def digest_whole(data: bytes, envelope_size: int, seed: int) -> Payload:
    """The same for a payload in one piece."""
    return Payload(envelope_size, len(data) - envelope_size, xxh3_128_digest(data, seed), seed)


def parse_header(data: Bytes, seed: int, life: int, offset: int = 0) -> Header | None:
    """The header at `offset`, or None if there is no verifiable one of this life."""
    if len(data) - offset < HEADER_SIZE or data[offset : offset + 4] != MAGIC:
        return None
    (
        _,
        kind,
        version,
        _,
        its_life,
        sequence,
        envelope_size,
        body_size,
        record_id,
        digest,
        check,
    ) = _HEADER.unpack_from(data, offset)
    if xxh3_64_intdigest(data[offset : offset + CHECKED_SIZE], seed) != check:
        return None
    if version != VERSION or not MESSAGE <= kind <= LAST_KIND or its_life != life:
        return None
    return Header(kind, its_life, sequence, envelope_size, body_size, record_id, digest)


def payload_is_good(header: Header, payload: Bytes, seed: int) -> bool:
    """True if `payload` (envelope and body) is what was written."""
    return xxh3_128_digest(payload, seed) == header.digest


def pack_envelope(envelope: EnvelopeFields) -> bytes:
    """Without the unique id if there is none."""
    packed: bytes = _pack(envelope if envelope[6] else envelope[:6])
    return packed


def unpack_envelope(data: Bytes) -> Envelope:
    """Raises ValueError if a verified envelope is not one (written by another version)."""
    try:
        time_us, client, helo, sender, recipients, *rest = msgpack.unpackb(data, use_list=False)
        if len(recipients) == 1 and len(rest) == 1:  # nearly always
            ((mailbox, address, octets),) = recipients
            named = (_new(Recipient, (mailbox, address, octets)),)
            return _new(Envelope, (time_us, client, helo, sender, named, rest[0], ""))
        return Envelope(
            time_us, client, helo, sender, tuple(Recipient(*each) for each in recipients), *rest
        )
    except (msgpack.UnpackException, TypeError) as error:
        raise ValueError(f"not an envelope: {error}") from None


def unpack_released(body: Bytes) -> list[tuple[int, int]]:
    """Life and offset of each record that a released record names.  Raises ValueError."""
    if len(body) % _RELEASED.size:
        raise ValueError("not a released record")
    return list(_RELEASED.iter_unpack(body))


def pack_deletion(mailbox: int) -> bytes:
    packed: bytes = _pack(mailbox)
    return packed


def unpack_deletion(envelope: Bytes, body: Bytes) -> Deletion:
    """Raises ValueError if a verified deletion record is not one."""
    try:
        mailbox = msgpack.unpackb(envelope)
    except msgpack.UnpackException as error:
        raise ValueError(f"not a deletion: {error}") from None
    if not isinstance(mailbox, int) or len(body) % ID_SIZE:
        raise ValueError("not a deletion record")
    return Deletion(mailbox, bytes(body))
