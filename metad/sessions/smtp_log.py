"""The log lines of SMTP sessions: one per message, one per refusal (docs/logging.md)."""

from __future__ import annotations

from typing import Protocol

from metad.errors import Reply
from metad.layers.base import Envelope
from metad.loglines import clean
from metad.protocol.smtp.machine import Event, MailFrom, RcptTo
from metad.sessions.context import WorkerContext
from metad.sessions.recipients import Recipients

# Recipients of a message that its line names; `nrcpt` is the number of all.
RECIPIENTS_LOGGED = 100
_COMMANDS: dict[type, str] = {MailFrom: "MAIL", RcptTo: "RCPT"}


class Logged(Protocol):
    """What the lines need of a session."""

    _context: WorkerContext
    _client: str
    _network: str
    _tls: str
    _sender: str
    _recipients: Recipients
    _message_id: str
    _arrived: float
    _helo_shown: str

    @property
    def helo(self) -> str: ...


def log_message(session: Logged, envelope: Envelope, status: str) -> None:
    """A message was handed to the layer, and this became of it.

    The text is put together here: as fields it would cost a fifth of all that a message costs.
    """
    context = session._context
    log = context.log
    delay = context.loop.time() - session._arrived
    if not log.as_json:
        message_id, client, _, sender, recipients, _, octets, *_ = envelope
        count = len(recipients)
        shown = recipients if count <= RECIPIENTS_LOGGED else recipients[:RECIPIENTS_LOGGED]
        to = recipients[0][1] if count == 1 else ">,<".join([one[1] for one in shown])
        log.plain(
            "smtp",
            f"{message_id.hex()}: client={client}, helo=<{session._helo_shown}>, "
            f"tls={session._tls}, from=<{sender}>, to=<{to}>, size={octets}, nrcpt={count}, "
            f"message-id=<{session._message_id}>, delay={delay:.3f}, status={status}",
        )
        return
    log.event(
        "smtp",
        "message",
        {
            "client": envelope.client,
            "helo": session._helo_shown,
            "tls": session._tls,
            "from": envelope.sender,
            "to": tuple([one.address for one in envelope.recipients[:RECIPIENTS_LOGGED]]),
            "size": envelope.octets,
            "nrcpt": len(envelope.recipients),
            "message-id": session._message_id,
            "delay": round(delay, 3),
            "status": status,
        },
        envelope.id.hex(),
    )


def log_refusal(session: Logged, reply: Reply, event: Event | None, detail: str = "") -> None:
    """A command or a message was refused; equal lines of a network are summed up."""
    text = reply.wire[:-2].decode("utf-8", "replace")
    if isinstance(event, RcptTo):
        addresses = [clean(event.address)]
    else:
        entries = session._recipients.entries.values()
        addresses = [one.address for one in entries][:RECIPIENTS_LOGGED]
    session._context.log.limited(
        session._network,
        "smtp",
        "reject",
        {
            "command": _COMMANDS.get(event.__class__, "DATA"),
            "client": session._client,
            "helo": session.helo,
            "tls": session._tls,
            "from": clean(event.sender if isinstance(event, MailFrom) else session._sender),
            "to": tuple(addresses),
            "reply": f"{text} ({detail})" if detail else text,
        },
    )
