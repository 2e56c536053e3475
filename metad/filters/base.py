"""The interface of a filter.  It is public: docs/filters.md.

A worker has one object of each configured filter.  Every method is called on the worker's loop and
must not block it: a method returns its answer, or an awaitable of it.

    connected -> greeted -> sender -> recipient ... -> message

Rules of this file:

* A filter refuses or accepts; it never delivers, and it never drops mail that was accepted.
* A method that a filter does not override is never called, and costs nothing.
* A late answer or an exception is a failure of the filter: then the setting filter.failure decides
  on the message, not the filter.
* New methods have defaults, so a filter written for an older metad keeps working.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from metad.errors import Reply
from metad.filters.body import Body

__all__ = [
    "ACCEPT",
    "Answer",
    "Body",
    "Filter",
    "FilterContext",
    "FilterResult",
    "Message",
    "Preferences",
    "Reply",
    "Session",
    "Verdict",
]


class Session(NamedTuple):
    """What is known about a session so far.

    `client`: an IP address, or "local" for a Unix socket.  `protocol`: "smtp" or "lmtp".  `tls` and
    `cipher`: such as "TLSv1.3", "" without TLS.  `recipients`: the addresses accepted so far, as
    they were given.
    """

    client: str
    protocol: str
    helo: str = ""
    tls: str = ""
    cipher: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()


class Preferences(NamedTuple):
    """A recipient's settings for filters.  None: the filter's own value applies.

    `off`: no message is refused or marked for this recipient.  `mark` and `refuse`: the scores at
    which a message is marked as spam and refused.
    """

    off: bool = False
    mark: float | None = None
    refuse: float | None = None


DEFAULT = Preferences()


class Verdict(NamedTuple):
    """A filter's decision on a message.

    `refusal`: a reply of class 4 or 5; None accepts.  `add`: header fields, name and value, put in
    front of the message, the first one at the top.  `remove`: header fields to be removed, name and
    number: 0 is every field of this name, 1 the first, -1 the last.  `junk`: the message goes to
    the second mailbox of its recipients (filter.junk).  `note`: for the log.
    """

    refusal: Reply | None = None
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[tuple[str, int], ...] = ()
    junk: bool = False
    note: str = ""


ACCEPT = Verdict()

# For all recipients, or one for each of `Message.preferences`.
FilterResult = Verdict | Mapping[Preferences, Verdict]
# A reply of class 4 or 5 refuses, None accepts.
Answer = Reply | None | Awaitable[Reply | None]


class Message(NamedTuple):
    """A complete message.

    `id` is the name under which it is logged.  `size`: its bytes, without dot stuffing.
    `preferences`: those of its recipients, without duplicates.  In SMTP there is only one, because
    recipients with different preferences get separate transactions.
    """

    session: Session
    id: str
    size: int
    body: Body
    preferences: tuple[Preferences, ...] = (DEFAULT,)


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What the hub gives to a filter after the fork.

    `options` is what `check_options` returned.  `report` takes a line for the log.
    """

    loop: asyncio.AbstractEventLoop
    hostname: str
    options: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[str], None] = lambda line: None


class Filter:
    """A filter, as one worker uses it."""

    name: ClassVar[str]

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        """The table [filter.NAME], checked and with its defaults.  Raises ValueError.

        Called by any command, before a hub exists; must have no side effects.
        """
        if options:
            raise ValueError(f"{cls.name} knows no setting {next(iter(options))}")
        return {}

    @classmethod
    def places(cls, options: Mapping[str, Any]) -> list[Path]:
        """Directories outside DATA that it uses, and files that it reads.

        A confined worker can open nothing else.
        """
        return []

    @classmethod
    def connects(cls, options: Mapping[str, Any]) -> bool:
        """Whether it makes TCP connections: a confined worker cannot unless it says so."""
        return False

    def start(self, context: FilterContext) -> None:
        """Open what is needed, after the fork; may block.  Raises MetadError, OSError."""

    def stop(self) -> None:
        """Close everything, when no session is left."""

    def tick(self) -> None:
        """Called about once a second."""

    def connected(self, session: Session) -> Answer:
        """A client has connected and has not been greeted yet.  A refusal ends the connection."""
        return None

    def greeted(self, session: Session) -> Answer:
        """The client has sent HELO, EHLO or LHLO.  A refusal answers MAIL until the next one."""
        return None

    def sender(self, session: Session) -> Answer:
        """MAIL: `session.sender` is set."""
        return None

    def recipient(self, session: Session, address: str) -> Answer:
        """RCPT of a mailbox of this hub.  `session.recipients` does not have `address` yet."""
        return None

    def message(self, message: Message) -> FilterResult | Awaitable[FilterResult]:
        """The whole message has arrived and is not answered yet."""
        return ACCEPT
