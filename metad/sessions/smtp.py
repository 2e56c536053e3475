"""An SMTP session on the loop: octets to the machine, its events to users, filters and layer.

Rules of this file:

* One write per group of replies; the transport buffers, Nagle is off.
* No input can end the worker: every failure becomes a reply.
* Deadlines are checked about once a second (`expire`).  Progress is input processed by the machine
  since the last check, so counting octets costs nothing, and half a command is not progress.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from metad import limits
from metad.errors import (
    DrainingError,
    MailLoopError,
    NoSpaceError,
    QueuedReply,
    RefusedError,
    TooMuchMailError,
)
from metad.layers.base import Envelope, Incoming
from metad.loglines import clean
from metad.protocol.smtp.machine import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    Event,
    MailFrom,
    RcptTo,
    Smtp,
    StartTls,
)
from metad.protocol.trace import date, origin, received
from metad.sessions import incoming as incoming_mail
from metad.sessions import smtp_log
from metad.sessions.client import Client, has_sent
from metad.sessions.connection import Connection
from metad.sessions.message_id import SEARCHED, find_message_id
from metad.sessions.recipients import Recipients
from metad.sessions.smtp_service import KICKED, TIMEOUT, TOO_MANY, TOO_SLOW, SmtpService
from metad.sessions.unfinished import Room
from metad.store.ids import time_of
from metad.system.refusals import count_refusal
from metad.system.shared_memory import Cell

# Makes a NamedTuple from a complete tuple: half the cost of calling its class.
_new = tuple.__new__
_MESSAGES = int(Cell.MESSAGES)
_OCTETS = int(Cell.MESSAGE_OCTETS)
_RECIPIENTS = int(Cell.RECIPIENTS)


class SmtpSession(Connection):
    """One connection."""

    __slots__ = (
        "_arrived", "_began", "_committing", "_greeting", "_has_logged", "_head", "_helo_shown",
        "_helo_text", "_in_layer", "_incoming", "_last", "_machine", "_message_id",
        "_opened", "_origin", "_progress", "_recipients", "_room", "_sender", "_transaction",
    )  # fmt: skip
    _machine: Smtp
    _service: SmtpService
    _draining = DrainingError.smtp
    _crowded = TOO_MANY
    _kicked = KICKED
    _handlers: ClassVar[dict[type, Callable[[Any, Any], bool]]]

    def __init__(self, service: SmtpService, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._recipients = Recipients()
        self._committing: Envelope | None = None
        self._sender = ""
        self._room = Room(self._context.unfinished)
        self._arrived = 0.0  # when MAIL arrived
        self._head = b""  # the first octets of a message in chunks
        self._message_id = ""
        self._incoming: Incoming | None = None
        self._greeting = 0  # number of the EHLO from which `_origin` was made
        self._helo_text = ""
        self._helo_shown = ""  # the same, fit for the log
        self._origin = b""
        self._in_layer = False  # during the call that passes a message to the layer
        # As of the last check of the deadlines: the machine's progress and when it last changed;
        # the open transaction and when it began.
        self._progress = (0, 0, 0)
        self._last = self._context.now
        self._transaction = 0
        self._began = self._opened = self._last
        self._has_logged = False  # a line of a message

    # -- the transport's side

    def _set_up(self, client: Client, *, secure: bool) -> None:
        self._room.network = client.network
        self._machine = Smtp(self._service.settings_for(client.address), tls=secure)

    def _start(self) -> None:
        machine = self._machine
        machine.start(early=not machine.tls and has_sent(self._transport))

    def _tls_started(self) -> None:
        self._machine.tls_started()

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        if not (self._busy or self._paused):
            self._advance(machine.feed(data))
            return
        machine.receive(data)
        self._count_held()

    def _gone(self) -> None:
        smtp_log.log_session(self)
        self._forget_message()
        self._room.release()
        self._machine.eof()

    def _why(self, exc: Exception | None) -> str:
        return smtp_log.why_ended(self._machine, exc)

    # -- the worker's side

    def expire(self, now: float) -> None:
        machine = self._machine
        if self._busy:
            self._last = now
            return
        if machine.progress != self._progress:
            self._progress = machine.progress
            self._last = now
        if not machine.in_transaction or machine.transactions != self._transaction:
            self._transaction = machine.transactions
            self._began = now
        if now - self._last > limits.SMTP_IDLE:
            self._fail(TIMEOUT)
        elif self._context.limiter.is_too_slow(machine.message_octets, now - self._began):
            self._fail(TOO_SLOW)

    @property
    def _may_drain(self) -> bool:
        return not self._machine.in_transaction

    # -- events

    def _go_on(self) -> None:
        if not (self._busy or self._paused):
            self._advance(self._machine.next_event())
        else:
            self._flush()

    def _advance(self, event: Event | None) -> None:
        """Process `event` and those that follow, then write all replies at once.

        A handler returns whether the machine may have another event before more octets arrive.
        """
        machine = self._machine
        while event is not None or machine.full:
            try:
                if event is None:  # write queued replies first if there are many
                    self._flush()
                elif not self._handlers[event.__class__](self, event):
                    break
            except RefusedError as error:
                self._refused(error, event)
            except Exception as error:  # from a layer or filter: it affects only this message
                self._refused(RefusedError(f"{error!r}"), event)
            if self._busy or self._paused:
                break
            event = machine.next_event()
        if machine.refusals:
            smtp_log.log_refused_commands(self)
        if self._holds or self._paused or machine.closed or (self._busy and machine.buffered):
            self._flush()
        elif machine.output:  # the usual case
            self._transport.write(machine.take_output())

    def _flush(self) -> None:
        machine = self._machine
        if machine.output:
            self._transport.write(machine.take_output())
        if machine.closed:
            self._end(abrupt=machine.abrupt)
        elif self._paused or self._holds or (self._busy and machine.buffered):
            self._count_held()

    def _refused(self, error: RefusedError, event: Event | None = None) -> None:
        """Answer an event refused by users, layer or filter."""
        count_refusal(self._context.row, error.smtp)
        smtp_log.log_refusal(self, error.smtp, event, clean(str(error)) if error.args else "")
        self._forget_message()
        self._machine.answer(error.smtp)
        self._slow_down()

    def _slow_down(self) -> None:
        """Pause for as long as the machine requests; replies so far are sent at once."""
        delay = self._machine.take_delay()
        if delay and not self._machine.closed:
            self._busy = True
            self._context.loop.call_later(delay, self._delay_over)

    def _delay_over(self) -> None:
        self._busy = False
        if self._ended:
            return
        if self._context.draining and self._may_drain:
            self._machine.fail(self._draining)
        self._go_on()

    @property
    def helo(self) -> str:
        """The client's HELO name, escaped for the log."""
        return clean(self._machine.helo.decode("utf-8", "replace"))

    def _mail_from(self, event: MailFrom) -> bool:
        if self._incoming is not None:
            self._forget_message()
        if self._machine.refusals:  # of the transaction before, in the same packet
            smtp_log.log_refused_commands(self)
        self._arrived = self._context.loop.time()
        self._head = b""
        sender, size, _ = event
        self._recipients = Recipients(size or 0)
        context = self._context
        limiter = context.limiter
        if limiter.limits_messages and not limiter.may_send(self._network, context.now):
            raise TooMuchMailError(self._network)
        if self._room.held:
            self._room.release()
        if size and size > limits.SMALL_MESSAGE:
            self._room.hold(size)
        context.layer.check_space()
        context.layer.transaction_started()
        self._sender = sender
        return self._machine.answer(None)

    def _recipient(self, event: RcptTo) -> bool:
        self._recipients.accept(self._context, event.address)
        return self._machine.answer(None)

    def _body(self, event: BodyChunk) -> bool:
        """Keep octets of the body.  A failure is remembered until the end of the message."""
        incoming = self._incoming
        if not isinstance(incoming, incoming_mail.RefusedIncoming):
            try:
                self._room.hold(self._machine.message_octets)
            except NoSpaceError as error:
                self._forget_message()
                self._incoming = incoming_mail.RefusedIncoming(error)
                return True
        if len(self._head) < SEARCHED:
            self._head += event.data[:SEARCHED]
        if incoming is None:
            incoming = self._new_incoming()
        self._incoming = incoming_mail.write(incoming, event.data)
        return True

    def _new_incoming(self) -> Incoming:
        return incoming_mail.begin(self._context, tuple(self._recipients.entries))

    def _end_of_message(self, event: EndOfMessage) -> bool:
        if event.received >= limits.RECEIVED_HOPS:
            raise MailLoopError
        rest = event.rest
        self._message_id = find_message_id(self._head or rest)
        return self._store(self._envelope(event), rest)

    def _store(self, envelope: Envelope, rest: bytes) -> bool:
        """Pass a message to the layer.  Raises RefusedError, and any exception of a layer."""
        context = self._context
        if self._recipients.quotas:
            self._recipients.check_room(context, envelope.octets)
        self._busy = True
        self._committing = envelope
        self._in_layer = True
        try:
            self._hand_over(envelope, rest)
        except Exception as error:
            if self._committing is envelope:
                self._busy = False
                self._committing = None
                raise
            context.log.line("smtp", f"warning: layer failed after its answer: {error!r}")
        finally:
            self._in_layer = False
        return not self._busy

    def _hand_over(self, envelope: Envelope, rest: bytes) -> None:
        """Give the message to the layer, which calls `_committed` now or later."""
        incoming = self._incoming
        if incoming is None:
            self._context.layer.deliver(envelope, rest, partial(self._committed, envelope))
        else:
            incoming.write(rest)
            incoming.commit(envelope, partial(self._committed, envelope))

    def _envelope(self, event: EndOfMessage) -> Envelope:
        machine = self._machine
        octets, stuffed, starts_with_header, _, _ = event
        message_id = self._context.layer.next_id()
        recipients = tuple(self._recipients.entries.values())
        if machine.greetings != self._greeting or machine.utf8:
            self._make_origin()
        seconds = time_of(message_id) // 1_000_000
        recipient = recipients[0].address if len(recipients) == 1 else None
        trace = received(self._origin, message_id.hex(), date(seconds), recipient)
        if not starts_with_header:
            trace += b"\r\n"
        client, helo, sender = self._client, self._helo_text, self._sender
        return _new(
            Envelope,
            (message_id, client, helo, sender, recipients, trace, octets, stuffed, "", 0),
        )

    def _make_origin(self) -> None:
        """The part of Received that stays the same until the next EHLO."""
        machine = self._machine
        # With SMTPUTF8 the protocol has another name: the next message makes its own.
        self._greeting = 0 if machine.utf8 else machine.greetings
        self._helo_text = machine.helo.decode("utf-8", "replace")
        self._helo_shown = clean(self._helo_text)
        hostname = self._context.config.hostname
        address = "" if self._client == "local" else self._client
        self._origin = origin(machine.helo, address, hostname, machine.with_protocol)

    def _committed(self, envelope: Envelope, error: RefusedError | None) -> None:
        """The layer has answered: reply, count, log, and continue with waiting input."""
        if self._committing is not envelope:  # answered already
            return
        self._committing = None
        if self._room.held:
            self._room.release()
        context = self._context
        self._busy = False
        self._incoming = None
        machine = self._machine
        name = envelope.id.hex()
        cells = context.row.cells
        if error is None:
            cells[_MESSAGES] += 1
            cells[_OCTETS] += envelope.octets
            cells[_RECIPIENTS] += len(envelope.recipients)
            more = machine.answer(QueuedReply(name))
            status = "stored"
        else:
            reply = getattr(error, "smtp", RefusedError.smtp)
            count_refusal(context.row, reply)
            more = machine.answer(reply)
            status = f"deferred ({clean(str(error))})"
        smtp_log.log_message(self, envelope, name, status)
        if context.draining:
            machine.fail(DrainingError.smtp)
            more = True
        if self._in_layer or self._ended:  # `_advance` continues, or the client is gone
            return
        if more:
            self._go_on()
        else:
            self._flush()

    def _aborted(self, event: Aborted) -> bool:
        self._forget_message()
        reply = event.reply
        if reply is None:
            return True
        count_refusal(self._context.row, reply)
        detail = ""
        if reply.enhanced == "5.5.2":  # mostly appliances, which their operators must identify
            count = self._context.limiter.count_bare(self._network)
            detail = f"{count} so far from {self._network}"
        smtp_log.log_refusal(self, reply, event, detail)
        return True

    def _start_tls_event(self, event: StartTls) -> bool:
        """The 220 is the last reply in the clear."""
        self._flush()
        self._start_tls()
        return False

    def _forget_message(self) -> None:
        """Abort a message not yet passed to the layer; the layer ends the others."""
        if self._incoming is not None and not self._busy:
            incoming_mail.abort(self._incoming)
            self._incoming = None
            self._room.release()


HANDLERS: dict[type, Callable[[Any, Any], bool]] = {
    MailFrom: SmtpSession._mail_from,
    RcptTo: SmtpSession._recipient,
    BodyChunk: SmtpSession._body,
    EndOfMessage: SmtpSession._end_of_message,
    Aborted: SmtpSession._aborted,
    StartTls: SmtpSession._start_tls_event,
}
SmtpSession._handlers = HANDLERS
