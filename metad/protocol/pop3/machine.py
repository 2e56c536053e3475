"""POP3, sans-IO: octets in, events and octets out (RFC 1939, 2449, 2595, 3206, 5034, 6856).

Rules of this file:

* No sockets, no clock, no store.  `receive` takes the client's octets, `next_event` gives what the
  session must do, the session answers with the method that the event names, and writes
  `take_output`.
* One event waits for its answer at a time; pipelined commands after it wait in order.
* `next_event` returns None when more input is needed, when an answer is pending, when the session
  is over, or when the queued output is `full`: take it, let the socket drain, call again.
* No input from a client raises.  An answer without a pending event is a bug and raises.
* However the input is cut, the same events and octets result; O(n) in total.

What each command does in each state, and which state follows, is data: table.py.

The drop is frozen at login; messages are numbered from 1.  Deletion marks are kept here and leave
only in Quit: a dropped connection deletes nothing (RFC 1939 section 6).

Octets above 127 in messages pass unchanged, with UTF8 and without it: RFC 6856 section 2.1 demands
an error for a client without UTF8, and an old client would stop at its first such message.
"""

from __future__ import annotations

from typing import Final

from metad.limits import POP3_COMMAND_LINE as COMMAND_LIMIT
from metad.limits import SASL_RESPONSE as RESPONSE_LIMIT
from metad.protocol.pop3 import languages
from metad.protocol.pop3.base import Row
from metad.protocol.pop3.events import (
    Drop,
    Event,
    ListMessages,
    Login,
    Personal,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.protocol.pop3.lines import EndlessLineError, LineError
from metad.protocol.pop3.settings import Pop3Settings, capabilities
from metad.protocol.pop3.table import (
    COMMANDS,
    END,
    LISTED,
    OUTPUT_LIMIT,
    RESPONSE,
    VERBS,
    ArgumentError,
    Rule,
    State,
)
from metad.protocol.pop3.transaction import Transaction

__all__ = [
    "Drop",
    "Event",
    "ListMessages",
    "Login",
    "Personal",
    "Pop3",
    "Pop3Settings",
    "Quit",
    "Retrieve",
    "ScramLogin",
    "ScramUser",
    "StartTls",
    "Top",
]

AFTER_STLS: Final = "data before the TLS handshake"


class Pop3(Transaction):
    """One session.  `closed`: write the output, then close the connection; `abrupt`: we end it
    while the client may still be sending, so read on a little, or a reset destroys our last answer.

    `commands`: lines answered so far, a measure of progress; `output`: queued octets; `tls`: TLS is
    active.
    """

    __slots__ = ()

    # -- octets in, octets out ------------------------------------------------------------

    def start(self) -> None:
        """Queue the greeting."""
        self._say(self._settings.greeting)

    def receive(self, data: bytes) -> None:
        """The next octets from the client; ignored when closed."""
        if self._due.__class__ is StartTls:
            # RFC 2595 section 4: input received in the clear must have no effect under TLS.
            self._due = None
            self.fail(AFTER_STLS)
        elif not self.closed:
            self._lines.feed(data)

    def eof(self) -> None:
        """The client has closed its side.  Complete commands sent before are still answered."""
        self._eof = True

    def take_output(self) -> list[bytes]:
        """All octets queued so far, to be written at once."""
        output = self.output
        self.output = []
        self._queued = 0
        return output

    @property
    def authorized(self) -> bool:
        """Whether a login succeeded (the deadlines differ)."""
        return self._personal is not None

    @property
    def buffered(self) -> int:
        """Octets received and not yet processed; stop reading when there are many."""
        return self._lines.buffered

    @property
    def full(self) -> bool:
        """So much output is queued that the next command waits until the output is taken."""
        return self._queued >= OUTPUT_LIMIT

    # -- events ---------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        lines = self._lines
        while not (self._due or self._streaming or self.closed or self._queued >= OUTPUT_LIMIT):
            if self._listing is not None:
                self._list_on(self._listing)
                continue
            if self._waiting is not None:
                (proceed, value), self._waiting = self._waiting, None
                event = proceed(self, value)
                if event is not None:
                    self._due = event
                    return event
                continue
            if lines.is_empty and not self._eof:
                break
            line = self._next_line()
            if line is None:
                break
            self.commands += 1
            event = self._command(line) if self._state is not State.CHALLENGE else self._sasl(line)
            if event is not None:
                self._due = event
                return event
        return None

    def _next_line(self) -> bytes | None:
        """The next good line without its CR LF; refuses the bad ones before it."""
        while not self.closed:
            limit = RESPONSE_LIMIT if self._state is State.CHALLENGE else COMMAND_LIMIT
            try:
                line = self._lines.next_line(limit)
            except EndlessLineError as error:
                self.fail(str(error))
            except LineError as error:
                if self._state is State.CHALLENGE:
                    self._state = _RESPONSE.refused
                self._error(str(error))
            else:
                if line is None and self._eof:
                    self._close()
                return line
        return None

    def _command(self, line: bytes) -> Event | None:
        verb, _, argument = line.partition(b" ")
        rows = _ROWS[self._state]
        row = rows.get(verb) or rows.get(verb.upper())
        if row is None:
            known = verb.upper() in VERBS
            self._error("command not valid in this state" if known else "unknown command")
            return None
        if self.commands > self._settings.login_commands and self._personal is None:
            self.fail("too many commands before login")
            return None
        self._row = row
        check, proceed, _, _, _ = row
        try:
            value = check(argument)
        except ArgumentError as error:
            self._error(str(error))
            return None
        if verb.upper() in LISTED and not self._maildrop.drop.is_listed:
            self._waiting = (proceed, value)
            return ListMessages(verb)
        return proceed(self, value)

    def _sasl(self, line: bytes) -> Event | None:
        self._row = _RESPONSE
        return _RESPONSE.proceed(self, _RESPONSE.check(line))

    # -- AUTHORIZATION --------------------------------------------------------------------

    def _stls(self, _: None) -> StartTls | None:
        if self.tls or not self._settings.stls:
            self._refuse("TLS is active already" if self.tls else "TLS is not offered here")
        elif self._utf8:  # RFC 6856 section 2.1
            self._refuse("STLS comes before UTF8")
        elif self.buffered:
            self.fail(AFTER_STLS)
        else:
            self._ok("begin TLS negotiation")
            return StartTls()
        return None

    def _utf8_command(self, _: None) -> None:
        self._utf8 = True
        self._ok("UTF-8 enabled")

    def _lang(self, tag: str | None) -> None:
        if tag is None:
            self._ok("language listing follows")
            self._say(languages.listing())
            return
        language = languages.find(tag)
        if language is None:
            self._refuse("unknown language")
        else:
            self._language = language
            self._say(f"+OK {language.tag} {language.changed}\r\n".encode())

    def _leave(self, _: None) -> None:
        self._ok("metad signing off")
        self._close()

    def _capa(self, _: None) -> None:
        self._ok("capability list follows")
        lines = [*capabilities(self._settings, self._personal), ".", ""]
        self._say("\r\n".join(lines).encode())

    def tls_started(self, settings: Pop3Settings) -> None:
        """Answers StartTls: discard all earlier input (RFC 2595 section 4).

        `settings`: those under TLS.
        """
        if self._answer(StartTls):
            self._state = self._row.done
            self.tls = True
            self._settings = settings
            self._user = None
            self._language = languages.ENGLISH


def _bound(state: State, rule: Rule) -> Row:
    return Row(
        rule.check,
        getattr(Pop3, rule.proceed),
        rule.done or state,
        rule.refused or state,
        rule.challenge or state,
    )


_ROWS: Final[dict[State, dict[bytes, Row]]] = {
    state: {verb: _bound(state, rule) for verb, rule in rules.items() if verb is not END}
    for state, rules in COMMANDS.items()
}
_RESPONSE: Final = _ROWS[State.CHALLENGE][RESPONSE]
