"""What a POP3 session tells its owner, and what it must know of a maildrop.

Rules of this file:

* Cheap to make: a NamedTuple each.  Each says which methods of Pop3 answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Drop(Protocol):
    """The listing of a maildrop, frozen at login; messages have the numbers 1 to len()."""

    @property
    def octets(self) -> int:
        """The sum of all sizes."""

    def __len__(self) -> int: ...

    def size(self, number: int, /) -> int:
        """Octets as RFC 1939 section 11 counts: dots not stuffed, no final dot line."""

    def uid(self, number: int, /) -> str:
        """The unique-id: 1 to 70 characters from 0x21 to 0x7E (RFC 1939, UIDL)."""


class Login(NamedTuple):
    """Answer with `login_ok` or `login_failed`."""

    user: str
    password: bytes


class Retrieve(NamedTuple):
    """Answer with `message`; or `message_begin`, `message_chunk`…, `message_end`; or `refused`."""

    number: int


class Top(NamedTuple):
    """Answer with `top` until `top_done`, or `refused`."""

    number: int
    lines: int


class Quit(NamedTuple):
    """Make the deletions durable, then `quit_done`; else `quit_failed`.  Numbers ascend."""

    deleted: Sequence[int]


Event = Login | Retrieve | Top | Quit
