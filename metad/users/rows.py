"""The users of a cluster as rows of etcd.

    row/XX/ADDRESS          [number, record]: an account, its record as the database has it
                            [0, members]: an alias
    removed/NUMBER          what remains of a removed account
    removed-alias/ADDRESS   an alias was there; deleted when there is one again
    next                    the next mailbox number
    secret                  of the answers for unknown names (login_kinds.py)
    aliases                 rewritten with every alias
    last/NODE               a random token, rewritten with every change made on this node
    whole                   written last by an upload: all users are there

XX is a hash of the address: for a page of rows, etcd counts all that follow in the range, so
that only ranges of bounded size can be read in bounded time.

Rules of this file:

* Only a row that says so removes an account or an alias.  A row that is missing says nothing.
* A change compares the rows that it was decided on: none of them was written after the revision of
  the mirror on which it was decided.
* Removing or renaming an address compares "aliases": a new alias may name it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import msgpack

from metad.errors import ClusterError, DataError
from metad.limits import MIB
from metad.users import login_kinds
from metad.users.account import (
    MAX_ID,
    checked_policy,
    from_record,
    pack_entry,
    unpack_record,
)
from metad.users.lmdb_env import MAX_KEY
from metad.users.lookup import POSTMASTER_ALIAS

T = TypeVar("T")

# In the order in which they must be entered, which is etcd's.
REMOVED_ALIAS, REMOVED, ROW = b"removed-alias/", b"removed/", b"row/"
SHARDS = 256
_ADDRESS = len(ROW) + len(b"XX/")
LAST = b"last/"
NEXT, SECRET, ALIASES, WHOLE = b"next", b"secret", b"aliases", b"whole"
# Most rows that one change may write: etcd takes 128 operations in a transaction.
MOST_WRITES = 120
# Most comparisons row by row; etcd takes 128.  Above, no user may have changed at all.
MOST_COMPARED = 120

# Octets of rows that one change may write, and after which a part of an import or an upload ends;
# etcd takes 1.5 MiB in a request.  An alias has up to 500 KB.
MOST_OCTETS = MIB
PART_OCTETS = MIB // 2

# All rows are below one of these; in this order.
PARTS = (
    REMOVED_ALIAS, REMOVED, *(b"%s%02x/" % (ROW, shard) for shard in range(SHARDS)),
    NEXT, SECRET, WHOLE,
)  # fmt: skip

# Relative key, and the value; None: the row was deleted.
Row = tuple[bytes, bytes | None]


class Position(NamedTuple):
    """The revision that a mirror has, of which etcd."""

    identity: str = ""
    revision: int = 0


class Content(NamedTuple):
    """The row of an address: an account, or with number 0 an alias."""

    number: int
    record: dict[str, Any]
    members: tuple[str, ...]


class Change(NamedTuple):
    """What a transaction of etcd does, and what it was decided on.

    `position`: of the mirror.  Rows are `present` or `absent` there, or of the kind of "next", of
    which it does not matter whether they exist.
    """

    position: Position
    present: tuple[bytes, ...]
    absent: tuple[bytes, ...]
    either: tuple[bytes, ...]
    puts: tuple[tuple[bytes, bytes], ...]
    deletes: tuple[bytes, ...] = ()

    @classmethod
    def decode(cls, parts: Any) -> Change:
        """From a request of a command.  Raises ClusterError."""
        try:
            (identity, revision), present, absent, either, puts, deletes = parts
            position = Position(str(identity), int(revision))
            pairs = tuple((bytes(key), bytes(value)) for key, value in puts)
            keys = [tuple(map(bytes, one)) for one in (present, absent, either, deletes)]
            change = cls(position, keys[0], keys[1], keys[2], pairs, keys[3])
        except (TypeError, ValueError):
            raise ClusterError("not a change of users") from None
        if len(change.puts) + len(change.deletes) > MOST_WRITES:
            raise ClusterError("a change of too many users")
        return change


def in_parts(found: Iterable[T], most: int, octets: Callable[[T], int]) -> Iterator[list[T]]:
    """At most so many of them at a time, and `PART_OCTETS` unless one alone has more."""
    part: list[T] = []
    total = 0
    for one in found:
        size = octets(one)
        if part and (len(part) == most or total + size > PART_OCTETS):
            yield part
            part, total = [], 0
        part.append(one)
        total += size
    if part:
        yield part


def row_key(address: bytes) -> bytes:
    return b"%s%02x/%s" % (ROW, crc32(address) % SHARDS, address)


def row_address(key: bytes) -> bytes:
    """Of a key that begins with `ROW`."""
    return key[_ADDRESS:]


def account_row(number: int, record: bytes) -> bytes:
    packed: bytes = msgpack.packb((number, record))
    return packed


def alias_row(members: tuple[str, ...]) -> bytes:
    packed: bytes = msgpack.packb((0, members))
    return packed


def read_row(address: bytes, value: bytes) -> Content:
    """Raises DataError: what the database could not store is left out."""
    content = _content(value)
    for one in (address, *(member.encode() for member in content.members)):
        checked_address(one)
    if content.number:
        check_record(content.number, content.record)
        if content.record["address"].encode() != address:
            raise DataError("etcd holds an account under another address")
    return content


def checked_address(address: bytes) -> bytes:
    """Raises DataError if it is no key of the database."""
    if not 0 < len(address) <= MAX_KEY:
        raise DataError("etcd holds an address of impossible length")
    try:
        text = address.decode()
    except UnicodeDecodeError:  # a character was cut in two: the key has no shard
        raise DataError("etcd holds an address that is not UTF-8") from None
    if text.endswith("@") and address != POSTMASTER_ALIAS:
        raise DataError("etcd holds an address without a domain")
    return address


def check_record(number: int, record: dict[str, Any]) -> None:
    """Raises DataError if it does not fit in the database."""
    try:
        account = from_record(number, record)
        checked_policy(account.policy)
        pack_entry(account)
        login_kinds.kind_of(record)
    except (TypeError, ValueError, KeyError, AttributeError, struct.error):
        raise DataError("etcd holds an account that cannot be read") from None


def read_tombstone(value: bytes) -> bytes:
    """Raises DataError."""
    record = unpack_record(value)
    if not isinstance(record.get("address"), str) or not isinstance(record.get("time"), int):
        raise DataError("etcd holds a removed user that cannot be read")
    return value


def _content(value: bytes) -> Content:
    try:
        number, content = msgpack.unpackb(value, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        number, content = -1, None
    if isinstance(number, int) and 0 < number <= MAX_ID and isinstance(content, bytes):
        record = unpack_record(content)
        if isinstance(record.get("address"), str):
            return Content(number, record, ())
    elif number == 0 and _are_members(content):
        return Content(0, {}, content)
    raise DataError("etcd holds a row of users that cannot be read")


def removed_key(number: int) -> bytes:
    return REMOVED + b"%010d" % number


def _are_members(content: Any) -> bool:
    return isinstance(content, tuple) and bool(content) and all(isinstance(o, str) for o in content)


def read_number(text: bytes) -> int:
    """Raises DataError."""
    if not text.isdigit() or len(text) > 10 or int(text) > MAX_ID + 1:
        raise DataError("etcd holds a mailbox number that cannot be read")
    return int(text)
