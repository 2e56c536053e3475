"""The interface of a back end ("layer"), the paper's section 8.  It is public: docs/layers.md.

A worker has one layer.  Everything is called on the worker's loop unless it says otherwise, and
must not block there.

    check_space -> transaction_started -> check_mailbox ...
        -> begin, write ..., commit (done called later) or abort            mail in
    open_mailbox -> Maildrop: fetch ..., delete, close                      mail out

Rules of this file:

* `done(None)` promises what a 250 promises: durable, as the layer understands it.  It is called
  once, on the loop, and always later: never within the call that it was given to.
* An error given to `done`, or raised, is a RefusedError: it carries the reply.  Anything else that
  is raised costs that message a 451 and a line in the log.
* Later additions have defaults: a layer for an older metad keeps working.
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
from metad.system.osio import Buffer
from metad.system.shared_memory import ProcessRow, SharedArea

Done = Callable[[RefusedError | None], None]
Opened = Callable[["Maildrop | Exception"], None]


class NotAtHandError(Exception):
    """A message must be brought first: `Maildrop.bring`."""


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What the hub gives to the layer of a worker, after the fork.

    `report` takes a line for the log, from any thread.  `options` is what `check_options` made of
    the table [layer].  `address_of` gives the address of a mailbox, None if it is gone.  `budget`
    is for what a layer holds in memory of messages on their way in (metad.layers.spool keeps it).
    `runtime` is what the log layer runs on.
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


class Usage(NamedTuple):
    """What a mailbox holds, as POP3 counts octets."""

    octets: int = 0
    messages: int = 0


class Recipient(NamedTuple):
    """A mailbox, and the address as it was given in RCPT."""

    mailbox: int
    address: str


class Envelope(NamedTuple):
    """What comes with a message.

    `trace` is put in front of the body; `octets` counts the body with the dots unstuffed and
    without the final dot line, `stuffed` the dots that it carries doubled.  A message moved here
    from another server has the unique id that its client knows, and the time in microseconds
    since the epoch at which that server took it.
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
    """One message on its way in.  Either `commit` or `abort` ends it."""

    @abstractmethod
    def write(self, chunk: bytes) -> None:
        """Take octets of the body in wire format, the final dot line included at the end.

        Raises RefusedError; then `abort` is still called.
        """

    @abstractmethod
    def commit(self, envelope: Envelope, done: Done) -> None:
        """Keep the message; `done` is called on the loop, later."""

    @abstractmethod
    def abort(self) -> None:
        """Forget the message."""

    @property
    def in_memory(self) -> bool:
        """Whether `chunks` never waits for a disk."""
        return True

    def chunks(self) -> Iterator[Buffer] | None:
        """All octets written so far, again from the start at each call; filters read them.

        Called off the loop unless `in_memory`.  None: it cannot; then metad keeps a copy.
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
        """What makes `is_listed` true, in steps of a few milliseconds.  Raises RefusedError.

        Called when a message or a listing is asked for; a client that only polls never does.
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

        A sequence: all of it, in memory.  An iterator: its pieces, if the message has more than
        `most` octets or must be waited for; the iterator is used off the loop and may block.
        Raises RefusedError, here or before the first piece, and NotAtHandError.
        """

    def bring(self, number: int, done: Done) -> None:
        """Make ready what `fetch` raised NotAtHandError for; `done` is called later."""
        raise NotImplementedError

    @abstractmethod
    def delete(self, numbers: Sequence[int], done: Done) -> None:
        """Remove messages permanently; `done` is called later, once that is durable."""

    @abstractmethod
    def close(self) -> None:
        """Release the mailbox for the next session.  Idempotent."""


class Layer(ABC):
    """A back end as one worker has it."""

    name: str

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        """The table [layer], checked and with its defaults.  Raises ValueError.

        Called before there is a hub, by any command; must touch nothing.
        """
        if options:
            raise ValueError(f"{cls.name} knows no setting {next(iter(options))}")
        return {}

    @classmethod
    def directories(cls, options: Mapping[str, Any]) -> list[Path]:
        """What it needs besides the data directory: a confined worker may use nothing else."""
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
        """What a mailbox holds, for its quota.  Called for users who have one."""
        return Usage()

    def check_space(self) -> None:  # noqa: B027 - a layer that always has space need not say so
        """At MAIL: raise RefusedError if no new message is taken now.  Called very often."""

    def check_mailbox(self, mailbox: int) -> None:  # noqa: B027
        """At RCPT: raise RefusedError if this mailbox accepts no message now."""

    def transaction_started(self) -> None:  # noqa: B027
        """A client began a message (MAIL was accepted): one may arrive soon."""

    @abstractmethod
    def begin(self) -> Incoming:
        """A message begins to arrive.  Raises RefusedError."""

    def deliver(self, envelope: Envelope, body: bytes, done: Done) -> None:
        """Store a message that arrived whole, as `begin`, `write` and `commit` would.

        Most messages arrive like this; a layer that can store them in one step overrides it.
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
        """Whether mail that was acknowledged before `asked_ns` (monotonic) may not be listed yet.

        Asked before `open_mailbox`, which waits a few milliseconds for an answer of False.
        """
        return False

    @abstractmethod
    def open_mailbox(self, mailbox: int) -> Maildrop:
        """Open a mailbox for one session.  Raises MailboxInUseError, RefusedError."""

    # Whether `open_later` is called in place of `is_behind` and `open_mailbox`.
    opens_later = False

    def open_later(self, mailbox: int, done: Opened) -> None:
        """Open a mailbox after others have been asked; `done` is called once, always later.

        All that was acknowledged before this call is listed.  `done` gets the mailbox, or what
        `open_mailbox` would raise.
        """
        raise NotImplementedError

    def tick(self) -> None:  # noqa: B027 - most layers have nothing to do
        """Called about once a second."""
