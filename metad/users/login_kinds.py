"""The kinds of passwords in a database, and the kind that an unknown user appears to have.

Rules of this file:

* A kind is everything that a client can observe while a password is checked: the iterations and
  salt length that SCRAM shows, or the parameters that determine the time of an imported hash.
* An unknown name is assigned a kind by a keyed hash of the name, each kind as often as accounts
  have it.  So neither the answer nor its time reveals whether a name is an account's.
* A name keeps its kind while the counts change: only as large a share of names changes kind as of
  accounts.
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

# Kinds that are counted; accounts of any further kind are not imitated.
MOST_KINDS = 32
_SCRAM = "scram"


class ScramKind(NamedTuple):
    """What SCRAM reveals about an account before its password is checked."""

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
    """The parameters in a kind's name, if it is a SCRAM kind."""
    if not name.startswith(_SCRAM):
        return None
    _, iterations, salt_octets = name.split()
    return ScramKind(int(iterations), int(salt_octets))


def unpacked(raw: bytes | None) -> dict[str, int]:
    """How many accounts have each kind, from the table "meta"; empty if it is unreadable."""
    try:
        found = msgpack.unpackb(raw or b"\x80")
    except (ValueError, msgpack.UnpackException):
        return {}
    return found if isinstance(found, dict) else {}


def recounted(kinds: dict[str, int], before: str, after: str) -> dict[str, int]:
    """The counts after an account's kind has changed."""
    changed = dict(kinds)
    if before in changed:
        changed[before] -= 1
        if changed[before] <= 0:
            del changed[before]
    if after and (after in changed or len(changed) < MOST_KINDS):
        changed[after] = changed.get(after, 0) + 1
    return changed


def drawn(kinds: Mapping[str, int], secret: bytes, name: bytes, *, only_scram: bool) -> str:
    """The kind that an unknown name appears to have; empty: there are no kinds.

    A race of the kinds: the name determines the time of each, which is shorter the more accounts
    have it.  If the winner is a SCRAM kind, it also wins among those.
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
