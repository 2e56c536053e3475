"""What the POP3 machine reports to its session, and what it needs to know about a maildrop.

Rules of this file:

* Each is a NamedTuple, which is cheap to make.  Its docstring names the methods of Pop3 that answer
  it.
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

    @property
    def is_listed(self) -> bool:
        """Whether sizes and unique-ids are known; otherwise `ListMessages` precedes their use."""

    def size(self, number: int, /) -> int:
        """Octets as RFC 1939 section 11 counts: dots not stuffed, no final dot line."""

    def uid(self, number: int, /) -> str:
        """The unique-id: 1 to 70 characters from 0x21 to 0x7E (RFC 1939, UIDL)."""


class ListMessages(NamedTuple):
    """Make the drop's listing for this command; answer with `listed` or `refused`."""

    verb: bytes


class Login(NamedTuple):
    """Answer with `login_ok` or `login_failed`.

    `master`: the master user whose password it is, if not the user's own.
    """

    user: str
    password: bytes
    master: str | None = None


class ScramUser(NamedTuple):
    """Answer with `scram_keys`: the user's, or fake ones that stay the same."""

    user: str


class ScramLogin(NamedTuple):
    """Answer with `login_ok` or `login_failed`.

    `proven`: the client knows the password of `master`, or of `user` if that is None.
    """

    user: str
    proven: bool
    master: str | None = None


class StartTls(NamedTuple):
    """Write the output (the +OK), start TLS as the server, then call `tls_started`."""


class Retrieve(NamedTuple):
    """Answer with `message`; or `message_begin`, `message_chunk`…, `message_end`; or `refused`."""

    number: int


class Top(NamedTuple):
    """Answer with `top` until `top_done`, or `refused`."""

    number: int
    lines: int


class Quit(NamedTuple):
    """Make the deletions durable, then answer with `quit_done`, or `quit_failed`.  Numbers
    ascend."""

    deleted: Sequence[int]


class Personal(NamedTuple):
    """The capabilities that differ from user to user (RFC 2449 section 6).

    `expire`: days for which mail is kept, None: forever; `login_delay`: seconds, 0 for none.
    """

    expire: int | None = None
    login_delay: int = 0


Event = ListMessages | Login | ScramUser | ScramLogin | StartTls | Retrieve | Top | Quit
