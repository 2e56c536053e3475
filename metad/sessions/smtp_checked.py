"""A session that asks filters about whole messages, and passes the result to the layer.

    arrival -> header split off, forged fields removed -> checked -> fields added -> layer

Rules of this file:

* While a filter is being asked, no log is held, and the message counts in the worker's budget.
* The header is held here until the verdict and goes to the layer in `Envelope.trace`, in wire
  format; the layer's part of the message is the rest.  So every change to it is made before the
  checksum of the record.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from metad import limits
from metad.budget import Lease
from metad.errors import (
    HeaderTooLargeError,
    MailLoopError,
    NoSpaceError,
    RefusedError,
)
from metad.filters.authentication import NAME as RESULTS
from metad.filters.authentication import is_ours
from metad.filters.base import ACCEPT, Message, Preferences, Verdict
from metad.filters.body import Body
from metad.filters.fields import FieldError, HeaderSplitter, make_field, remove, without
from metad.filters.rspamd import SCORE_FIELD, SPAM_FIELD, UNCHECKED_FIELD
from metad.layers.base import Envelope, Incoming
from metad.layers.kept import KeptIncoming
from metad.loglines import clean
from metad.protocol.headers import look_at
from metad.protocol.smtp.machine import BodyChunk, EndOfMessage, MailFrom
from metad.sessions.filters import junk_recipients
from metad.sessions.incoming import RefusedIncoming
from metad.sessions.incoming import begin as begin_incoming
from metad.sessions.message_id import find_message_id
from metad.sessions.smtp_asking import AskingSmtpSession
from metad.system.shared_memory import Cell

# Fields that only our own filters may add.
_RESULTS = RESULTS.lower().encode()
_OURS = frozenset(name.lower().encode() for name in (SPAM_FIELD, SCORE_FIELD, UNCHECKED_FIELD))
# If the recipients of one message have different preferences: it is marked by its score, not
# refused.
NEVER_REFUSED = Preferences(refuse=1e9)


class CheckedSmtpSession(AskingSmtpSession):
    """`_header` and `_tail`: the header of a complete message, and the last octets of the rest, or
    all of it if there is no `_incoming`.  `_is_header`: False for text in place of a header, which
    every reader takes for body."""

    __slots__ = ("_header", "_is_header", "_lease", "_splitter", "_stored", "_tail")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reset()

    def _reset(self) -> None:
        self._splitter: HeaderSplitter | None = None
        self._lease: Lease | None = None
        self._header = b""
        self._is_header = True
        self._tail = b""
        self._stored: Envelope | None = None

    def _mail_from(self, event: MailFrom) -> bool:
        self._reset()
        return super()._mail_from(event)

    # -- the message

    def _body(self, event: BodyChunk) -> bool:
        if isinstance(self._incoming, RefusedIncoming):
            return True
        rest = self._split(event.data)
        return super()._body(BodyChunk(rest)) if rest else True

    def _new_incoming(self) -> Incoming:
        context = self._context
        incoming = begin_incoming(context, tuple(self._recipients.entries))
        if isinstance(incoming, RefusedIncoming) or type(incoming).chunks is not Incoming.chunks:
            return incoming
        return KeptIncoming(incoming, str(context.config.data), context.budget)

    def _split(self, data: bytes) -> bytes:
        """Hold the header back; it counts in the budget."""
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = HeaderSplitter()
            self._lease = Lease(self._context.budget)
        if splitter.done:
            return data
        before = splitter.held
        rest = splitter.feed(data)
        if self._lease is not None and not self._lease.take(max(0, splitter.held - before)):
            self._incoming = RefusedIncoming(NoSpaceError("no memory for a header"))
        return rest

    def _end_of_message(self, event: EndOfMessage) -> bool:
        if event.received >= limits.RECEIVED_HOPS:
            raise MailLoopError
        if isinstance(self._incoming, RefusedIncoming):
            raise self._incoming.error
        self._tail = self._split(event.rest)
        if isinstance(self._incoming, RefusedIncoming):
            raise self._incoming.error
        splitter = self._splitter
        if splitter is None or splitter.too_large:
            raise HeaderTooLargeError
        event = self._clean_header(event, splitter.header)
        self._is_header = event.starts_with_header
        envelope = self._envelope(event)
        self._keep_tail()
        message = Message(
            self._session(),
            envelope.id.hex(),
            event.octets,
            self._make_body(event),
            self._distinct_preferences(),
        )
        return self._ask(self._chain.check(message), partial(self._checked, event, envelope))

    def _clean_header(self, event: EndOfMessage, header: bytes) -> EndOfMessage:
        """Remove fields that claim to be ours (RFC 8601 section 5)."""
        self._header = header
        self._message_id = find_message_id(header)
        if not event.starts_with_header:
            return event
        ours = self._chain.rules.authserv_id

        def is_forged(name: bytes, value: bytes) -> bool:
            return name in _OURS or (name == _RESULTS and is_ours(value, ours))

        cleaned = without(header, is_forged)
        if len(cleaned) == len(header):
            return event
        self._header = cleaned
        return event._replace(
            octets=event.octets - len(header) + len(cleaned),
            starts_with_header=look_at(cleaned + self._tail[:1000])[0],
        )

    def _keep_tail(self) -> None:
        """The last octets: appended to a message in pieces, or counted in memory."""
        lease = self._lease
        if self._incoming is None:
            if lease is not None and lease.take(len(self._tail)):
                return
            self._incoming = self._new_incoming()
        incoming = self._incoming
        if isinstance(incoming, RefusedIncoming):
            raise incoming.error
        incoming.write(self._tail)
        self._tail = b""

    def _make_body(self, event: EndOfMessage) -> Body:
        header, tail, incoming = self._header, self._tail, self._incoming
        if incoming is None:
            return Body(lambda: (header, tail), event.octets, event.stuffed_dots)
        threads = None if incoming.in_memory else self._context.threads

        def read() -> Any:
            yield header
            yield from incoming.chunks() or ()

        return Body(read, event.octets, event.stuffed_dots, threads)

    def _distinct_preferences(self) -> tuple[Preferences, ...]:
        distinct = tuple(dict.fromkeys(self._prefers))
        if len(distinct) > 1 and not self._service.settings.lmtp:
            return (NEVER_REFUSED,)
        return distinct

    # -- the verdict

    def _checked(
        self, event: EndOfMessage, envelope: Envelope, verdicts: dict[Preferences, Verdict]
    ) -> bool:
        distinct = set(verdicts.values())
        if len(distinct) > 1:
            return self._checked_apart(event, verdicts)
        verdict = distinct.pop()
        self._note(envelope, verdict)
        if verdict.refusal is not None:
            self._count_refusal(verdict.refusal)
            self._forget_message()
            return self._machine.answer(verdict.refusal)
        self._stored = self._changed(envelope, verdict)
        return self._store(envelope, self._tail)

    def _note(self, envelope: Envelope, verdict: Verdict) -> None:
        if verdict.note:
            self._context.log.line("filter", f"{envelope.id.hex()}: {clean(verdict.note)}")

    def _changed(self, envelope: Envelope, verdict: Verdict) -> Envelope:
        """The envelope for the layer: the header is in the trace, and the octets are those of the
        rest."""
        header = self._header
        octets = envelope.octets - len(header)
        trace = envelope.trace
        recipients = envelope.recipients
        if verdict is not ACCEPT:
            trace = self._fields(verdict) + trace
            if verdict.junk:
                self._context.row.add(Cell.FILTER_JUNK)
                recipients = junk_recipients(self._context, recipients, envelope.octets)
        if verdict.remove and self._is_header:
            header = remove(header, verdict.remove)
        return envelope._replace(trace=trace + header, recipients=recipients, octets=octets)

    def _fields(self, verdict: Verdict) -> bytes:
        found: list[bytes] = []
        for name, value in verdict.add:
            try:
                found.append(make_field(name, value))
            except FieldError as error:
                self._context.log.line("filter", f"warning: a field is left out: {error}")
        return b"".join(found)

    def _hand_over(self, envelope: Envelope, rest: bytes) -> None:
        stored = self._stored or envelope
        self._lease = None  # the layer counts it from now on
        done = partial(self._committed, envelope)
        incoming = self._incoming
        if incoming is None:
            self._context.layer.deliver(stored, rest, done)
        else:
            incoming.commit(stored, done)

    def _checked_apart(self, event: EndOfMessage, verdicts: dict[Preferences, Verdict]) -> bool:
        """Different verdicts: LMTP has one reply per recipient."""
        raise NotImplementedError

    def _forget_message(self) -> None:
        super()._forget_message()
        if not self._busy:
            self._reset()

    def _committed(self, envelope: Envelope, error: RefusedError | None) -> None:
        if self._committing is envelope:
            self._reset()
        super()._committed(envelope, error)
