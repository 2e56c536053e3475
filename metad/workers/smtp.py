"""An SMTP session on the loop: octets to the machine, its events to users, filter and layer.

Rules of this file:

* One write per group of replies; the transport buffers, Nagle is off.
* A client that does not read its replies is not read from; one that sends far ahead while an
  answer is due neither.
* Nothing that a client sends ends the worker: what it causes is a reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from metad import limits
from metad.errors import (
    DrainingError,
    MailLoopError,
    NoSpaceError,
    QueuedReply,
    RefusedError,
    Reply,
)
from metad.layers.base import Envelope, Incoming, Recipient
from metad.loglines import clean
from metad.protocol.smtp import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    MailFrom,
    RcptTo,
    Smtp,
    SmtpSettings,
)
from metad.protocol.trace import date, origin, received
from metad.shm import Cell
from metad.workers.context import WorkerContext, peer_name

READ_AHEAD = 256 * 1024
_MESSAGES = int(Cell.MESSAGES)
_OCTETS = int(Cell.MESSAGE_OCTETS)
_RECIPIENTS = int(Cell.RECIPIENTS)
_REFUSED = int(Cell.REFUSED)
TIMEOUT = Reply(421, "4.4.2", "Error: timeout exceeded")


class SmtpSession(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_busy", "_client", "_context", "_incoming", "_last", "_machine", "_origin",
        "_origin_of", "_paused", "_recipients", "_sender", "_transport",
    )  # fmt: skip
    _transport: asyncio.Transport

    def __init__(self, context: WorkerContext, settings: SmtpSettings) -> None:
        self._context = context
        self._machine = Smtp(settings)
        self._recipients: list[Recipient] = []
        self._sender = ""
        self._incoming: Incoming | None = None
        self._client = ""
        self._busy = False
        self._paused = False
        self._origin_of: tuple[bytes, str] | None = None
        self._origin = b""
        self._last = context.now

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client = peer_name(transport.get_extra_info("peername"))
        context = self._context
        context.sessions.add(self)
        context.row.add(Cell.SMTP_CONNECTIONS)
        context.row.add(Cell.SMTP_OPEN)
        self._machine.start()
        if context.draining:
            self._machine.fail(DrainingError.smtp)
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._last = self._context.now
        self._machine.receive(data)
        if not self._busy:
            self._advance()

    def eof_received(self) -> bool:
        self._machine.eof()
        self._advance()
        return not self._machine.closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_message()
        self._machine.eof()
        self._context.row.add(Cell.SMTP_OPEN, -1)
        self._context.forget(self)

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._advance()

    # -- the worker's side

    def expire(self, now: float) -> None:
        if now - self._last > limits.SMTP_IDLE and not self._busy:
            self._fail(TIMEOUT)

    def drain(self) -> None:
        if not self._machine.in_transaction:
            self._fail(DrainingError.smtp)

    def abort(self) -> None:
        self._transport.abort()

    def _fail(self, reply: Reply) -> None:
        self._machine.fail(reply)
        self._flush()

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
        self._flush()

    def _flush(self) -> None:
        machine = self._machine
        output = machine.take_output()
        if output:
            self._transport.write(output)
        if machine.closed:
            self._transport.close()
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
        self._recipients = []
        self._context.layer.verdict(0, event.size or 0)
        self._sender = event.sender
        self._machine.answer(None)

    def _recipient(self, event: RcptTo) -> None:
        """Accept a recipient; two that are the same mailbox make one entry."""
        context = self._context
        address = event.address
        mailbox = context.users.resolve(address).id
        context.layer.verdict(mailbox, 0)
        recipients = self._recipients
        if not recipients or all(mailbox != known.mailbox for known in recipients):
            recipients.append(Recipient(mailbox, address))
        self._machine.answer(None)

    def _body(self, event: BodyChunk) -> None:
        """Keep octets of the body.  A failure is remembered until the end of the message."""
        if self._incoming is None:
            self._incoming = _begin(self._context)
        try:
            self._incoming.write(event.data)
        except RefusedError as error:
            self._incoming.abort()
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
        self._busy = True
        incoming.commit(envelope, lambda error: self._committed(envelope, error))

    def _envelope(self, event: EndOfMessage) -> Envelope:
        machine, context = self._machine, self._context
        message_id = context.layer.next_id()
        recipients = tuple(self._recipients)
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
            reply = error.smtp
            status = f"deferred ({error})"
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
        if event.reply is not None:
            self._context.row.add(Cell.REFUSED)
            self._context.log.line(
                "smtp", f"reject: client={self._client}: {event.reply.wire[:-2].decode()}"
            )

    def _forget_message(self) -> None:
        """Drop a message that has not gone to the layer; one that has is the layer's."""
        if self._incoming is not None and not self._busy:
            self._incoming.abort()
            self._incoming = None


_HANDLERS: dict[type, Callable[[SmtpSession, Any], None]] = {
    MailFrom: SmtpSession._mail_from,
    RcptTo: SmtpSession._recipient,
    BodyChunk: SmtpSession._body,
    EndOfMessage: SmtpSession._end_of_message,
    Aborted: SmtpSession._aborted,
}


class _Refused(Incoming):
    """Stands in for a message that the layer would not take, until its end can be answered."""

    def __init__(self, error: RefusedError) -> None:
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


def _with_header(envelope: Envelope, header: bytes) -> Envelope:
    return envelope._replace(trace=header + envelope.trace)
