"""What the database stores under an address: an account or an alias; and an account's record.

Rules of this file:

* An *entry* is what RCPT and a login need, under the folded address: one look-up, no parsing.
* A *record* is a msgpack map of everything, under the id; unknown fields are kept.

Entry, big-endian, 20 octets: kind (1), flags (1), zero (2), id (8), password version (4), zero (4).
Then, of an account, its policy, 20 octets: quota in octets (8), in messages (4), expiry (4) and
login delay (4) in seconds, all bits set where the defaults apply; it is left out if all of them do.
For filters 12 more follow if any is set: whether on (4), scores to mark and to refuse (4 each).
Then, of an alias, its members, a msgpack list.  A later format may make an entry longer; readers
ignore the rest.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgpack

from metad.errors import DataError

POSTMASTER = "postmaster"
POSTMASTER_ID = 1
# The store numbers mailboxes in four octets.
MAX_ID = (1 << 32) - 1

DISABLED = 1
HAS_PASSWORD = 2
# SCRAM keys: present from the start, or since the first plain login with an imported password.
HAS_KEYS = 4

KIND_ACCOUNT = 1
KIND_ALIAS = 2
_ENTRY = struct.Struct(">BBxxQLxxxx")
_POLICY = struct.Struct(">QLLLLLL")
# An entry without scores ends here, like all entries before filters existed.
_WITHOUT_SCORES = 20
_UNSET = (1 << 64) - 1, *[MAX_ID] * 6
MAX_QUOTA = (1 << 64) - 2
MAX_COUNT = MAX_ID - 1
MAX_SCORE = 100_000

# Remedies of errors.
ADDRESS = "give an address such as alice@example.org"
DAMAGED = "restart the hub, which repairs it and keeps the damaged file"


class Policy(NamedTuple):
    """The settings of one account.  None: the default applies.  0: no limit, never, no delay.

    `quota` in octets, `messages`, `expiry` (of mail, by age) and `login_delay` in seconds.
    `spam_filter`: 0 turns filters off; `spam_mark` and `spam_refuse`: scores, in hundredths.
    """

    quota: int | None = None
    messages: int | None = None
    expiry: int | None = None
    login_delay: int | None = None
    spam_filter: int | None = None
    spam_mark: int | None = None
    spam_refuse: int | None = None


DEFAULT = Policy()
_MOST = Policy(MAX_QUOTA, MAX_COUNT, MAX_COUNT, MAX_COUNT, 1, MAX_SCORE, MAX_SCORE)


class Account(NamedTuple):
    """A mailbox: `id` is its permanent number, `address` its folded address."""

    id: int
    address: str
    flags: int = 0
    password_version: int = 0
    policy: Policy = DEFAULT

    @property
    def disabled(self) -> bool:
        return bool(self.flags & DISABLED)

    @property
    def has_password(self) -> bool:
        return bool(self.flags & HAS_PASSWORD)

    @property
    def has_keys(self) -> bool:
        """Whether SCRAM can check its password."""
        return bool(self.flags & HAS_KEYS)

    @property
    def unkeyed(self) -> bool:
        """Whether it may log in, but not by SCRAM."""
        return self.flags & (DISABLED | HAS_PASSWORD | HAS_KEYS) == HAS_PASSWORD


class Removed(NamedTuple):
    """What remains of a removed account.  `time`: when, in Unix seconds."""

    address: str
    time: int


_unpack_head = _ENTRY.unpack_from
_HEAD = _ENTRY.size
_END = _ENTRY.size + _WITHOUT_SCORES
_FULL_END = _ENTRY.size + _POLICY.size
_POLICIES = 1024
_policies: dict[bytes, Policy] = {}
_NO_SCORES = b"\xff" * (_POLICY.size - _WITHOUT_SCORES)
_new = tuple.__new__  # Account's own defaults would double the time


class Alias(NamedTuple):
    """An address that stands for others.  "@domain" is the catch-all of a domain."""

    address: str
    members: tuple[str, ...]


def pack_entry(account: Account) -> bytes:
    head = _ENTRY.pack(KIND_ACCOUNT, account.flags, account.id, account.password_version)
    if account.policy == DEFAULT:
        return head
    numbers = zip(account.policy, _UNSET, strict=True)
    packed = _POLICY.pack(*(unset if one is None else one for one, unset in numbers))
    return head + (packed[:_WITHOUT_SCORES] if account.policy[4:] == DEFAULT[4:] else packed)


def unpack_entry(key: bytes, raw: bytes) -> Account | None:
    """The account of an entry; None for other kinds."""
    return unpack_account(key.decode(), raw)


def unpack_account(address: str, raw: bytes) -> Account | None:
    """The same for an address that is text already: called at every RCPT, so it must be fast."""
    kind, flags, number, version = _unpack_head(raw)
    if kind != KIND_ACCOUNT:
        return None
    policy = DEFAULT
    if len(raw) >= _END:
        packed = raw[_HEAD:_FULL_END]
        # A few policies serve most users, and unpacking one costs as much as everything else.
        policy = _policies.get(packed) or _unpack_policy(packed)
    return _new(Account, (number, address, flags, version, policy))


def _unpack_policy(packed: bytes) -> Policy:
    complete = packed if len(packed) == _POLICY.size else packed[:_WITHOUT_SCORES] + _NO_SCORES
    fields = zip(_POLICY.unpack(complete), _UNSET, strict=True)
    policy = Policy(*(None if one == unset else one for one, unset in fields))
    if len(_policies) >= _POLICIES:
        _policies.clear()
    _policies[packed] = policy
    return policy


def pack_alias(members: tuple[str, ...]) -> bytes:
    packed: bytes = msgpack.packb(members)
    return _ENTRY.pack(KIND_ALIAS, 0, 0, 0) + packed


def unpack_alias(raw: bytes) -> tuple[str, ...] | None:
    """The members of an alias's entry; None for other kinds.  Raises DataError."""
    if raw[0] != KIND_ALIAS:
        return None
    try:
        members = msgpack.unpackb(raw[_ENTRY.size :])
    except (ValueError, msgpack.UnpackException):
        members = None
    if not isinstance(members, list) or not all(isinstance(one, str) for one in members):
        raise DataError("the users database holds an alias without members", remedy=DAMAGED)
    return tuple(members)


def pack_record(record: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(record)
    return packed


def unpack_record(raw: bytes) -> dict[str, Any]:
    """Raises DataError if `raw` is not a map."""
    try:
        record = msgpack.unpackb(raw, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):  # TypeError: a key that is a list
        record = None
    if not isinstance(record, dict):
        raise DataError("the users database holds an account that is not a map", remedy=DAMAGED)
    return record


def from_record(number: int, record: dict[str, Any]) -> Account:
    """The account in a record."""
    flags = DISABLED if record.get("disabled") else 0
    if "scram" in record:
        flags |= HAS_PASSWORD | HAS_KEYS
    elif "hash" in record:
        flags |= HAS_PASSWORD
    policy = Policy(*map(record.get, Policy._fields))
    version = record.get("password_version", 0)
    return Account(number, record["address"], flags, version, policy)


def checked_policy(policy: Policy) -> Policy:
    """`policy`, checked to fit in the database.  Raises DataError."""
    for name, value, most in zip(Policy._fields, policy, _MOST, strict=True):
        if value is not None and not 0 <= value <= (most or 0):
            raise DataError(f"{name.replace('_', ' ')} must be from 0 to {most:,}")
    return policy


def login_name(user: str, default_domain: str | None) -> str:
    """The address that a POP3 user name stands for; a name without "@" is in `default_domain`."""
    if "@" in user or default_domain is None or user.lower() == POSTMASTER:
        return user
    return f"{user}@{default_domain}"
