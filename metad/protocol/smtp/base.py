"""The base of every part of the SMTP machine: its state, its replies, its end.

Rules of this file:

* All of a session's state is declared here, with what it means.
* Replies are queued only here; so are the limits on errors and idle commands, and the closing of a
  session.
* The next state comes from a row of the table; only the end of the session does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from metad import limits
from metad.errors import Reply
from metad.protocol.lines import LineBuffer, LooseLineBuffer
from metad.protocol.smtp import table as states
from metad.protocol.smtp.body import ChunkedBody, DataBody
from metad.protocol.smtp.events import Aborted, Event, RcptTo
from metad.protocol.smtp.settings import SmtpSettings
from metad.protocol.smtp.table import CLOSED, START, State

# Indexed by whether the session accepted, then by the state in which it was asked.
ANSWERED: Final = (states.answered(accepted=False), states.answered(accepted=True))


class Row(NamedTuple):
    """A row of the table whose action is a method: `Rule` explains the items."""

    argument: bool | None
    action: Callable[[Any, bytes, Row], Event | None]
    reply: Reply
    done: State
    refused: State


Table = Mapping[State, Mapping[bytes, Row]]


class SmtpBase:
    """State and replies."""

    __slots__ = (
        "_body",
        "_chunked",
        "_commands",
        "_delay",
        "_due",
        "_eof",
        "_errors",
        "_excess",
        "_failing",
        "_idle",
        "_last",
        "_later",
        "_left",
        "_line",
        "_lines",
        "_longest",
        "_loose",
        "_next",
        "_reading",
        "_refusal",
        "_refused",
        "_settings",
        "_state",
        "_table",
        "abrupt",
        "accepted",
        "closed",
        "cut_off",
        "extended",
        "farewell",
        "full",
        "greetings",
        "helo",
        "output",
        "refusals",
        "tls",
        "transactions",
        "utf8",
    )
    _chunked: ChunkedBody  # in state CHUNKS
    _loose: bool  # in state DATA: the final dot line may end in LF alone

    def __init__(self, settings: SmtpSettings, table: Table, *, tls: bool) -> None:
        self.closed = False
        self.abrupt = False
        self.helo = b""
        self.greetings = 0
        self.extended = False
        self.accepted = 0
        self.transactions = 0
        self.tls = tls
        self._settings = settings
        self._table = table
        self._state = START
        self.utf8 = False
        self.full = False
        self._errors = 0
        self._commands = 0  # command lines read so far
        self._line = b""  # the last one that did not take the fast path
        # For the log: commands refused here, replies, and whether a transaction was open.
        self.refusals: list[tuple[bytes, Reply, bool]] = []
        self.farewell: Reply | None = None  # the reply that ended the session
        self.cut_off = False  # and it interrupted a transaction
        self._idle = 0  # commands since the last stored message
        self._refused = 0  # recipients refused since the last stored message
        self._excess = 0  # recipients beyond the limit since the last stored message
        self._delay = 0.0  # seconds for which the session must pause, until it takes them
        self._due: Event | None = None  # the event waiting for its answer
        self._next: Event | None = None  # the event that comes next, whatever happens
        self._failing: Reply | None = None  # the session ends with this after the pending answer
        kind = LooseLineBuffer if settings.bare_line_ends == "repair" else LineBuffer
        self._lines = kind(settings.command_line - 2)
        self._longest = settings.command_line  # octets of a command line
        self._later = bytearray()  # octets received while an answer was pending
        self.output: list[bytes] = []
        self._eof = False
        # The reader of a message or a chunk; None: lines are commands.
        self._reading: Callable[[Any], Event | None] | None = None
        self._body: DataBody | None = None  # of a message by DATA that arrives in pieces
        self._left = 0  # octets of the chunk that have not arrived yet
        self._last = False  # the message ends with this chunk
        self._refusal = states.OK  # the reply to a chunk that is skipped

    def _say(self, reply: Reply) -> None:
        self.output.append(reply.wire)

    def _refuse(self, reply: Reply) -> None:
        """Refuse a command.  Codes for a client's error count as errors, others as idle
        commands."""
        self.output.append(reply.wire)
        self.refusals.append((self._line, reply, self._state.transaction))
        if not 500 <= reply.code <= 504:
            self._idles()
            return
        self._errors += 1
        if self._errors >= self._settings.errors:
            self._end(states.TOO_MANY_ERRORS)

    def _idles(self) -> bool:
        """Count a command that leads to no message.  True: one too many, and the session has
        ended."""
        self._idle += 1
        if self._idle > self._settings.idle_commands:
            self._end(states.TOO_MANY_IDLE)
        return self.closed

    def _not_accepted(self, due: Event | None) -> None:
        """Count a refusal, which leads to no message.  An LMTP client asks for whatever recipients
        it has."""
        if due.__class__ is RcptTo:
            if self._settings.lmtp:
                return
            self._refused += 1
            above = self._refused - limits.HARVEST_FREE
            if above > 0:
                delay = limits.HARVEST_DELAY * 2 ** ((above - 1) // 10)
                self._delay = min(delay, limits.MAX_HARVEST_DELAY)
        self._idles()

    def take_delay(self) -> float:
        """Seconds for which the session pauses because the client seems to guess addresses; nearly
        always 0."""
        delay, self._delay = self._delay, 0.0
        return delay

    @property
    def stage(self) -> str:
        """The name of the state, in lower case."""
        return self._state.name.lower()

    def _forget(self, state: State) -> None:
        """The transaction is over; `state` follows."""
        self.accepted = 0
        self.utf8 = False
        self._body = None
        self._reading = None
        self._state = state

    def _end(self, reply: Reply) -> None:
        if not self.closed:
            self._say(reply)
            self.farewell = reply
            self._close()
            self.abrupt = reply is not states.BYE

    def _close(self) -> None:
        """No more input is read and no more replies are sent; a message that has begun is
        aborted."""
        self.closed = True
        self.cut_off = self._state.transaction
        if self._state.message:
            self._next = Aborted(None)
        self._due = None
        self._forget(CLOSED)
