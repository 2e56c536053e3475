"""The kinds of passwords that a database holds, and which of them an unknown user seems to have.

Rules of this file:

* A kind is all that a client can observe of a password while it is checked: the iterations and the
  length of the salt that SCRAM shows, or what makes an imported hash take its time.
* An unknown name draws a kind, each as often as accounts have it, by a keyed hash of the name.  So
  neither the answer nor its time reveals whether a name is an account's.
* A name keeps its kind while the counts change: of all names only as many change theirs as
  accounts did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack

from metad import limits
from metad.errors import DataError
from metad.users import hashes, passwords

# Kinds that are counted; an account of yet another one is not imitated.
MOST_KINDS = 32
_SCRAM = "scram"


class ScramKind(NamedTuple):
    """What SCRAM shows of an account before its password is checked."""

    iterations: int
    salt_octets: int

    @property
    def name(self) -> str:
        return f"{_SCRAM} {self.iterations} {self.salt_octets}"


def kind_of(record: Mapping[str, Any]) -> str:
    """The kind of the password in an account's record; empty: it cannot log in."""
    keys = passwords.unpacked(record.get("scram"))
    if keys is not None:
        return ScramKind(keys.iterations, len(keys.salt)).name
    source = record.get("hash")
    try:
        return hashes.work_of(source) if isinstance(source, str) else ""
    except DataError:
        return ""


def scram_kind(name: str) -> ScramKind | None:
    """What a kind's name says, if it is one of SCRAM's."""
    if not name.startswith(_SCRAM):
        return None
    _, iterations, salt_octets = name.split()
    return ScramKind(int(iterations), int(salt_octets))


def unpacked(raw: bytes | None) -> dict[str, int]:
    """How many accounts have each kind, from the table "meta"; nothing if it is unreadable."""
    try:
        found = msgpack.unpackb(raw or b"\x80")
    except (ValueError, msgpack.UnpackException):
        return {}
    return found if isinstance(found, dict) else {}


def recounted(kinds: dict[str, int], before: str, after: str) -> dict[str, int]:
    """The counts once an account's kind has changed."""
    changed = dict(kinds)
    if before in changed:
        changed[before] -= 1
        if changed[before] <= 0:
            del changed[before]
    if after and (after in changed or len(changed) < MOST_KINDS):
        changed[after] = changed.get(after, 0) + 1
    return changed


def drawn(kinds: Mapping[str, int], secret: bytes, name: bytes, *, only_scram: bool) -> str:
    """The kind that an unknown name seems to have; empty: there are none to draw from.

    A race of the kinds: each takes a time that the name decides, the shorter the more accounts
    have it.  The winner of all kinds also wins among SCRAM's, if it is one of them.
    """
    best, least = "", math.inf
    for kind, count in kinds.items():
        if only_scram and not kind.startswith(_SCRAM):
            continue
        text = len(name).to_bytes(4, "big") + name + kind.encode()
        digest = blake2b(text, key=secret, digest_size=8).digest()
        share = (int.from_bytes(digest, "big") + 1) / (1 << 64)
        time = -math.log(share) / count
        if time < least:
            best, least = kind, time
    return best


def default(iterations: int = limits.SCRAM_ITERATIONS) -> ScramKind:
    """The kind of a new password."""
    return ScramKind(iterations, passwords.SALT_OCTETS)
