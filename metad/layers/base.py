"""The interface of a back end ("layer"), the paper's section 8.  It is public: docs/layers.md.

A worker has one layer.  Every method is called on the worker's loop unless its docstring says
otherwise, and must not block it.

    check_space -> transaction_started -> check_mailbox ...
        -> begin, write ..., commit (done called later) or abort            mail in
    open_mailbox -> Maildrop: fetch ..., delete, close                      mail out

Rules of this file:

* `done(None)` promises what a 250 promises: durability, as the layer defines it.  It is called
  once, on the loop, and never from within the call that received it.
* An error given to `done`, or raised, is a RefusedError: it carries the reply.  Any other exception
  defers that message (451) and is logged.
* New methods have defaults, so a layer written for an older metad keeps working.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metad.budget import Budget
from metad.config.model import StoreConfig
from metad.errors import RefusedError
from metad.store.commit.group import Loop
from metad.store.log_table import Semaphore
from metad.store.runtime import Runtime
from metad.store.usage import Usage as Usage  # noqa: PLC0414 - part of the interface
from metad.system.osio import Buffer
from metad.system.shared_memory import ProcessRow, SharedArea

Done = Callable[[RefusedError | None], None]
Opened = Callable[["Maildrop | Exception"], None]


class NotAtHandError(Exception):
    """The message must be loaded first: call `Maildrop.bring`."""


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What the hub gives to a worker's layer after the fork.

    `report` takes a line for the log, from any thread.  `options` is the table [layer] as
    `check_options` returned it.  `address_of` returns the address of a mailbox, or None if the
    mailbox is gone.  `budget` accounts for incoming messages held in memory (metad.layers.spool
    does this).  `runtime` holds what the log layer runs on.
    """

    data: Path
    settings: StoreConfig
    area: SharedArea
    semaphore: Semaphore
    row: ProcessRow
    loop: Loop
    report: Callable[[str], None]
    hostname: str = "localhost"
    options: Mapping[str, Any] = field(default_factory=dict)
    address_of: Callable[[int], str | None] = lambda mailbox: None
    budget: Budget = field(default_factory=Budget)
    runtime: Runtime = field(default_factory=Runtime)


class Recipient(NamedTuple):
    """A mailbox, and the address as given in RCPT."""

    mailbox: int
    address: str


class Envelope(NamedTuple):
    """What is known about a message besides its body.

    `trace` is put in front of the body; `octets` is the size of the body with dots unstuffed and
    without the final dot line; `stuffed` is the number of stuffed dots.  A message imported from
    another server has the unique id that its client knows, and the time at which that server
    accepted it, in microseconds since the epoch.
    """

    id: bytes
    client: str
    helo: str
    sender: str
    recipients: tuple[Recipient, ...]
    trace: bytes
    octets: int
    stuffed: int
    uid: str = ""
    time_us: int = 0


class Incoming(ABC):
    """One incoming message.  Either `commit` or `abort` ends it."""

    @abstractmethod
    def write(self, chunk: bytes) -> None:
        """Take octets of the body in wire format, the final dot line included at the end.

        Raises RefusedError; then `abort` is still called.
        """

    @abstractmethod
    def commit(self, envelope: Envelope, done: Done) -> None:
        """Store the message; `done` is called later, on the loop."""

    @abstractmethod
    def abort(self) -> None:
        """Discard the message."""

    @property
    def in_memory(self) -> bool:
        """Whether `chunks` never waits for a disk."""
        return True

    def chunks(self) -> Iterator[Buffer] | None:
        """All octets written so far, from the start at each call, for filters.

        Called off the loop unless `in_memory`.  None: the layer cannot do this, and metad keeps a
        copy.
        """
        return None


class Maildrop(ABC):
    """A mailbox open in one session: a frozen listing, messages numbered from 1."""

    @property
    @abstractmethod
    def octets(self) -> int:
        """The sum of all sizes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def is_listed(self) -> bool:
        """Whether `size`, `uid`, `fetch` and `delete` can be used; `octets` and len() always."""
        return True

    def list_messages(self) -> Iterator[None]:
        """Make the listing, in steps of a few milliseconds; then `is_listed` is true.  Raises
        RefusedError.

        Called when the client requests a message or a listing; a client that only polls never does.
        """
        return iter(())

    @abstractmethod
    def size(self, number: int, /) -> int:
        """Octets of a message as RFC 1939 section 11 counts."""

    @abstractmethod
    def uid(self, number: int, /) -> str:
        """The unique-id listing of a message."""

    @abstractmethod
    def fetch(self, number: int, most: int, /) -> Sequence[Buffer] | Iterator[Buffer]:
        """A message as RETR sends it, with its final dot line.

        A sequence is the whole message, in memory.  An iterator yields its pieces, if the message
        is larger than `most` octets or not in memory; it is used off the loop and may block.
        Raises RefusedError or NotAtHandError, here or before the first piece.
        """

    def bring(self, number: int, done: Done) -> None:
        """Load the message for which `fetch` raised NotAtHandError; `done` is called later."""
        raise NotImplementedError

    @abstractmethod
    def delete(self, numbers: Sequence[int], done: Done) -> None:
        """Remove messages permanently; `done` is called later, once that is durable."""

    @abstractmethod
    def close(self) -> None:
        """Release the mailbox for the next session.  Idempotent."""


class Layer(ABC):
    """A back end, as one worker uses it."""

    name: str

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        """The table [layer], checked and with its defaults.  Raises ValueError.

        Called by any command, before a hub exists; must have no side effects.
        """
        if options:
            raise ValueError(f"{cls.name} knows no setting {next(iter(options))}")
        return {}

    @classmethod
    def directories(cls, options: Mapping[str, Any]) -> list[Path]:
        """The files it needs besides the data directory: a confined worker can access nothing
        else."""
        return []

    @abstractmethod
    def start(self, context: LayerContext) -> None:
        """Open what is needed.  After the fork; may block.  Raises MetadError, OSError."""

    @abstractmethod
    def stop(self) -> None:
        """Close everything, when no session is left.  May block."""

    @abstractmethod
    def next_id(self) -> bytes:
        """A new message id, 16 octets, greater than those before."""

    def next_import_id(self) -> bytes:
        """A new id for a message that brings its own unique id."""
        return self.next_id()

    def usage(self, mailbox: int) -> Usage:
        """The usage of a mailbox, for its quota.  Called only for users with a quota."""
        return Usage()

    def check_space(self) -> None:  # noqa: B027 - a layer that always has space need not say so
        """At MAIL: raise RefusedError if no new message can be accepted now.  Called very often."""

    def check_mailbox(self, mailbox: int) -> None:  # noqa: B027
        """At RCPT: raise RefusedError if this mailbox accepts no message now."""

    def transaction_started(self) -> None:  # noqa: B027
        """A client began a transaction (MAIL was accepted): a message may arrive soon."""

    @abstractmethod
    def begin(self) -> Incoming:
        """A message begins to arrive.  Raises RefusedError."""

    def begin_for(self, mailboxes: Sequence[int]) -> Incoming:
        """The same, for a layer that wants to know the mailboxes of the recipients.  A filter may
        still replace them."""
        return self.begin()

    def deliver(self, envelope: Envelope, body: bytes, done: Done) -> None:
        """Store a message that arrived whole, as `begin`, `write` and `commit` would.

        Most messages arrive like this; a layer that can store them in one step overrides this
        method.
        """
        incoming = self.begin()
        try:
            incoming.write(body)
            incoming.commit(envelope, done)
        except Exception:
            with suppress(Exception):  # the first failure is the one to report
                incoming.abort()
            raise

    def is_behind(self, mailbox: int, asked_ns: int) -> bool:
        """Whether some mail acknowledged before `asked_ns` (monotonic) may not be listed yet.

        Called before `open_mailbox`, which waits a few milliseconds for False.
        """
        return False

    @abstractmethod
    def open_mailbox(self, mailbox: int) -> Maildrop:
        """Open a mailbox for one session.  Raises MailboxInUseError, RefusedError."""

    # Whether `open_later` is called in place of `is_behind` and `open_mailbox`.
    opens_later = False

    def open_later(self, mailbox: int, done: Opened) -> None:
        """Open a mailbox after asking other nodes; `done` is called once, always later.

        All mail acknowledged before this call is listed.  `done` receives the mailbox, or the
        exception that `open_mailbox` would raise.
        """
        raise NotImplementedError

    def tick(self) -> None:  # noqa: B027 - most layers need no tick
        """Called about once a second."""
