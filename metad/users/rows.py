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

from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from metad.errors import ClusterError, DataError
from metad.users.account import unpack_record

# In the order in which they must be entered, which is etcd's.
REMOVED_ALIAS, REMOVED, ROW = b"removed-alias/", b"removed/", b"row/"
SHARDS = 256
_ADDRESS = len(ROW) + len(b"XX/")
LAST = b"last/"
NEXT, SECRET, ALIASES, WHOLE = b"next", b"secret", b"aliases", b"whole"
# Most rows that one change may write: etcd takes 128 operations in a transaction.
MOST_WRITES = 120
# Most comparisons row by row; etcd takes 128.  Above, all rows are compared at once.
MOST_COMPARED = 120

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


class Change(NamedTuple):
    """What a transaction of etcd does, and what it was decided on.

    `revision`: of the mirror.  Rows are `present` or `absent` there, or of the kind of "next", of
    which it does not matter whether they exist.
    """

    revision: int
    present: tuple[bytes, ...]
    absent: tuple[bytes, ...]
    either: tuple[bytes, ...]
    puts: tuple[tuple[bytes, bytes], ...]
    deletes: tuple[bytes, ...] = ()

    @classmethod
    def decode(cls, parts: Any) -> Change:
        """From a request of a command.  Raises ClusterError."""
        try:
            revision, present, absent, either, puts, deletes = parts
            pairs = tuple((bytes(key), bytes(value)) for key, value in puts)
            keys = [tuple(map(bytes, one)) for one in (present, absent, either, deletes)]
            change = cls(int(revision), keys[0], keys[1], keys[2], pairs, keys[3])
        except (TypeError, ValueError):
            raise ClusterError("not a change of users") from None
        if len(change.puts) + len(change.deletes) > MOST_WRITES:
            raise ClusterError("a change of too many users")
        return change


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


def read_row(value: bytes) -> tuple[int, dict[str, Any], tuple[str, ...]]:
    """Number and record of an account, or 0, nothing and the members of an alias.

    Raises DataError.
    """
    try:
        number, content = msgpack.unpackb(value, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        number, content = -1, None
    if isinstance(number, int) and number > 0 and isinstance(content, bytes):
        record = unpack_record(content)
        if isinstance(record.get("address"), str):
            return number, record, ()
    elif number == 0 and isinstance(content, tuple) and all(isinstance(o, str) for o in content):
        return 0, {}, content
    raise DataError("etcd holds a row of users that cannot be read")


def removed_key(number: int) -> bytes:
    return REMOVED + b"%010d" % number


def read_number(text: bytes) -> int:
    """Raises DataError."""
    if not text.isdigit() or len(text) > 20:
        raise DataError("etcd holds a row of users that cannot be read")
    return int(text)
