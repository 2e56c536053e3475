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
from metad.protocol.smtp import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    MailFrom,
    RcptTo,
    Smtp,
    SmtpSettings,
    StartTls,
)
from metad.protocol.trace import date, origin, received
from metad.shm import Cell
from metad.workers.connection import Connection, Service
from metad.workers.context import Client, WorkerContext
from metad.workers.networks import Networks
from metad.workers.recipients import Recipients

READ_AHEAD = 256 * 1024
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
        "_began", "_committing", "_incoming", "_last", "_machine", "_origin", "_origin_of",
        "_progress", "_recipients", "_sender", "_transaction",
    )  # fmt: skip
    _machine: Smtp
    _service: SmtpService

    def __init__(self, service: SmtpService, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._recipients = Recipients()
        self._committing: Envelope | None = None
        self._sender = ""
        self._incoming: Incoming | None = None
        self._origin_of: tuple[bytes, str] | None = None
        self._origin = b""
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
        self._advance()

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
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._machine.receive(data)
        if not self._busy:
            self._advance()

    def eof_received(self) -> bool:
        machine = self._machine
        machine.eof()
        self._advance()
        # Behind TLS there is no half of a connection to keep open.
        return not (machine.closed or machine.tls)

    def _gone(self) -> None:
        self._forget_message()
        self._machine.eof()

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._advance()

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
            self._advance()

    # -- events

    def _advance(self) -> None:
        """Carry out every event that is there, then write all replies at once."""
        machine = self._machine
        next_event = machine.next_event
        while not (self._busy or self._paused):
            event = next_event()
            if event is None:
                if machine.full:  # of replies: they go first, then it goes on
                    self._flush()
                    continue
                break
            try:
                _HANDLERS[event.__class__](self, event)
            except RefusedError as error:
                self._refused(error)
            except Exception as error:  # of a layer or a filter: it costs this message, no more
                self._refused(RefusedError(f"{error!r}"))
        self._flush()

    def _flush(self) -> None:
        machine = self._machine
        output = machine.take_output()
        if output:
            self._transport.write(output)
        if machine.closed:
            self._end(abrupt=machine.abrupt)
        elif self._busy and machine.buffered > READ_AHEAD:
            self._transport.pause_reading()

    def _refused(self, error: RefusedError) -> None:
        """Answer the event that users, layer or filter would not have."""
        context = self._context
        context.row.add(Cell.REFUSED)
        reply = error.smtp.wire[:-2].decode("utf-8", "replace")
        detail = f" ({clean(str(error))})" if error.args else ""
        context.log.line("smtp", f"reject: client={self._client}: {reply}{detail}")
        self._forget_message()
        self._machine.answer(error.smtp)

    def _mail_from(self, event: MailFrom) -> None:
        self._forget_message()
        self._recipients = Recipients(event.size or 0)
        context = self._context
        gate = context.gate
        if gate.limits_messages and not gate.may_send(self._network, context.now):
            raise TooMuchMailError(self._network)
        context.layer.verdict(0, event.size or 0)
        self._sender = event.sender
        self._machine.answer(None)

    def _recipient(self, event: RcptTo) -> None:
        self._recipients.accept(self._context, event.address)
        self._machine.answer(None)

    def _body(self, event: BodyChunk) -> None:
        """Keep octets of the body.  A failure is remembered until the end of the message."""
        if self._incoming is None:
            self._incoming = _begin(self._context)
        try:
            self._incoming.write(event.data)
        except Exception as error:
            _abort(self._incoming)
            self._incoming = _Refused(error)

    def _end_of_message(self, event: EndOfMessage) -> None:
        incoming = self._incoming or _begin(self._context)
        self._incoming = incoming
        if event.received >= limits.RECEIVED_HOPS:
            raise MailLoopError
        envelope = self._envelope(event)
        judgement = self._context.filter(envelope)
        if judgement.refusal is not None:
            self._forget_message()
            self._machine.answer(judgement.refusal)
            return
        if judgement.header:
            envelope = _with_header(envelope, judgement.header)
        self._recipients.check_room(self._context, event.octets)
        self._busy = True
        self._committing = envelope
        try:
            incoming.commit(envelope, lambda error: self._committed(envelope, error))
        except Exception:
            self._busy = False
            self._committing = None
            raise

    def _envelope(self, event: EndOfMessage) -> Envelope:
        machine, context = self._machine, self._context
        message_id = context.layer.next_id()
        recipients = tuple(self._recipients.entries.values())
        trace = received(
            self._origin_header(),
            message_id.hex(),
            date(int.from_bytes(message_id[:8], "big") // 1_000_000),
            recipients[0].address if len(recipients) == 1 else None,
        )
        if not event.starts_with_header:
            trace += b"\r\n"
        return Envelope(
            message_id,
            self._client,
            machine.helo.decode("utf-8", "replace"),
            self._sender,
            recipients,
            trace,
            event.octets,
            event.stuffed_dots,
        )

    def _origin_header(self) -> bytes:
        """The part of Received: that is the same until the next EHLO, kept."""
        machine = self._machine
        key = (machine.helo, machine.with_protocol)
        if self._origin_of != key:
            self._origin_of = key
            hostname = self._context.config.hostname
            address = "" if self._client == "local" else self._client
            self._origin = origin(machine.helo, address, hostname, machine.with_protocol)
        return self._origin

    def _committed(self, envelope: Envelope, error: RefusedError | None) -> None:
        """The layer has decided: answer, count, log, and go on with what was sent meanwhile."""
        if self._committing is not envelope:  # decided already
            return
        self._committing = None
        context = self._context
        self._busy = False
        self._incoming = None
        name = envelope.id.hex()
        cells = context.row.cells
        if error is None:
            cells[_MESSAGES] += 1
            cells[_OCTETS] += envelope.octets
            cells[_RECIPIENTS] += len(envelope.recipients)
            reply: Reply = QueuedReply(name)
            status = "stored"
        else:
            cells[_REFUSED] += 1
            reply = getattr(error, "smtp", RefusedError.smtp)
            status = f"deferred ({clean(str(error))})"
        context.log.line(
            "smtp",
            f"{name}: client={self._client}, from=<{clean(envelope.sender)}>, "
            f"size={envelope.octets}, nrcpt={len(envelope.recipients)}, status={status}",
        )
        self._machine.answer(reply)
        if not self._transport.is_closing():
            if context.draining:
                self._machine.fail(DrainingError.smtp)
            elif not self._paused:
                self._transport.resume_reading()
            self._advance()

    def _aborted(self, event: Aborted) -> None:
        self._forget_message()
        reply = event.reply
        if reply is None:
            return
        context = self._context
        context.row.add(Cell.REFUSED)
        text = f"reject: client={self._client}: {reply.wire[:-2].decode()}"
        if reply.enhanced == "5.5.2":  # appliances break most, and somebody must find them
            text += f" ({context.gate.count_bare(self._network)} so far from {self._network})"
        context.log.line("smtp", text)

    def _tls(self, event: StartTls) -> None:
        """The 220 goes out in the clear, and is the last that does."""
        self._flush()
        self._start_tls()

    def _forget_message(self) -> None:
        """Drop a message that has not gone to the layer; one that has is the layer's."""
        if self._incoming is not None and not self._busy:
            _abort(self._incoming)
            self._incoming = None


_HANDLERS: dict[type, Callable[[SmtpSession, Any], None]] = {
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
