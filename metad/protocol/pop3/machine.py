"""POP3, sans-IO: octets in, events and octets out (RFC 1939, 2449, 2595, 3206, 5034, 6856).

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

Octets above 127 in messages pass unchanged, with UTF8 and without it: RFC 6856 section 2.1 would
have a client without UTF8 get an error, and that would jam an old one on its first such message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from metad.protocol import sasl, scram
from metad.protocol.pop3 import languages
from metad.protocol.pop3.events import (
    Drop,
    Event,
    Login,
    Personal,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.protocol.pop3.lines import EndlessLineError, LineError, LineReader
from metad.protocol.pop3.marks import Maildrop
from metad.protocol.pop3.table import (
    COMMAND_LIMIT,
    COMMANDS,
    OUTPUT_LIMIT,
    RESPONSE_LIMIT,
    VERBS,
    ArgumentError,
    Pop3Settings,
    State,
    capabilities,
    mechanisms,
)
from metad.protocol.pop3.top import TopCutter

__all__ = [
    "Drop",
    "Event",
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

# RFC 3206 section 6: every refusal for wrong credentials carries [AUTH], and none says which.
AUTH_FAILED: Final = "[AUTH] authentication failed"
NO_PLAINTEXT: Final = "plaintext authentication is refused on this connection"
NOT_REMOVED: Final = "[SYS/TEMP] some deleted messages not removed"
AFTER_STLS: Final = "data before the TLS handshake"


class Pop3:
    """One session.  `closed`: write the output, then close the connection; `abrupt`: we end it,
    and the client may be sending still, so read on a little or a reset takes our last answer.

    `commands`: lines answered so far, a measure of progress; `output`: what is queued to be
    written; `tls`: TLS runs.
    """

    __slots__ = (
        "_cutter",
        "_due",
        "_eof",
        "_errors",
        "_language",
        "_lines",
        "_maildrop",
        "_personal",
        "_queued",
        "_responder",
        "_scram",
        "_settings",
        "_state",
        "_streaming",
        "_user",
        "_utf8",
        "abrupt",
        "closed",
        "commands",
        "output",
        "tls",
    )
    _maildrop: Maildrop
    _scram: scram.Exchange  # from ScramUser on
    _responder: Callable[[bytes], Event | None]  # in state CHALLENGE: what takes the next line

    def __init__(self, settings: Pop3Settings, *, tls: bool = False) -> None:
        self.closed = False
        self.abrupt = False
        self.commands = 0
        self.tls = tls
        self._settings = settings
        self._state = State.AUTHORIZATION
        self._due: Event | None = None  # the event that waits for its answer
        self._streaming = False  # a multi-line answer has begun and is not complete
        self._cutter: TopCutter | None = None
        self._user: str | None = None  # from USER, until a login is tried
        self._utf8 = False
        self._language = languages.ENGLISH
        self._personal: Personal | None = None  # once logged in
        self._errors = 0
        self._lines = LineReader()
        self._eof = False
        self.output: list[bytes] = []
        self._queued = 0  # octets in it

    # -- octets in, octets out ------------------------------------------------------------

    def start(self) -> None:
        """Queue the greeting."""
        self._say(self._settings.greeting)

    def receive(self, data: bytes) -> None:
        """The next octets from the client; ignored when closed."""
        if self._due.__class__ is StartTls:
            # RFC 2595 section 4: what came in the clear must have no effect behind TLS.
            self._due = None
            self.fail(AFTER_STLS)
        elif not self.closed:
            self._lines.feed(data)

    def eof(self) -> None:
        """The client sends no more.  Whole commands that it sent before are still answered."""
        self._eof = True

    def take_output(self) -> list[bytes]:
        """All octets queued so far, to be written at once."""
        output = self.output
        self.output = []
        self._queued = 0
        return output

    def fail(self, text: str) -> None:
        """End the session with `-ERR text` (deadline, shutdown).  Deletes nothing.

        Within a multi-line answer nothing can be said: the client sees it end without its dot.
        """
        if self.closed:
            return
        if not self._streaming:
            self._refuse(text)
        self._close()
        self.abrupt = True

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
        lines = self._lines
        while not (self._due or self._streaming or self.closed or self._queued >= OUTPUT_LIMIT):
            if lines.is_empty and not self._eof:
                break
            line = self._next_line()
            if line is None:
                break
            self.commands += 1
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
        if self.commands > self._settings.login_commands and self._personal is None:
            self.fail("too many commands before login")
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

    def _auth(self, argument: tuple[bytes, bytes | None]) -> Event | None:
        mechanism, initial = argument
        settings = self._settings
        if not mechanism:  # no RFC has it, many clients ask so (as Dovecot answers)
            names = "".join(f"{name}\r\n" for name in mechanisms(settings))
            self._say(b"+OK\r\n%b.\r\n" % names.encode())
            return None
        if mechanism == b"PLAIN" and not settings.plaintext:
            self._refuse(NO_PLAINTEXT)
            return None
        responder = _MECHANISMS.get(mechanism)
        if responder is None or (mechanism == b"SCRAM-SHA-256" and not settings.scram):
            self._refuse("unknown authentication mechanism")
            return None
        self._user = None
        self._responder = responder.__get__(self)
        if initial is None:
            self._challenge(b"")
            return None
        return self._exchange(initial, sasl.decode_initial)

    def _response(self, line: bytes) -> Event | None:
        self._state = State.AUTHORIZATION
        return self._exchange(line, sasl.decode)

    def _exchange(self, text: bytes, decode: Callable[[bytes], bytes]) -> Event | None:
        """The client's next message, to whom it may concern."""
        try:
            return self._responder(decode(text))
        except sasl.SaslError as error:
            self._error(str(error))
            return None

    def _challenge(self, message: bytes, responder: Any = None) -> None:
        """Send a message of the exchange; the next line is the response to it."""
        self._state = State.CHALLENGE
        if responder is not None:
            self._responder = responder
        self._say(b"+ %b\r\n" % sasl.encode(message))

    def _plain(self, message: bytes) -> Event | None:
        return Login(*sasl.plain(message))

    def _scram_first(self, message: bytes) -> Event | None:
        self._scram = scram.Exchange(message)
        return ScramUser(self._scram.user)

    def _scram_final(self, message: bytes) -> Event | None:
        exchange = self._scram
        if not exchange.is_proven(message):
            return ScramLogin(exchange.user, False)
        self._challenge(exchange.server_final, self._scram_end)
        return None

    def _scram_end(self, message: bytes) -> Event | None:
        """RFC 5034 section 4: the client has seen our proof, and says so with an empty line."""
        if message:
            raise sasl.SaslError("this is no SCRAM message")
        return ScramLogin(self._scram.user, True)

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

    # -- TRANSACTION ----------------------------------------------------------------------

    def _stat(self, _: None) -> None:
        self._say(b"+OK %d %d\r\n" % self._maildrop.totals())

    def _list(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(self._language.summary % maildrop.totals() + maildrop.sizes())
        elif self._exists(number):
            self._say(b"+OK %d %d\r\n" % (number, maildrop.drop.size(number)))

    def _uidl(self, number: int | None) -> None:
        maildrop = self._maildrop
        if number is None:
            self._say(maildrop.uids())
        elif self._exists(number):
            self._say(f"+OK {number} {maildrop.drop.uid(number)}\r\n".encode())

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
        self._summary()

    def _summary(self) -> None:
        self._say(self._language.summary % self._maildrop.totals())

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

    def login_ok(self, drop: Drop, personal: Personal | None = None) -> None:
        """Answers Login and ScramLogin: the maildrop is this session's, and what is in it.

        `personal`: what this user's capabilities are, if not those common to all.
        """
        if self._answer(Login, ScramLogin):
            self._state = State.TRANSACTION
            self._personal = personal or self._settings.common
            self._maildrop = Maildrop(drop)
            self._summary()

    def login_failed(self, text: str = AUTH_FAILED) -> None:
        """Answers Login, ScramUser and ScramLogin; the client may try again.

        `text` begins with its response code.
        """
        if self._answer(Login, ScramUser, ScramLogin):
            self._refuse(text)

    def scram_keys(self, keys: scram.Keys, nonce: bytes) -> None:
        """Answers ScramUser; `nonce`: printable ASCII without commas, random."""
        if self._answer(ScramUser):
            self._challenge(self._scram.server_first(keys, nonce), self._scram_final)

    def tls_started(self, settings: Pop3Settings) -> None:
        """Answers StartTls: forget all that was said before (RFC 2595 section 4).

        `settings`: those that hold under TLS.
        """
        if self._answer(StartTls):
            self.tls = True
            self._settings = settings
            self._user = None
            self._language = languages.ENGLISH

    def message(self, chunks: Sequence[bytes]) -> None:
        """Answers Retrieve with the whole message, as on the wire with its final dot line."""
        due = self._due
        if self._answer(Retrieve) and isinstance(due, Retrieve):
            self._say(self._language.octets % self._maildrop.drop.size(due.number))
            self.output += chunks
            self._queued += sum(map(len, chunks))

    def message_begin(self) -> None:
        """Answers Retrieve in pieces: `message_chunk` for each, then `message_end`."""
        self.message(())
        self._streaming = not self.closed

    def message_chunk(self, chunk: bytes) -> None:
        if self._is_streaming():
            self.output.append(chunk)
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
        if self._answer(Retrieve, Top):
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

    def _answer(self, *kinds: type) -> bool:
        """Whether to answer: no when closed meanwhile.  An answer nobody waits for raises."""
        if self._due.__class__ in kinds:
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
        self.output.append(octets)
        self._queued += len(octets)

    def _ok(self, text: str) -> None:
        self._say(b"+OK %b\r\n" % self._language.say(text).encode())

    def _refuse(self, text: str) -> None:
        self._say(b"-ERR %b\r\n" % self._language.say(text).encode())

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


_MECHANISMS: Final[dict[bytes, Any]] = {
    b"PLAIN": Pop3._plain,
    b"SCRAM-SHA-256": Pop3._scram_first,
}
_PROCEED: Final[dict[State, dict[bytes, tuple[Any, Any]]]] = {
    state: {verb: (rule.check, getattr(Pop3, rule.proceed)) for verb, rule in rules.items()}
    for state, rules in COMMANDS.items()
}
