"""What one member has of a mailbox, as LIST asks for it and answers.

    mailbox (4) -> everything
    mailbox (4) + the asker's digests of entries, tombstones, unique ids (16 each)
                -> the parts that differ; None for one that is the same here

A poll of a mailbox whose mail is on all members so costs some hundred bytes, whatever its size.

Why the rules hold.  Read: a member answers "the same" after it has made its own list, on the
request, as it would to send it; the asker counts it as heard and puts in what the member would
have sent.  So it makes no difference whether the list went over the link, and a list that changed
between the asker's and the member's differs.  Omit: nothing is left out of an answer.  The
tombstones of each member are applied to the union; those that are the same are the asker's own,
which are applied as well.  If only one member has a tombstone, its digest differs and all of its
tombstones are sent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_128_digest

from metad.errors import ClusterError

ID_SIZE = 16
ENTRY_SIZE = ID_SIZE + 4
DIGEST_SIZE = 16
DIGESTS_SIZE = 3 * DIGEST_SIZE


class Listed(NamedTuple):
    """What one member has of a mailbox: entries (id, 4 bytes of size) in the order of their ids,
    ids of tombstones, unique ids of imported messages."""

    entries: bytes
    tombstones: bytes = b""
    uids: dict[bytes, str] = {}  # noqa: RUF012 - never changed

    @property
    def digests(self) -> list[bytes]:
        uids: bytes = msgpack.packb(sorted(self.uids.items()))
        return [xxh3_128_digest(part) for part in (self.entries, self.tombstones, uids)]

    def pack(self, digests: bytes = b"") -> bytes:
        """An answer to an asker whose list has these digests; b"": it has none."""
        parts: list[Any] = list(self)
        for at, digest in enumerate(self.digests if digests else ()):
            if digests[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE] == digest:
                parts[at] = None
        packed: bytes = msgpack.packb(parts)
        return packed


def unpack_listed(body: bytes, own: Listed) -> Listed:
    """An answer to an asker that has `own`.  Raises ClusterError."""
    try:
        parts = msgpack.unpackb(body, strict_map_key=False)
        pairs: Any = zip(parts, own, strict=True)
        entries, tombstones, uids = [mine if one is None else one for one, mine in pairs]
        if len(entries) % ENTRY_SIZE or len(tombstones) % ID_SIZE:
            raise ValueError("torn")
        return Listed(
            bytes(entries), bytes(tombstones), {bytes(k): str(v) for k, v in uids.items()}
        )
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise ClusterError(f"not a listing: {error}") from None
