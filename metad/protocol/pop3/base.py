"""The base of every part of the POP3 machine: its state, its answers, its end.

Rules of this file:

* All of a session's state is declared here, with what it means.
* The next state comes from the row of the current command; only the end of the session has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from metad.protocol import scram
from metad.protocol.pop3 import languages
from metad.protocol.pop3.events import Event, Personal
from metad.protocol.pop3.lines import LineReader
from metad.protocol.pop3.marks import Maildrop
from metad.protocol.pop3.settings import Pop3Settings
from metad.protocol.pop3.table import State
from metad.protocol.pop3.top import TopCutter


class Row(NamedTuple):
    """A row of the table whose `proceed` is a method: `Rule` explains the items."""

    check: Callable[[bytes], Any]
    proceed: Callable[[Any, Any], Event | None]
    done: State
    refused: State
    challenge: State


class Pop3Base:
    """State and answers."""

    __slots__ = (
        "_cutter",
        "_due",
        "_eof",
        "_errors",
        "_language",
        "_lines",
        "_listing",
        "_maildrop",
        "_personal",
        "_queued",
        "_responder",
        "_row",
        "_scram",
        "_settings",
        "_state",
        "_streaming",
        "_user",
        "_utf8",
        "_waiting",
        "abrupt",
        "closed",
        "commands",
        "output",
        "tls",
    )
    _maildrop: Maildrop
    _row: Row  # of the current command or response
    _scram: scram.Exchange  # from ScramUser on
    _responder: Callable[[bytes], Event | None]  # in state CHALLENGE: takes the next line

    def __init__(self, settings: Pop3Settings, *, tls: bool = False) -> None:
        self.closed = False
        self.abrupt = False
        self.commands = 0
        self.tls = tls
        self._settings = settings
        self._state = State.AUTHORIZATION
        self._due: Event | None = None  # the event waiting for its answer
        self._streaming = False  # a multi-line answer is incomplete
        self._cutter: TopCutter | None = None
        self._listing: Iterator[bytes] | None = None  # the rest of an answer to LIST or UIDL
        # A command that waits for the listing: its action and argument.
        self._waiting: tuple[Callable[[Any, Any], Event | None], Any] | None = None
        self._user: str | None = None  # from USER, until a login attempt
        self._utf8 = False
        self._language = languages.ENGLISH
        self._personal: Personal | None = None  # once logged in
        self._errors = 0
        self._lines = LineReader()
        self._eof = False
        self.output: list[bytes] = []
        self._queued = 0  # octets in it

    def fail(self, text: str) -> None:
        """End the session with `-ERR text` (deadline, shutdown).  Deletes nothing.

        Inside a multi-line answer no reply is possible: the client sees no final dot line.
        """
        if self.closed:
            return
        if not self._streaming:
            self._refuse(text)
        self._close()
        self.abrupt = True

    @property
    def stage(self) -> str:
        """The name of the state, in lower case."""
        return self._state.name.lower()

    def _answer(self, *kinds: type) -> bool:
        """Whether to answer: not if the session was closed meanwhile.  An answer without a pending
        event raises."""
        if self._due.__class__ in kinds:
            self._due = None
            return True
        if not self.closed:
            raise RuntimeError(f"no such answer is due, but {self._due}")
        return False

    def _say(self, octets: bytes) -> None:
        self.output.append(octets)
        self._queued += len(octets)

    def _ok(self, text: str) -> None:
        self._say(b"+OK %b\r\n" % self._language.say(text).encode())

    def _refuse(self, text: str) -> None:
        self._say(b"-ERR %b\r\n" % self._language.say(text).encode())

    def _summary(self) -> None:
        self._say(self._language.summary % self._maildrop.totals())

    def _error(self, text: str) -> None:
        """Refuse, and count it; a SASL exchange is over."""
        self._errors += 1
        if self._errors >= self._settings.errors:
            self.fail("too many errors")
        else:
            self._refuse(text)

    def _close(self) -> None:
        self.closed = True
        self._streaming = False
        self._due = self._cutter = self._listing = self._waiting = None
        self._state = State.CLOSED
        self._lines.clear()
