"""SMTP and LMTP, sans-IO: octets in, events and replies out (RFC 5321, 2033, 3030, 3207).

Rules of this file:

* No sockets, no clock, no store.  `receive` takes the client's octets, `next_event` returns what
  the session must do, the session answers events that need it, and writes `take_output` at once.
* One event waits for its answer at a time; pipelined commands after it wait in order, and the
  answers to a group of them are sent together (RFC 2920 section 3.2).
* `next_event` returns None when more input is needed, when an answer is pending, when the session
  is over, or when the queued output is `full`: take it, let the socket drain, call again.
* No input from a client raises.  An answer without a pending event is a bug and raises.
* However the input is cut, the same events (body chunks joined) and octets result; O(n) in total.
  Chunks before an Aborted mean nothing, and their number depends on the cuts.
* Command lines in the usual form take a fast path: one pattern frames and checks them at once.
  Other lines take the slow path, with the same result: feeding any session octet by octet shows it,
  because half a line never matches.

What each verb does in each state, and which state follows, is data: table.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

from metad.errors import Reply
from metad.protocol.lines import Fault
from metad.protocol.smtp import table as states
from metad.protocol.smtp.arguments import QUICK_MAIL, QUICK_RCPT, SHORT, has_long_part
from metad.protocol.smtp.base import ANSWERED, Row, Table
from metad.protocol.smtp.commands import Commands
from metad.protocol.smtp.events import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    Event,
    MailFrom,
    RcptTo,
    StartTls,
)
from metad.protocol.smtp.settings import SmtpSettings
from metad.protocol.smtp.table import CHUNKS, IDLE, MAIL, RCPT, REFUSED, State

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

# A session that waits for its client keeps at most this many used octets.
KEPT: Final = 4_096
_FAULTS: Final = {
    Fault.BARE: states.BARE_IN_COMMAND,
    Fault.LONG: states.LINE_TOO_LONG,
    Fault.FLOOD: states.FLOOD,
}


class Smtp(Commands):
    """One session.  `closed`: write the output, then close the connection; `abrupt`: we end it
    while the client may still be sending, so read on a little, or a reset destroys our last reply.
    `output`: queued replies; `full`: so many that the next command waits until they are taken.

    `helo`: the client's name, as it sent it; `greetings`: how often it did; `extended`: by EHLO or
    LHLO; `refusals`: commands refused without an event, until the session logs them; `farewell`:
    the reply that ended the session; `cut_off`: it did so in a transaction; `accepted`: recipients
    accepted in this transaction; `transactions`: their number so far, with this one; `tls`: TLS
    runs; `utf8`: this transaction's MAIL had SMTPUTF8.
    """

    __slots__ = ()

    def __init__(self, settings: SmtpSettings, *, tls: bool = False) -> None:
        super().__init__(settings, _bound(settings.lmtp, settings.starttls, tls), tls=tls)

    # -- octets in, octets out ------------------------------------------------------------

    def start(self, *, early: bool = False) -> None:
        """Queue the greeting.  A client that sent something before it (`early`) is refused."""
        if early or len(self._lines):
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
            # RFC 3207 section 4: input received in the clear must have no effect under TLS.
            self._end(states.AFTER_START_TLS)
        else:
            self._later += data

    def feed(self, data: bytes) -> Event | None:
        """`receive` and `next_event` in one, for a client that waits for its answers."""
        lines = self._lines
        if self._due is not None or lines.position != lines.end or self.closed or self.output:
            self.receive(data)
            return self.next_event()
        lines.data = data  # like `push`
        lines.end = len(data)
        lines.position = lines.searched = 0
        event: Event | None = (self._reading or _READERS[self._state])(self)
        if event is None and lines.position != lines.end:
            return self.next_event()
        return self._out_of_input() if event is None or event is _STARVED else event

    def eof(self) -> None:
        """The client has closed its side.  Complete commands sent before are still answered."""
        self._eof = True

    def take_output(self) -> bytes:
        """All replies queued so far, to be written at once."""
        output = self.output
        if len(output) == 1:
            return output.pop()
        self.full = False
        self.output = []
        return b"".join(output)

    def fail(self, reply: Reply) -> None:
        """End the session with `reply` (421: deadline, shutdown), after the pending answer, if any.

        An incomplete message is aborted; `next_event` gives Aborted.
        """
        refusal = None if self._body is None else self._body.refusal
        if reply.enhanced == states.TIMEOUT_CODE and refusal is not None:
            # Perhaps the client waits because it ended its message in LF . LF: tell it why.
            reply = Reply(reply.code, reply.enhanced, f"{reply.text}; {refusal.text}")
        if self._due is None or self._due.__class__ is StartTls:
            self._end(reply)
        else:
            self._failing = reply

    @property
    def in_transaction(self) -> bool:
        """Whether a sender is accepted and its message is neither answered nor given up."""
        return self._state.transaction

    @property
    def buffered(self) -> int:
        """Octets received and not yet processed; stop reading when there are many."""
        lines = self._lines
        return lines.end - lines.position + len(self._later)

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes with each complete command and each octet of a message, not with half a line."""
        return self._commands, self.message_octets, self._left

    @property
    def message_octets(self) -> int:
        """Octets received of the message being read; 0 if there is none."""
        if self._state is CHUNKS:
            return self._chunked.received
        return self._body.octets if self._body is not None else 0

    @property
    def with_protocol(self) -> str:
        """The name for Received: (RFC 3848; RFC 6531 section 4.3)."""
        if not self.extended:
            return "SMTP"
        base = "LMTP" if self._settings.lmtp else "SMTP" if self.utf8 else "ESMTP"
        return f"{'UTF8' if self.utf8 else ''}{base}{'S' if self.tls else ''}"

    # -- events ---------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        lines = self._lines
        while self._due is None and not self.closed:
            if len(self.output) >= states.REPLY_LIMIT:
                self.full = True
                lines.compact()
                return None
            if lines.position == lines.end:
                return self._out_of_input()
            event: Event | None = (self._reading or _READERS[self._state])(self)
            if event is not None:
                return event if event is not _STARVED else self._out_of_input()
        event, self._next = self._next, None
        return event

    def answer(self, reply: Reply | None) -> bool:
        """Answer the last MailFrom, RcptTo or EndOfMessage.

        None: accept, with the machine's own reply (not for EndOfMessage).  LMTP repeats the reply
        to an EndOfMessage for each recipient.  A 421 ends the session.  True: call `next_event`
        before feeding more octets.
        """
        due = self._due
        kind = due.__class__
        accepted = reply is None or reply.code < 400
        if kind is RcptTo:
            if accepted:
                self.accepted += 1
            self._state = ANSWERED[accepted][self._state]
            self.output.append((reply or states.RECIPIENT_OK).wire)
        elif kind is MailFrom:
            if accepted:
                self.transactions += 1
            else:
                self.utf8 = False
            self._state = ANSWERED[accepted][self._state]
            self.output.append((reply or states.SENDER_OK).wire)
        elif kind is EndOfMessage and reply is not None:
            self._answer_message(reply, accepted)
        else:
            raise RuntimeError(f"answer {reply!r} to {due!r}")
        self._due = None
        if self._later or self._failing is not None or not accepted:
            self._answered(due, reply)
        lines = self._lines
        if lines.position != lines.end:
            return True
        if lines.end > KEPT:
            lines.forget()
        return self._eof or self._next is not None

    def _answer_message(self, reply: Reply, accepted: bool) -> None:
        if self._settings.lmtp:
            self.output += [reply.wire] * self.accepted
        else:
            self.output.append(reply.wire)
        if accepted:
            self._idle = self._refused = self._excess = 0
        self._forget(ANSWERED[accepted][self._state])

    def answer_each(self, replies: Sequence[Reply]) -> None:
        """LMTP: one reply for each accepted RCPT, in their order (RFC 2033 section 4.2)."""
        if self._due.__class__ is not EndOfMessage or len(replies) != self.accepted:
            raise RuntimeError(f"{len(replies)} answers to {self._due!r} for {self.accepted}")
        best = min(replies, key=lambda reply: reply.code)
        self.output.extend([reply.wire for reply in replies])
        accepted = best.code < 400
        if accepted:
            self._idle = self._refused = self._excess = 0
        self._forget(ANSWERED[accepted][self._state])
        self._due = None
        self._answered(None, best)

    def tls_started(self) -> None:
        """The handshake is done: discard all earlier input (RFC 3207 section 4.2)."""
        if self._due.__class__ is not StartTls:
            raise RuntimeError(f"TLS started without {StartTls.__name__}")
        self._due = None
        self.tls = True
        self.helo = b""
        self.extended = False
        self._state = self._table[self._state][b"STARTTLS"].done
        self._table = _bound(self._settings.lmtp, self._settings.starttls, True)

    # -- commands: the fast path first, where there is one --------------------------------

    def _read_command(self) -> Event | None:
        line = self._lines.line()
        if line is None:
            return _STARVED
        return self._command(line) if isinstance(line, bytes) else self._fault(line)

    def _read_mail(self) -> Event | None:
        lines = self._lines
        match = QUICK_MAIL.match(lines.data, lines.position)
        if match is None or lines.dropping:
            return self._read_command()
        end = match.end()
        sender, digits = match.groups()
        size = None if digits is None else int(digits)
        if (
            end - lines.position > self._longest
            or (len(sender) > SHORT and has_long_part(sender))
            or (size is not None and size > self._settings.message_size)
        ):
            return self._read_command()
        lines.position = end
        self._commands += 1
        self._due = mail = _new(MailFrom, (sender.decode(), size, False))
        return mail

    def _read_rcpt(self) -> Event | None:
        lines = self._lines
        match = QUICK_RCPT.match(lines.data, lines.position)
        if match is None or lines.dropping:
            return self._read_command()
        end = match.end()
        address = match[1]
        if (
            end - lines.position > self._longest
            or (len(address) > SHORT and has_long_part(address))
            or self.accepted >= self._settings.recipients
        ):
            return self._read_command()
        lines.position = end
        self._commands += 1
        self._due = rcpt = _new(RcptTo, (address.decode(),))
        return rcpt

    def _read_rcpt_or_data(self) -> Event | None:
        lines = self._lines
        if lines.dropping or not lines.data.startswith(_DATA_LINE, lines.position):
            return self._read_rcpt()
        lines.position += len(_DATA_LINE)
        self._commands += 1
        return self._begin_data(_DATA_ROW, loose=False)

    # -- within ---------------------------------------------------------------------------

    def _command(self, line: bytes) -> Event | None:
        verb, _, argument = line.partition(b" ")
        self._commands += 1
        self._line = line
        rows = self._table[self._state]
        row = rows.get(verb) or rows.get(verb.upper())
        if row is None:
            self._refuse(states.UNKNOWN)
            return None
        wanted, action, reply, _, _ = row
        argument = argument.strip(b" \t")
        if wanted is not None and wanted is not (argument != b""):
            self._refuse(reply)
            return None
        return action(self, argument, row)

    def _fault(self, fault: Fault) -> Event | None:
        self._line = b""
        if fault is Fault.FLOOD:
            self._end(_FAULTS[fault])
        else:
            self._refuse(_FAULTS[fault])
        return None

    def _answered(self, due: Event | None, reply: Reply | None) -> None:
        """After an answer: process octets that waited for it, or end the session."""
        if self._later:
            self._lines.push(bytes(self._later))
            self._later.clear()
        if self._failing is not None:
            self._end(self._failing)
        elif reply is not None and reply.code == 421:
            self._close()
        elif reply is not None and reply.code >= 400:
            self._not_accepted(due)

    def _out_of_input(self) -> Event | None:
        """All input is used; that is the end if no more can arrive."""
        if self._eof:
            self._close()
        lines = self._lines
        if lines.end > KEPT:
            lines.compact()
        event, self._next = self._next, None
        return event


@functools.cache
def _bound(lmtp: bool, starttls: bool, tls: bool) -> Table:
    """The table, with the names of actions replaced by methods."""
    return {
        state: {
            verb: Row(
                rule.argument,
                getattr(Smtp, f"_do_{rule.action}"),
                rule.reply,
                rule.done or state,
                rule.refused or state,
            )
            for verb, rule in rules.items()
            if verb is not states.END
        }
        for state, rules in states.table(lmtp=lmtp, starttls=starttls, tls=tls).items()
    }


# Makes a NamedTuple from a complete tuple, at half the cost of calling its class.
_new: Final = tuple.__new__
_DATA_LINE: Final = b"DATA\r\n"
# The same in every session.
_DATA_ROW: Final = _bound(False, False, False)[RCPT][b"DATA"]
# Means "there is no complete line".
_STARVED: Final = Aborted(None)
_READERS: Final[dict[State, Callable[[Smtp], Event | None]]] = {
    **dict.fromkeys(states.STATES, Smtp._read_command),
    IDLE: Smtp._read_mail,
    MAIL: Smtp._read_rcpt,
    REFUSED: Smtp._read_rcpt,
    RCPT: Smtp._read_rcpt_or_data,
}
