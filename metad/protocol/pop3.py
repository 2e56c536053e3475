"""POP3, sans-IO: octets in, events and octets out (RFC 1939, 2449, 3206, 5034).

Rules of this file:

* No sockets, no clock, no store.  `receive` takes what came, `next_event` says what the session
  must do, the session answers with the method that the event names, `take_output` is written.
* One event waits for its answer at a time; pipelined commands behind it wait in order.
* `next_event` is None when more input is needed, when an answer is due, when all is over, or
  when the queued output is `full`: take it, let the socket drain, ask again.
* Nothing a client sends raises.  An answer that no event asked for is a bug and raises.
* However the input is cut, the same events and octets come out; O(n) in all.

The drop is frozen at login; messages are numbered from 1.  Deletion marks live here and only
leave in Quit: a connection that drops, in whatever way, deletes nothing (section 6).

Lines: only CR LF ends a good one; bare LF, bare CR and NUL are refused (see pop3_lines), so
none of them can be in a user name or password.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Any, Final

from . import sasl
from .pop3_events import Drop, Event, Login, Quit, Retrieve, Top
from .pop3_lines import EndlessLineError, LineError, LineReader
from .pop3_maildrop import Maildrop
from .pop3_states import (
    COMMAND_LIMIT,
    COMMANDS,
    OUTPUT_LIMIT,
    RESPONSE_LIMIT,
    VERBS,
    ArgumentError,
    Pop3Settings,
    State,
    capabilities,
)
from .pop3_top import TopCutter

__all__ = ["Drop", "Event", "Login", "Pop3", "Pop3Settings", "Quit", "Retrieve", "Top"]

# RFC 3206 section 6: every refusal for wrong credentials carries [AUTH], and none says which.
AUTH_FAILED: Final = "[AUTH] authentication failed"
NO_PLAINTEXT: Final = "plaintext authentication is refused on this connection"
NOT_REMOVED: Final = "[SYS/TEMP] some deleted messages not removed"


class Pop3:
    """One session.  `closed`: write the output, then close the connection."""

    __slots__ = (
        "_cutter",
        "_due",
        "_eof",
        "_errors",
        "_lines",
        "_maildrop",
        "_output",
        "_queued",
        "_settings",
        "_state",
        "_streaming",
        "_user",
        "closed",
    )
    _maildrop: Maildrop

    def __init__(self, settings: Pop3Settings) -> None:
        self.closed = False
        self._settings = settings
        self._state = State.AUTHORIZATION
        self._due: Event | None = None  # the event that waits for its answer
        self._streaming = False  # a multi-line answer has begun and is not complete
        self._cutter: TopCutter | None = None
        self._user: str | None = None  # from USER, until a login is tried
        self._errors = 0
        self._lines = LineReader()
        self._eof = False
        self._output: list[bytes] = []
        self._queued = 0  # octets in _output

    # -- octets in, octets out ------------------------------------------------------------

    def start(self) -> None:
        self._say(self._settings.greeting)

    def receive(self, data: bytes) -> None:
        """The next octets from the client; ignored when closed."""
        if not self.closed:
            self._lines.feed(data)

    def eof(self) -> None:
        """The client sends no more.  Whole commands that it sent before are still answered."""
        self._eof = True

    def take_output(self) -> list[bytes]:
        """All octets queued so far, to be written at once."""
        output = self._output
        self._output = []
        self._queued = 0
        return output

    def fail(self, text: str) -> None:
        """End the session with `-ERR text` (deadline, shutdown).  Deletes nothing.

        Within a multi-line answer nothing can be said: the client sees it end without its dot.
        """
        if self.closed:
            return
        if not self._streaming:
            self._say(b"-ERR %b\r\n" % text.encode())
        self._close()

    @property
    def authorized(self) -> bool:
        """Whether a login succeeded (the deadlines differ)."""
        return self._state in {State.TRANSACTION, State.UPDATE}

    @property
    def answer_due(self) -> bool:
        return self._due is not None or self._streaming

    @property
    def buffered(self) -> int:
        """Octets received and not yet understood; stop reading when they are many."""
        return self._lines.buffered

    @property
    def full(self) -> bool:
        """So much output is queued that the next command waits until it was taken."""
        return self._queued >= OUTPUT_LIMIT

    # -- events ---------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        while not (self._due or self._streaming or self.closed or self.full):
            line = self._next_line()
            if line is None:
                break
            event = self._response(line) if self._state is State.CHALLENGE else self._command(line)
            if event is not None:
                self._due = event
                return event
        return None

    def _next_line(self) -> bytes | None:
        """The next good line without its CR LF; refuses the bad ones on the way."""
        while not self.closed:
            limit = RESPONSE_LIMIT if self._state is State.CHALLENGE else COMMAND_LIMIT
            try:
                line = self._lines.next_line(limit)
            except EndlessLineError as error:
                self.fail(str(error))
            except LineError as error:
                self._error(str(error))
            else:
                if line is None and self._eof:
                    self._close()
                return line
        return None

    def _command(self, line: bytes) -> Event | None:
        verb, _, argument = line.partition(b" ")
        rules = _PROCEED[self._state]
        rule = rules.get(verb) or rules.get(verb.upper())
        if rule is None:
            known = verb.upper() in VERBS
            self._error("command not valid in this state" if known else "unknown command")
            return None
        check, proceed = rule
        try:
            value = check(argument)
        except ArgumentError as error:
            self._error(str(error))
            return None
        event: Event | None = proceed(self, value)
        return event

    # -- AUTHORIZATION --------------------------------------------------------------------

    def _user_command(self, name: str) -> None:
        if self._settings.plaintext:
            self._user = name
            self._ok("send the password")
        else:
            self._refuse(NO_PLAINTEXT)

    def _pass_command(self, password: bytes) -> Login | None:
        user = self._user
        if user is None:
            self._refuse("USER comes first" if self._settings.plaintext else NO_PLAINTEXT)
            return None
        self._user = None
        return Login(user, password)

    def _auth(self, argument: tuple[bytes, bytes | None]) -> Login | None:
        mechanism, initial = argument
        if not mechanism:  # no RFC has it, many clients ask so (as Dovecot answers)
            self._say(b"+OK\r\nPLAIN\r\n.\r\n" if self._settings.plaintext else b"+OK\r\n.\r\n")
        elif mechanism != b"PLAIN":
            self._refuse("unknown authentication mechanism")
        elif not self._settings.plaintext:
            self._refuse(NO_PLAINTEXT)
        elif initial is None:
            self._state = State.CHALLENGE
            self._say(b"+ \r\n")
        else:
            return self._plain(initial, sasl.decode_initial)
        return None

    def _response(self, line: bytes) -> Login | None:
        self._state = State.AUTHORIZATION
        return self._plain(line, sasl.decode)

    def _plain(self, text: bytes, decode: Callable[[bytes], bytes]) -> Login | None:
        self._user = None
        try:
            return Login(*sasl.plain(decode(text)))
        except sasl.SaslError as error:
            self._error(str(error))
            return None

    def _leave(self, _: None) -> None:
        self._ok("metad signing off")
        self._close()

    def _capa(self, _: None) -> None:
        self._say(capabilities(self._settings, self._state))

    # -- TRANSACTION ----------------------------------------------------------------------

    def _stat(self, _: None) -> None:
        self._say(b"+OK %d %d\r\n" % self._maildrop.totals())

    def _list(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(maildrop.sizes())
        elif self._exists(number):
            self._say(b"+OK %d %d\r\n" % (number, maildrop.drop.size(number)))

    def _uidl(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(maildrop.uids())
        elif self._exists(number):
            self._ok(f"{number} {maildrop.drop.uid(number)}")

    def _retr(self, number: int) -> Retrieve | None:
        return Retrieve(number) if self._exists(number) else None

    def _top(self, argument: tuple[int, int]) -> Top | None:
        number, lines = argument
        if not self._exists(number):
            return None
        self._cutter = TopCutter(lines)
        return Top(number, lines)

    def _dele(self, number: int) -> None:
        if self._exists(number):
            self._maildrop.mark(number)
            self._ok("message deleted")

    def _rset(self, _: None) -> None:
        self._maildrop.reset()
        self._say(self._maildrop.summary())

    def _exists(self, number: int) -> bool:
        """Whether there is such a message; if not, says so."""
        fault = self._maildrop.fault(number)
        if fault is not None:
            self._refuse(fault)
        return fault is None

    def _noop(self, _: None) -> None:
        self._say(b"+OK\r\n")

    def _quit(self, _: None) -> Quit:
        self._state = State.UPDATE
        return Quit(self._maildrop.marked())

    # -- answers to events: late ones, after the session was closed, go nowhere ---------------

    def login_ok(self, drop: Drop) -> None:
        """Answers Login: the maildrop is this session's, and this is what is in it."""
        if self._answer(Login):
            self._state = State.TRANSACTION
            self._maildrop = Maildrop(drop)
            self._say(self._maildrop.summary())

    def login_failed(self, text: str = AUTH_FAILED) -> None:
        """Answers Login; the client may try again.  `text` begins with its response code."""
        if self._answer(Login):
            self._refuse(text)

    def message(self, chunks: Sequence[bytes]) -> None:
        """Answers Retrieve with the whole message, as on the wire with its final dot line."""
        due = self._due
        if self._answer(Retrieve) and isinstance(due, Retrieve):
            self._say(b"+OK %d octets\r\n" % self._maildrop.drop.size(due.number))
            self._output += chunks
            self._queued += sum(map(len, chunks))

    def message_begin(self) -> None:
        """Answers Retrieve in pieces: `message_chunk` for each, then `message_end`."""
        self.message(())
        self._streaming = not self.closed

    def message_chunk(self, chunk: bytes) -> None:
        if self._is_streaming():
            self._output.append(chunk)
            self._queued += len(chunk)

    def message_end(self) -> None:
        if self._is_streaming():
            self._streaming = False

    def top(self, chunks: Iterable[bytes]) -> None:
        """Answers Top with the message's next wire octets; call it until `top_done`."""
        if not self._streaming and self._answer(Top):
            self._streaming = True
            self._say(b"+OK\r\n")
        if not self._is_streaming():
            return
        cutter = self._cutter
        if cutter is None:
            raise RuntimeError("no TOP is due, but a RETR")
        for chunk in chunks:
            self.message_chunk(cutter.cut(chunk))
            if cutter.done:
                self._cutter = None
                self.message_end()
                return

    @property
    def top_done(self) -> bool:
        """No more octets are needed for the TOP that was begun."""
        return self._cutter is None

    def refused(self, text: str) -> None:
        """Answers Retrieve or Top, before any octet of it: `-ERR text`; the session goes on."""
        if self._answer(Retrieve | Top):
            self._cutter = None
            self._refuse(text)

    def quit_done(self) -> None:
        """Answers Quit: what was deleted is durably gone."""
        if self._answer(Quit):
            self._ok("metad signing off")
            self._close()

    def quit_failed(self, text: str = NOT_REMOVED) -> None:
        """Answers Quit: not all is deleted (RFC 1939 section 6); the session ends all the same."""
        if self._answer(Quit):
            self._refuse(text)
            self._close()

    # -- helpers --------------------------------------------------------------------------

    def _answer(self, kind: type | UnionType) -> bool:
        """Whether to answer: no when closed meanwhile.  An answer nobody waits for raises."""
        if isinstance(self._due, kind):
            self._due = None
            return True
        if not self.closed:
            raise RuntimeError(f"no such answer is due, but {self._due}")
        return False

    def _is_streaming(self) -> bool:
        if not self._streaming and not self.closed:
            raise RuntimeError("no message was begun")
        return self._streaming

    def _say(self, octets: bytes) -> None:
        self._output.append(octets)
        self._queued += len(octets)

    def _ok(self, text: str) -> None:
        self._say(b"+OK %b\r\n" % text.encode())

    def _refuse(self, text: str) -> None:
        self._say(b"-ERR %b\r\n" % text.encode())

    def _error(self, text: str) -> None:
        """Refuse, and count it; a SASL exchange under way is over."""
        if self._state is State.CHALLENGE:
            self._state = State.AUTHORIZATION
        self._errors += 1
        if self._errors >= self._settings.errors:
            self.fail("too many errors")
        else:
            self._refuse(text)

    def _close(self) -> None:
        self.closed = True
        self._streaming = False
        self._due = self._cutter = None
        self._lines.clear()


_PROCEED: Final[dict[State, dict[bytes, tuple[Any, Any]]]] = {
    state: {verb: (rule.check, getattr(Pop3, rule.proceed)) for verb, rule in rules.items()}
    for state, rules in COMMANDS.items()
}
