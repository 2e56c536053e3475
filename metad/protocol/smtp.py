"""SMTP and LMTP, sans-IO: octets in, events and replies out (RFC 5321, 2033, 3030, 3207).

Rules of this file:

* No sockets, no clock, no store.  `receive` takes what came, `next_event` says what the session
  must do, the session answers what asks for it, `take_output` is written at once.
* One event waits for its answer at a time; pipelined commands behind it wait in order, and the
  answers to a group of them leave together (RFC 2920 section 3.2).
* `next_event` is None when more input is needed, when an answer is due, when all is over, or
  when the queued output is `full`: take it, let the socket drain, ask again.
* Nothing a client sends raises.  An answer that no event asked for is a bug and raises.
* However the input is cut, the same events (body chunks joined) and octets come out; O(n) in
  all.  Chunks before an Aborted are worth nothing, and how many there are depends on the cut.

What each verb does in each state is data, in smtp_states.py; `_do_x` here is its action `x`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import Reply
from . import smtp_states as states
from .lines import Fault, LineBuffer
from .smtp_body import ChunkedBody, DataBody, whole
from .smtp_events import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    Event,
    MailFrom,
    RcptTo,
    StartTls,
)
from .smtp_states import CHUNKS, IDLE, MAIL, RCPT, REFUSED, START, SmtpSettings, State
from .smtp_syntax import BDAT_SYNTAX, Chunk, parse_bdat, parse_mail, parse_rcpt

__all__ = [
    "Aborted",
    "BodyChunk",
    "EndOfMessage",
    "Event",
    "MailFrom",
    "RcptTo",
    "Smtp",
    "SmtpSettings",
    "StartTls",
]

_FAULTS: Final = {
    Fault.BARE: states.BARE_IN_COMMAND,
    Fault.LONG: states.LINE_TOO_LONG,
    Fault.FLOOD: states.FLOOD,
}


class Smtp:
    """One session.  `closed`: write the output, then close the connection.

    `helo`: what the client calls itself, as it came; `extended`: it said EHLO or LHLO;
    `accepted`: recipients accepted in this transaction; `tls`: TLS runs.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_due",
        "_eof",
        "_errors",
        "_failing",
        "_last",
        "_later",
        "_left",
        "_lines",
        "_next",
        "_output",
        "_reading",
        "_refusal",
        "_rules",
        "_settings",
        "_state",
        "_table",
        "_utf8",
        "accepted",
        "closed",
        "extended",
        "helo",
        "tls",
    )
    _chunked: ChunkedBody  # in state CHUNKS

    def __init__(self, settings: SmtpSettings, *, tls: bool = False) -> None:
        self.closed = False
        self.helo = b""
        self.extended = False
        self.accepted = 0
        self.tls = tls
        self._settings = settings
        self._table = _bound(settings.lmtp, settings.starttls, tls)
        self._state = START
        self._rules = self._table[START]
        self._utf8 = False  # this transaction's MAIL came with SMTPUTF8
        self._errors = 0
        self._due: Event | None = None  # the event that waits for its answer
        self._next: Event | None = None  # the event that comes next, whatever happens
        self._failing: Reply | None = None  # the session ends with this after the answer due
        self._lines = LineBuffer(states.COMMAND_LIMIT)
        self._later: list[bytes] = []  # octets that came while an answer was due
        self._output: list[bytes] = []
        self._eof = False
        # Within a message or a chunk: what reads it; else None, and lines are commands.
        self._reading: Callable[[Smtp], Event | None] | None = None
        self._body: DataBody | None = None  # of a message by DATA that needs more than one look
        self._left = 0  # octets of the chunk that are still to come
        self._last = False  # the message ends with this chunk
        self._refusal = states.OK  # the answer to a chunk that is skipped

    # -- octets in, octets out ------------------------------------------------------------

    def start(self) -> None:
        """Queue the greeting.  A client that spoke before it is shown out (554)."""
        if len(self._lines):
            self._end(states.EARLY_TALK)
        else:
            self._say(self._settings.greeting)

    def receive(self, data: bytes) -> None:
        """The next octets from the client; ignored when closed."""
        if self.closed:
            return
        if self._due is None:
            self._lines.push(data)
        elif self._due.__class__ is StartTls:
            # RFC 3207 section 4: what came in the clear must have no effect behind TLS.
            self._end(states.AFTER_START_TLS)
        else:
            self._later.append(data)

    def eof(self) -> None:
        """The client sends no more.  Whole commands that it sent before are still answered."""
        self._eof = True

    def take_output(self) -> bytes:
        """All replies queued so far, to be written at once."""
        output = self._output
        if len(output) == 1:
            return output.pop()
        self._output = []
        return b"".join(output)

    def fail(self, reply: Reply) -> None:
        """End the session with `reply` (421: deadline, shutdown), after the answer due if any.

        A message begun and not complete is aborted; `next_event` says so.
        """
        if self._due is None or self._due.__class__ is StartTls:
            self._end(reply)
        else:
            self._failing = reply

    @property
    def in_transaction(self) -> bool:
        """Whether a sender is accepted and its message neither answered nor given up."""
        return self._state.transaction

    @property
    def answer_due(self) -> bool:
        return self._due is not None

    @property
    def buffered(self) -> int:
        """Octets received and not yet understood; stop reading when they are many."""
        return len(self._lines) + sum(map(len, self._later))

    @property
    def full(self) -> bool:
        """So many replies are queued that the next command waits until they were taken."""
        return len(self._output) >= states.REPLY_LIMIT

    @property
    def with_protocol(self) -> str:
        """The name for Received: (RFC 3848; RFC 6531 section 4.3)."""
        if not self.extended:
            return "SMTP"
        base = "LMTP" if self._settings.lmtp else "SMTP" if self._utf8 else "ESMTP"
        return f"{'UTF8' if self._utf8 else ''}{base}{'S' if self.tls else ''}"

    # -- events ---------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        event = self._next
        if event is not None:
            self._next = None
            return event
        lines = self._lines
        while self._due is None and not self.closed and len(self._output) < states.REPLY_LIMIT:
            if lines.position == len(lines.data):
                return self._out_of_input()
            if self._reading is not None:
                event = self._reading(self)
            else:
                line = lines.line()
                if line is None:
                    return self._out_of_input()
                event = self._command(line) if isinstance(line, bytes) else self._fault(line)
            if event is not None:
                return event
        event, self._next = self._next, None
        return event

    def answer(self, reply: Reply | None) -> None:
        """The verdict on the last MailFrom, RcptTo or EndOfMessage.

        None: yes, in the machine's own words (not for EndOfMessage).  One reply to an
        EndOfMessage of LMTP is said for each recipient.  A 421 ends the session.
        """
        due = self._due
        if due.__class__ is RcptTo:
            if reply is None or reply.code < 400:
                self.accepted += 1
                self._enter(RCPT)
            elif self._state is MAIL:
                self._enter(REFUSED)
            self._answered([reply or states.RECIPIENT_OK])
        elif due.__class__ is MailFrom:
            if reply is None or reply.code < 400:
                self._enter(MAIL)
            self._answered([reply or states.SENDER_OK])
        elif due.__class__ is EndOfMessage and reply is not None:
            replies = [reply] * self.accepted if self._settings.lmtp else [reply]
            self._forget()
            self._answered(replies)
        else:
            raise RuntimeError(f"answer {reply!r} to {due!r}")

    def answer_each(self, replies: Sequence[Reply]) -> None:
        """LMTP: one verdict per accepted RCPT, in their order (RFC 2033 section 4.2)."""
        if self._due.__class__ is not EndOfMessage or len(replies) != self.accepted:
            raise RuntimeError(f"{len(replies)} answers to {self._due!r} for {self.accepted}")
        self._forget()
        self._answered(replies)

    def tls_started(self) -> None:
        """The handshake is done: forget all that was said before (RFC 3207 section 4.2)."""
        if self._due.__class__ is not StartTls:
            raise RuntimeError(f"TLS started without {StartTls.__name__}")
        self._due = None
        self.tls = True
        self.helo = b""
        self.extended = False
        self._table = _bound(self._settings.lmtp, self._settings.starttls, True)
        self._enter(START)

    # -- actions: `argument` without blanks around it, `reply` as in the table -------------

    def _do_refuse(self, _argument: bytes, reply: Reply) -> Event | None:
        self._refuse(reply)
        return None

    def _do_say(self, _argument: bytes, reply: Reply) -> Event | None:
        self._say(reply)
        return None

    def _do_help(self, _argument: bytes, _reply: Reply) -> Event | None:
        self._say(self._settings.help)
        return None

    def _do_verify(self, _argument: bytes, _reply: Reply) -> Event | None:
        self._say(states.CANNOT_VERIFY)
        return None

    def _do_http(self, _argument: bytes, reply: Reply) -> Event | None:
        self._end(reply)
        return None

    def _do_quit(self, _argument: bytes, _reply: Reply) -> Event | None:
        self._end(states.BYE)
        return None

    def _do_helo(self, argument: bytes, _reply: Reply) -> Event | None:
        self._say(self._settings.helo)
        return self._greeted(argument, extended=False)

    def _do_ehlo(self, argument: bytes, _reply: Reply) -> Event | None:
        settings = self._settings
        self._output.append(settings.ehlo_tls if self.tls else settings.ehlo)
        return self._greeted(argument, extended=True)

    def _do_reset(self, _argument: bytes, _reply: Reply) -> Event | None:
        self._say(states.OK)
        return self._give_up(IDLE if self._state is not START else START)

    def _do_start_tls(self, _argument: bytes, _reply: Reply) -> Event | None:
        if len(self._lines):
            self._end(states.AFTER_START_TLS)
            return None
        self._say(states.START_TLS)
        self._due = StartTls(states.START_TLS)
        return self._due

    def _do_mail(self, argument: bytes, _reply: Reply) -> Event | None:
        mail = parse_mail(argument)
        if isinstance(mail, Reply):
            self._refuse(mail)
            return None
        if mail.size is not None and mail.size > self._settings.message_size:
            self._refuse(states.TOO_LARGE)
            return None
        self._utf8 = mail.utf8
        self._due = mail
        return mail

    def _do_rcpt(self, argument: bytes, _reply: Reply) -> Event | None:
        rcpt = parse_rcpt(argument, self._utf8)
        if isinstance(rcpt, Reply):
            self._refuse(rcpt)
            return None
        if self.accepted >= self._settings.recipients:
            self._refuse(states.TOO_MANY_RECIPIENTS)
            return None
        self._due = rcpt
        return rcpt

    def _do_data(self, _argument: bytes, _reply: Reply) -> Event | None:
        self._say(states.GO_AHEAD)
        self._reading = Smtp._read_data
        return None

    def _do_chunk(self, argument: bytes, reply: Reply) -> Event | None:
        chunk = self._expect_chunk(argument, reply)
        if chunk is None:
            return None
        if self._state is not CHUNKS:
            self._enter(CHUNKS)
            self._chunked = ChunkedBody(repair=self._repair)
        if self._chunked.received + chunk.octets > self._settings.message_size:
            self._refusal = states.TOO_LARGE
            self._reading = Smtp._skip_chunk
        else:
            self._reading = Smtp._read_chunk
        return None if chunk.octets else self._reading(self)

    def _do_skip_chunk(self, argument: bytes, reply: Reply) -> Event | None:
        chunk = self._expect_chunk(argument, BDAT_SYNTAX)
        if chunk is None:
            return None
        self._refusal = reply
        self._reading = Smtp._skip_chunk
        return None if chunk.octets else self._reading(self)

    # -- messages -------------------------------------------------------------------------

    def _read_data(self) -> Event | None:
        """What has come of the message by DATA."""
        lines = self._lines
        body = self._body
        if body is None:
            found = whole(lines.data, lines.position, self._settings.message_size)
            if found is not None:
                lines.position += len(found[0])
                return self._complete(*found)
            body = self._body = DataBody(self._settings.message_size, repair=self._repair)
        wire, lines.position, ended = body.take(lines.data, lines.position)
        refusal = body.refusal
        if ended:
            if refusal is not None:
                return self._refuse_message(refusal, each=True)
            return self._complete(wire, body.end())
        return BodyChunk(wire) if wire and refusal is None else None

    def _read_chunk(self) -> Event | None:
        """What has come of the chunk by BDAT."""
        body = self._chunked
        piece = self._take_of_chunk()
        ended = self._left == 0
        wire = body.take(piece, final=ended and self._last)
        refusal = body.refusal
        if ended:
            self._reading = None
            if refusal is not None:
                return self._refuse_message(refusal, each=self._last)
            if self._last:
                return self._complete(wire, body.end())
            self._say(states.OK)
        return BodyChunk(wire) if wire and refusal is None else None

    def _skip_chunk(self) -> Event | None:
        """What has come of a chunk that nobody wants."""
        self._take_of_chunk()
        if self._left:
            return None
        self._reading = None
        if self._state is CHUNKS:
            return self._refuse_message(self._refusal, each=self._last)
        self._refuse(self._refusal)
        return None

    def _expect_chunk(self, argument: bytes, reply: Reply) -> Chunk | None:
        chunk = parse_bdat(argument)
        if chunk is None:
            # Where the chunk ends is unknown, so nothing behind this line can be understood.
            self._end(reply)
        else:
            self._left, self._last = chunk
        return chunk

    def _take_of_chunk(self) -> bytes:
        lines = self._lines
        piece = lines.data[lines.position : lines.position + self._left]
        lines.position += len(piece)
        self._left -= len(piece)
        return piece

    def _complete(self, wire: bytes, end: EndOfMessage) -> Event:
        self._reading = None
        self._due = self._next = end
        return BodyChunk(wire)

    def _refuse_message(self, reply: Reply, *, each: bool) -> Event:
        """`each`: this answers the message, so LMTP says it for each recipient."""
        repeat = self.accepted if each and self._settings.lmtp else 1
        self._output.extend([reply.wire] * repeat)
        self._forget()
        return Aborted(reply)

    @property
    def _repair(self) -> bool:
        return self._settings.bare_line_ends == "repair"

    # -- within -----------------------------------------------------------------------------

    def _command(self, line: bytes) -> Event | None:
        verb, _, argument = line.partition(b" ")
        rule = self._rules.get(verb) or self._rules.get(verb.upper())
        if rule is None:
            self._refuse(states.UNKNOWN)
            return None
        wanted, action, reply = rule
        argument = argument.strip(b" \t")
        if wanted is not None and wanted is not (argument != b""):
            self._refuse(reply)
            return None
        return action(self, argument, reply)

    def _fault(self, fault: Fault) -> Event | None:
        if fault is Fault.FLOOD:
            self._end(_FAULTS[fault])
        else:
            self._refuse(_FAULTS[fault])
        return None

    def _say(self, reply: Reply) -> None:
        self._output.append(reply.wire)

    def _refuse(self, reply: Reply) -> None:
        """A command that cannot be done.  Only what is the client's error counts as one."""
        self._output.append(reply.wire)
        if 500 <= reply.code <= 504:
            self._errors += 1
            if self._errors >= self._settings.errors:
                self._end(states.TOO_MANY_ERRORS)

    def _answered(self, replies: Sequence[Reply]) -> None:
        self._due = None
        for reply in replies:
            self._output.append(reply.wire)
        if self._later:
            self._lines.push(b"".join(self._later))
            self._later = []
        if self._failing is not None:
            self._end(self._failing)
        elif replies[0].code == 421:
            self._close()

    def _greeted(self, helo: bytes, *, extended: bool) -> Event | None:
        """EHLO begins anew, as RSET does (RFC 5321 section 4.1.4)."""
        self.helo = helo
        self.extended = extended
        return self._give_up(IDLE)

    def _give_up(self, state: State) -> Event | None:
        """Forget the transaction; if a message was begun, the session must know."""
        begun = self._state is CHUNKS
        self._forget()
        self._enter(state)
        return Aborted(None) if begun else None

    def _forget(self) -> None:
        """The transaction is over."""
        self.accepted = 0
        self._utf8 = False
        self._body = None
        self._reading = None
        self._enter(IDLE)

    def _enter(self, state: State) -> None:
        self._state = state
        self._rules = self._table[state]

    def _out_of_input(self) -> Event | None:
        """All that came is used; that is the end if no more can come."""
        if self._eof:
            self._close()
        event, self._next = self._next, None
        return event

    def _end(self, reply: Reply) -> None:
        if not self.closed:
            self._say(reply)
            self._close()

    def _close(self) -> None:
        self.closed = True
        if self._state is CHUNKS or self._reading is Smtp._read_data:
            self._next = Aborted(None)
        self._due = None
        self._forget()


_Bound = tuple[bool | None, Callable[[Smtp, bytes, Reply], Event | None], Reply]


@functools.cache
def _bound(lmtp: bool, starttls: bool, tls: bool) -> dict[State, dict[bytes, _Bound]]:
    """The table with its actions' names made methods."""
    return {
        state: {
            verb: (rule.argument, getattr(Smtp, f"_do_{rule.action}"), rule.reply)
            for verb, rule in rules.items()
        }
        for state, rules in states.table(lmtp=lmtp, starttls=starttls, tls=tls).items()
    }
