"""An SMTP session on the loop: octets to the machine, its events to users, filter and layer.

Rules of this file:

* One write per group of replies; the transport buffers, Nagle is off.
* A client that does not read its replies is not read from; one that sends far ahead while an
  answer is due neither.
* Nothing that a client sends ends the worker: what it causes is a reply.
* Deadlines are looked at from outside, now and then (`expire`): what the machine has done since
  the last look is progress, so octets cost nothing extra, and half a command is none.
"""

from __future__ import annotations

import array
import fcntl
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from metad import limits
from metad.errors import (
    DrainingError,
    MailLoopError,
    NoSpaceError,
    QueuedReply,
    RefusedError,
    Reply,
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
    SmtpSettings,
    StartTls,
)
from metad.protocol.trace import date, origin, received
from metad.sessions.connection import Connection, Service
from metad.sessions.context import Client, WorkerContext
from metad.sessions.filters import ACCEPTED
from metad.sessions.networks import Networks
from metad.sessions.recipients import Recipients
from metad.system.shared_memory import Cell

# A NamedTuple of a tuple that is complete: half the cost of calling its class.
_new = tuple.__new__
_MESSAGES = int(Cell.MESSAGES)
_OCTETS = int(Cell.MESSAGE_OCTETS)
_RECIPIENTS = int(Cell.RECIPIENTS)
_REFUSED = int(Cell.REFUSED)
TIMEOUT = Reply(421, "4.4.2", "Error: timeout exceeded")
TOO_SLOW = Reply(421, "4.4.2", "Error: the message comes too slowly")
# As Postfix says it to too many connections of one client.
TOO_MANY = Reply(421, "4.7.0", "Error: too many connections")
NOT_LISTED = Reply(554, "5.7.1", "Error: this client may not connect here")


@dataclass(frozen=True, slots=True)
class SmtpService(Service):
    """A listener for SMTP or LMTP.  `repairing`: for clients in `repaired`."""

    settings: SmtpSettings
    repairing: SmtpSettings
    repaired: Networks

    def settings_for(self, client: str) -> SmtpSettings:
        return self.repairing if self.repaired and client in self.repaired else self.settings

    def make(self, client: Client | None = None) -> SmtpSession:
        return SmtpSession(self, client)


class SmtpSession(Connection):
    """One connection."""

    __slots__ = (
        "_began", "_committing", "_deciding", "_greeting", "_helo_text", "_incoming", "_last",
        "_machine", "_origin", "_progress", "_recipients", "_sender", "_transaction",
    )  # fmt: skip
    _machine: Smtp
    _service: SmtpService

    def __init__(self, service: SmtpService, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._recipients = Recipients()
        self._committing: Envelope | None = None
        self._sender = ""
        self._incoming: Incoming | None = None
        self._greeting = 0  # which of the client's `_origin` was made from
        self._helo_text = ""
        self._origin = b""
        self._deciding = False  # within the call that hands a message to the layer
        # As of the last look at the deadlines: what the machine had done, since when it has not
        # done more, which transaction is going on and since when.
        self._progress = (0, 0, 0)
        self._last = self._context.now
        self._transaction = 0
        self._began = self._last

    # -- the transport's side

    def _set_up(self, client: Client, *, secure: bool) -> None:
        self._machine = Smtp(self._service.settings_for(client.address), tls=secure)

    def _greet(self) -> None:
        machine = self._machine
        machine.start(early=not machine.tls and self._has_spoken())
        if self._context.draining:
            machine.fail(DrainingError.smtp)
        self._go_on()

    def _has_spoken(self) -> bool:
        """Whether octets have come already, before the greeting."""
        waiting = array.array("i", [0])
        try:
            descriptor = self._transport.get_extra_info("socket").fileno()
            fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        except OSError:
            return False
        return waiting[0] > 0

    def _upgraded(self) -> None:
        self._machine.tls_started()
        if self._context.draining:
            self._machine.fail(DrainingError.smtp)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        if not (self._busy or self._paused):
            self._advance(machine.feed(data))
            return
        machine.receive(data)
        self._count_waiting()

    def eof_received(self) -> bool:
        machine = self._machine
        machine.eof()
        self._go_on()
        # Behind TLS there is no half of a connection to keep open.
        return not (machine.closed or machine.tls)

    def _gone(self) -> None:
        self._forget_message()
        self._machine.eof()

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resumed(self) -> None:
        self._go_on()

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
        elif self._context.gate.is_too_slow(machine.message_octets, now - self._began):
            self._fail(TOO_SLOW)

    def drain(self) -> None:
        if not self._busy and not self._machine.in_transaction:
            self._fail(DrainingError.smtp)

    def _fail(self, reply: Reply) -> None:
        """End the session; without a word if the client does not even read the last ones."""
        self._machine.fail(reply)
        if self._paused:
            self._transport.abort()
        else:
            self._go_on()

    # -- events

    def _go_on(self) -> None:
        """Carry out what is there already."""
        if not (self._busy or self._paused):
            self._advance(self._machine.next_event())
        else:
            self._flush()

    def _advance(self, event: Event | None) -> None:
        """Carry out `event` and all that follow, then write all replies at once.

        A handler says whether there is more to do before more octets come.
        """
        machine = self._machine
        while event is not None or machine.full:
            try:
                if event is None:  # so many replies that they go first
                    self._flush()
                elif not _HANDLERS[event.__class__](self, event):
                    break
            except RefusedError as error:
                self._refused(error)
            except Exception as error:  # of a layer or a filter: it costs this message, no more
                self._refused(RefusedError(f"{error!r}"))
            if self._busy or self._paused:
                break
            event = machine.next_event()
        if self._busy or self._waits or self._paused or machine.closed:
            self._flush()
        elif machine.output:  # nearly always, and that is all
            self._transport.write(machine.take_output())

    def _flush(self) -> None:
        machine = self._machine
        if machine.output:
            self._transport.write(machine.take_output())
        if machine.closed:
            self._end(abrupt=machine.abrupt)
        elif self._paused or self._waits or (self._busy and machine.buffered):
            self._count_waiting()

    def _refused(self, error: RefusedError) -> None:
        """Answer the event that users, layer or filter would not have."""
        context = self._context
        context.row.add(Cell.REFUSED)
        reply = error.smtp.wire[:-2].decode("utf-8", "replace")
        detail = f" ({clean(str(error))})" if error.args else ""
        context.log.line("smtp", f"reject: client={self._client}: {reply}{detail}")
        self._forget_message()
        self._machine.answer(error.smtp)

    def _mail_from(self, event: MailFrom) -> bool:
        if self._incoming is not None:
            self._forget_message()
        sender, size, _ = event
        self._recipients = Recipients(size or 0)
        context = self._context
        gate = context.gate
        if gate.limits_messages and not gate.may_send(self._network, context.now):
            raise TooMuchMailError(self._network)
        context.layer.verdict(0, size or 0)
        self._sender = sender
        return self._machine.answer(None)

    def _recipient(self, event: RcptTo) -> bool:
        self._recipients.accept(self._context, event.address)
        return self._machine.answer(None)

    def _body(self, event: BodyChunk) -> bool:
        """Keep octets of the body.  A failure is remembered until the end of the message."""
        if self._incoming is None:
            self._incoming = _begin(self._context)
        try:
            self._incoming.write(event.data)
        except Exception as error:
            _abort(self._incoming)
            self._incoming = _Refused(error)
        return True

    def _end_of_message(self, event: EndOfMessage) -> bool:
        context = self._context
        if event.received >= limits.RECEIVED_HOPS:
            raise MailLoopError
        envelope = self._envelope(event)
        judgement = context.filter(envelope)
        if judgement is not ACCEPTED:
            if judgement.refusal is not None:
                self._forget_message()
                return self._machine.answer(judgement.refusal)
            if judgement.header:
                envelope = _with_header(envelope, judgement.header)
        if self._recipients.quotas:
            self._recipients.check_room(context, event.octets)
        self._busy = True
        self._committing = envelope
        self._deciding = True
        try:
            self._hand_over(envelope, event.rest)
        except Exception as error:
            if self._committing is envelope:
                self._busy = False
                self._committing = None
                raise
            context.log.line("smtp", f"warning: layer, after its decision: {error!r}")
        finally:
            self._deciding = False
        return not self._busy

    def _hand_over(self, envelope: Envelope, rest: bytes) -> None:
        """The message is the layer's; `_committed` is called at once or later."""
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
        trace = received(
            self._origin,
            message_id.hex(),
            date(int.from_bytes(message_id[:8], "big") // 1_000_000),
            recipients[0].address if len(recipients) == 1 else None,
        )
        if not starts_with_header:
            trace += b"\r\n"
        client, helo, sender = self._client, self._helo_text, self._sender
        return _new(
            Envelope,
            (message_id, client, helo, sender, recipients, trace, octets, stuffed, "", 0),
        )

    def _make_origin(self) -> None:
        """The part of Received: that is the same until the next EHLO."""
        machine = self._machine
        # One with SMTPUTF8 names another protocol: the next message makes it anew.
        self._greeting = 0 if machine.utf8 else machine.greetings
        self._helo_text = machine.helo.decode("utf-8", "replace")
        hostname = self._context.config.hostname
        address = "" if self._client == "local" else self._client
        self._origin = origin(machine.helo, address, hostname, machine.with_protocol)

    def _committed(self, envelope: Envelope, error: RefusedError | None) -> None:
        """The layer has decided: answer, count, log, and go on with what was sent meanwhile."""
        if self._committing is not envelope:  # decided already
            return
        self._committing = None
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
            cells[_REFUSED] += 1
            more = machine.answer(getattr(error, "smtp", RefusedError.smtp))
            status = f"deferred ({clean(str(error))})"
        context.log.line(
            "smtp",
            f"{name}: client={self._client}, from=<{envelope.sender}>, "
            f"size={envelope.octets}, nrcpt={len(envelope.recipients)}, status={status}",
        )
        if context.draining:
            machine.fail(DrainingError.smtp)
            more = True
        if self._deciding or self._ended:  # `_advance` goes on; or nobody is there
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
        context = self._context
        context.row.add(Cell.REFUSED)
        text = f"reject: client={self._client}: {reply.wire[:-2].decode()}"
        if reply.enhanced == "5.5.2":  # appliances break most, and somebody must find them
            text += f" ({context.gate.count_bare(self._network)} so far from {self._network})"
        context.log.line("smtp", text)
        return True

    def _tls(self, event: StartTls) -> bool:
        """The 220 goes out in the clear, and is the last that does."""
        self._flush()
        self._start_tls()
        return False

    def _forget_message(self) -> None:
        """Drop a message that has not gone to the layer; one that has is the layer's."""
        if self._incoming is not None and not self._busy:
            _abort(self._incoming)
            self._incoming = None


_HANDLERS: dict[type, Callable[[SmtpSession, Any], bool]] = {
    MailFrom: SmtpSession._mail_from,
    RcptTo: SmtpSession._recipient,
    BodyChunk: SmtpSession._body,
    EndOfMessage: SmtpSession._end_of_message,
    Aborted: SmtpSession._aborted,
    StartTls: SmtpSession._tls,
}


class _Refused(Incoming):
    """Stands in for a message that the layer would not take, until its end can be answered."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, chunk: bytes) -> None:
        pass

    def commit(self, envelope: Envelope, done: object) -> None:
        raise self._error

    def abort(self) -> None:
        pass


def _begin(context: WorkerContext) -> Incoming:
    try:
        return context.layer.begin()
    except RefusedError as error:
        return _Refused(error)
    except OSError as error:
        return _Refused(NoSpaceError(str(error)))
    except Exception as error:
        return _Refused(error)


def _abort(incoming: Incoming) -> None:
    """Whatever a layer makes of it, the message is forgotten here."""
    with suppress(Exception):
        incoming.abort()


def _with_header(envelope: Envelope, header: bytes) -> Envelope:
    return envelope._replace(trace=header + envelope.trace)
