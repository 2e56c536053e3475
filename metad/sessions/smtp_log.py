"""The log lines of SMTP sessions: one per message, one per refusal (docs/logging.md)."""

from __future__ import annotations

from typing import Protocol

from metad.errors import Reply
from metad.layers.base import Envelope
from metad.loglines import clean
from metad.protocol.smtp.machine import Event, MailFrom, RcptTo, Smtp
from metad.protocol.smtp.table import BYE, VERBS
from metad.sessions.context import WorkerContext
from metad.sessions.recipients import Recipients
from metad.sessions.smtp_service import SmtpService
from metad.system.refusals import count_refusal

# Recipients of a message named in its line; `nrcpt` is the total number.
RECIPIENTS_LOGGED = 100
# A session that ends like this needs no line besides those of its messages.
PROPER_ENDS = ("quit", "client hung up")
# The usual delays as they are shown: looked up in half the time that formatting a float takes.
_DELAYS = tuple([f"0.{milliseconds:03}" for milliseconds in range(1000)])
_COMMANDS: dict[type, str] = {MailFrom: "MAIL", RcptTo: "RCPT"}


class Logged(Protocol):
    """What the lines need from a session."""

    _context: WorkerContext
    _client: str
    _network: str
    _tls: str
    _sender: str
    _recipients: Recipients
    _message_id: str
    _arrived: float
    _helo_shown: str
    _machine: Smtp
    _opened: float
    _has_logged: bool
    _committing: Envelope | None
    _reason: str
    _service: SmtpService

    @property
    def helo(self) -> str: ...


def log_message(session: Logged, envelope: Envelope, name: str, status: str) -> None:
    """Log the result of passing a message to the layer.  `name`: its id.

    The text is composed here: as fields it would add a fifth to the cost of a message.
    """
    context = session._context
    log = context.log
    session._has_logged = True
    delay = context.loop.time() - session._arrived
    if log.as_json:
        log.event("smtp", "message", _message_fields(session, envelope, delay, status), name)
        return
    _, client, _, sender, recipients, _, octets, _, _, _ = envelope
    milliseconds = int(delay * 1000 + 0.5)
    waited = _DELAYS[milliseconds] if milliseconds < len(_DELAYS) else f"{delay:.3f}"
    count = len(recipients)
    if count == 1:  # nearly all messages
        to = recipients[0].address
    else:
        to = ">,<".join([one.address for one in recipients[:RECIPIENTS_LOGGED]])
    log.plain(
        "smtp",
        f"{name}: client={client}, helo=<{session._helo_shown}>, "
        f"tls={session._tls}, from=<{sender}>, to=<{to}>, size={octets}, nrcpt={count}, "
        f"message-id=<{session._message_id}>, delay={waited}, status={status}",
    )


def _message_fields(
    session: Logged, envelope: Envelope, delay: float, status: str
) -> dict[str, object]:
    return {
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
    }


def log_refusal(session: Logged, reply: Reply, event: Event | None, detail: str = "") -> None:
    """A sender, a recipient or a message was refused."""
    addresses = _recipients(session)
    if isinstance(event, RcptTo):
        addresses = [clean(event.address)]
    sender = clean(event.sender) if isinstance(event, MailFrom) else clean(session._sender)
    command = _COMMANDS.get(event.__class__, "DATA")
    _log_reject(session, {"command": command}, (sender, addresses), _shown(reply, detail))


def log_refused_commands(session: Logged) -> None:
    """Commands that the machine itself refused: a wrong syntax, a wrong order, unknown ones."""
    machine = session._machine
    refusals, machine.refusals = machine.refusals, []
    for line, reply, is_open in refusals:
        between = (clean(session._sender), _recipients(session)) if is_open else ("", [])
        count_refusal(session._context.row, reply)
        _log_reject(session, _command(line), between, _shown(reply))


def log_session(session: Logged) -> None:
    """A session ends.  Its line is left out if those of its messages say everything."""
    machine = session._machine
    was_cut_off = (machine.in_transaction or machine.cut_off) and session._committing is None
    if session._has_logged and not was_cut_off and session._reason in PROPER_ENDS:
        return
    if session._service.proxied and not machine.progress[0]:
        return
    between = {"from": clean(session._sender), "to": tuple(_recipients(session))}
    fields = {
        "client": session._client,
        "helo": session.helo,
        "tls": session._tls,
        **(between if was_cut_off else {}),
        "seconds": round(session._context.now - session._opened),
        "reason": session._reason,
    }
    session._context.log.limited(session._network, "smtp", "session", fields)


def why_ended(machine: Smtp, error: Exception | None) -> str:
    """The reason for the end of a session for which the session has set none."""
    farewell = machine.farewell
    if farewell is None:
        return "client hung up" if error is None else "connection lost"
    return "quit" if farewell is BYE else farewell.text


def _log_reject(
    session: Logged, command: dict[str, str], between: tuple[str, list[str]], reply: str
) -> None:
    """Equal lines of a network are combined."""
    sender, addresses = between
    fields = {
        **command,
        "client": session._client,
        "helo": session.helo,
        "tls": session._tls,
        "from": sender,
        "to": tuple(addresses),
        "reply": reply,
    }
    session._context.log.limited(session._network, "smtp", "reject", fields)


def _command(line: bytes) -> dict[str, str]:
    """The verb, and an argument that is an address.  No other argument: a client that mistakes us
    for a submission server sends a password."""
    word, _, argument = line.partition(b" ")
    verb = word.upper()
    if verb not in VERBS:
        return {"command": "unknown"}
    shown = {"command": verb.decode()}
    if verb in (b"MAIL", b"RCPT"):
        shown["argument"] = clean(argument.decode("utf-8", "replace"))
    return shown


def _recipients(session: Logged) -> list[str]:
    entries = list(session._recipients.entries.values())
    return [one.address for one in entries[:RECIPIENTS_LOGGED]]


def _shown(reply: Reply, detail: str = "") -> str:
    text = reply.wire[:-2].decode("utf-8", "replace")
    return f"{text} ({detail})" if detail else text
