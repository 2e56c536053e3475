"""An account, and the two forms in which the database keeps it.

Rules of this file:

* An *entry* is small and fixed: what RCPT and a login need, under the folded address.
* A *record* is a msgpack map of everything, under the id; what we do not know in it stays in it.

Entry, 20 octets, big-endian: kind (1), flags (1), zero (2), id (8), password version (4), zero (4).
A later format may make it longer; readers ignore what follows.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgpack

from metad.errors import DataError

POSTMASTER = "postmaster"
POSTMASTER_ID = 1
# The store counts mailboxes in four octets.
MAX_ID = (1 << 32) - 1

DISABLED = 1
HAS_PASSWORD = 2

_ENTRY = struct.Struct(">BBxxQLxxxx")
_KIND_ACCOUNT = 1


class Account(NamedTuple):
    """A mailbox: `id` is its number for ever, `address` its folded address."""

    id: int
    address: str
    flags: int = 0
    password_version: int = 0

    @property
    def disabled(self) -> bool:
        return bool(self.flags & DISABLED)

    @property
    def has_password(self) -> bool:
        return bool(self.flags & HAS_PASSWORD)


def pack_entry(account: Account) -> bytes:
    return _ENTRY.pack(_KIND_ACCOUNT, account.flags, account.id, account.password_version)


def unpack_entry(key: bytes, raw: bytes) -> Account | None:
    """The account of an entry; None for a kind that is none (an alias, later)."""
    kind, flags, number, version = _ENTRY.unpack_from(raw)
    return Account(number, key.decode(), flags, version) if kind == _KIND_ACCOUNT else None


def pack_record(record: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(record)
    return packed


def unpack_record(raw: bytes) -> dict[str, Any]:
    """Raises DataError if `raw` is no map."""
    try:
        record = msgpack.unpackb(raw, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        record = None
    if not isinstance(record, dict):
        raise DataError("the users database holds an account that is no map")
    return record


def from_record(number: int, record: dict[str, Any]) -> Account:
    flags = (DISABLED if record.get("disabled") else 0) | (HAS_PASSWORD if "scram" in record else 0)
    return Account(number, record["address"], flags, record.get("password_version", 0))


def login_name(user: str, default_domain: str | None) -> str:
    """The address that a POP3 user name stands for; one without "@" is of `default_domain`."""
    if "@" in user or default_domain is None or user.lower() == POSTMASTER:
        return user
    return f"{user}@{default_domain}"
