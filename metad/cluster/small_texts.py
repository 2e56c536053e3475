"""TEXTS: several small messages as RETR sends them, whole, from a member that has them.

    request   mailbox 4 | ids, 16 each
    answer    for each, in their order: length 4 | digest 16 | text
              only the length NOT_SENT for one that cannot be sent so: FETCH gets it, or the reason

A session that takes messages in order asks for the next ones: a request for each would cost both
nodes several times what reading it costs.

Rule of this file: the member that has a message verifies its record, the one that asks its text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_128_digest

from metad.cluster.frames import PIECE
from metad.errors import ClusterError
from metad.store.ids import ID_SIZE

# Messages of one request, and bytes of one answer, so that it is one frame.
MOST_TEXTS: Final = 16
TEXTS_SIZE: Final = PIECE
NOT_SENT: Final = 0xFFFFFFFF
PATIENCE_S: Final = 10.0
_MAILBOX = struct.Struct(">I")
_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">I16s")
TEXT_HEAD: Final = _HEAD.size


def pack_ask(mailbox: int, ids: Iterable[bytes]) -> bytes:
    return b"".join((_MAILBOX.pack(mailbox), *ids))


def unpack_ask(body: bytes) -> tuple[int, list[bytes]]:
    """Mailbox and ids.  Raises ClusterError."""
    size = len(body) - _MAILBOX.size
    if size <= 0 or size % ID_SIZE or size > MOST_TEXTS * ID_SIZE:
        raise ClusterError("not a request for messages")
    (mailbox,) = _MAILBOX.unpack_from(body)
    return mailbox, [body[at : at + ID_SIZE] for at in range(_MAILBOX.size, len(body), ID_SIZE)]


def pack_texts(texts: Sequence[bytes | None]) -> list[bytes]:
    """The parts of an answer; None: it cannot be sent.  What does not fit is not sent."""
    parts: list[bytes] = []
    left = TEXTS_SIZE
    for text in texts:
        size = TEXT_HEAD if text is None else TEXT_HEAD + len(text)
        if text is None or size > left:
            parts.append(_LENGTH.pack(NOT_SENT))
        else:
            parts += (_HEAD.pack(len(text), xxh3_128_digest(text)), text)
            left -= size
    return parts


def unpack_texts(body: bytes, count: int) -> list[bytes | None]:
    """The texts that came and verify.  Raises ClusterError if it is not an answer to `count`."""
    texts: list[bytes | None] = []
    at = 0
    try:
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(body, at)
            if size == NOT_SENT:
                texts.append(None)
                at += _LENGTH.size
                continue
            _, digest = _HEAD.unpack_from(body, at)
            at += TEXT_HEAD
            text = body[at : at + size]
            at += size
            texts.append(text if xxh3_128_digest(text) == digest else None)
    except struct.error:
        raise ClusterError("an answer ends early") from None
    if at != len(body):
        raise ClusterError("an answer has another length")
    return texts
