"""An SMTP or LMTP session on a hub that has filters: the same, and they are asked.

A hub without filters has none of this: its sessions are of the class that this one extends.

    arrival -> header split off, forged fields removed -> judged -> fields added -> layer

Rules of this file:

* While a filter is asked the session is busy, as during a commit: nothing else of it is carried
  out, no log is held, and the message counts in the worker's budget.
* The header is held here until the verdict and goes to the layer in `Envelope.trace`, in wire
  format; the layer's part of the message is the rest.  So every change to it comes before the
  checksum of the record.
* A client that goes away takes its question back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Protocol, cast

from metad import limits
from metad.budget import Lease
from metad.errors import (
    DrainingError,
    HeaderTooLargeError,
    MailLoopError,
    MixedRecipientsError,
    NoSpaceError,
    QueuedReply,
    RefusedError,
    Reply,
)
from metad.filters.authentication import NAME as RESULTS
from metad.filters.authentication import is_ours
from metad.filters.base import ACCEPT, Message, Preferences, Session, Verdict
from metad.filters.body import Body
from metad.filters.chain import FilterChain
from metad.filters.fields import FieldError, HeaderSplitter, make_field, remove, without
from metad.filters.rspamd import SCORE_FIELD, SPAM_FIELD, UNCHECKED_FIELD
from metad.layers.base import Envelope, Incoming
from metad.layers.kept import KeptIncoming
from metad.loglines import clean
from metad.protocol.headers import look_at
from metad.protocol.smtp.machine import BodyChunk, EndOfMessage, Event, MailFrom, RcptTo
from metad.sessions.filters import junk_recipients
from metad.sessions.incoming import RefusedIncoming
from metad.sessions.incoming import begin as begin_incoming
from metad.sessions.message_id import find_message_id
from metad.sessions.smtp import HANDLERS, SmtpSession
from metad.sessions.smtp_log import log_message, log_refusal
from metad.system.shared_memory import Cell

# What only a filter of ours may say.
_RESULTS = RESULTS.lower().encode()
_OURS = frozenset(name.lower().encode() for name in (SPAM_FIELD, SCORE_FIELD, UNCHECKED_FIELD))
# Of recipients that have different preferences in one message: marked, not refused, by its score.
NEVER_REFUSED = Preferences(refuse=1e9)


class _Secured(Protocol):
    """An ssl.SSLObject, as far as it tells what was agreed."""

    def version(self) -> str | None: ...
    def cipher(self) -> tuple[str, str, int] | None: ...


class FilteredSmtpSession(SmtpSession):
    """One connection."""

    __slots__ = (
        "_asking", "_greeted", "_groups", "_header", "_lease", "_prefers", "_splitter", "_stored",
        "_tail",
    )  # fmt: skip

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asking: asyncio.Task[Any] | None = None
        self._greeted = 0  # which greeting the filters have been asked about
        self._prefers: list[Preferences] = []  # of each accepted RCPT, in order
        self._reset()

    def _reset(self) -> None:
        self._splitter: HeaderSplitter | None = None
        self._lease: Lease | None = None
        self._header = b""
        self._tail = b""
        self._stored: Envelope | None = None
        self._groups: dict[Preferences, Reply | None] = {}

    @property
    def _chain(self) -> FilterChain:
        return cast(FilterChain, self._context.filters)

    # -- asking

    def _ask(self, question: Coroutine[Any, Any, Any], then: Callable[[Any], bool]) -> bool:
        """`then` gets the answer, later; what it returns is what a handler returns."""
        self._busy = True
        task = self._asking = self._context.loop.create_task(question)
        task.add_done_callback(partial(self._answered, then))
        return False

    def _answered(self, then: Callable[[Any], bool], task: asyncio.Task[Any]) -> None:
        if self._asking is not task or task.cancelled():
            return
        self._asking = None
        self._busy = False
        try:
            more = then(task.result())
        except RefusedError as error:
            self._refused(error)
            more = True
        except Exception as error:
            self._refused(RefusedError(f"{error!r}"))
            more = True
        machine = self._machine
        if self._context.draining and not (self._busy or machine.in_transaction):
            machine.fail(DrainingError.smtp)
            more = True
        if self._ended:
            return
        if more:
            self._go_on()
        else:
            self._flush()

    def _gone(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            self._busy = False
        super()._gone()

    # -- before the message

    def _start(self) -> None:
        if not self._chain.connected:
            super()._start()
            return
        self._ask(self._chain.ask_connected(self._session()), self._connected)

    def _connected(self, refusal: Reply | None) -> bool:
        if self._machine.closed:  # the hub shuts down
            return True
        if refusal is None:
            super()._start()
            return True
        self._count_refusal(refusal)
        self._machine.fail(
            Reply(554, refusal.enhanced, refusal.text)
            if refusal.code != 421 and refusal.code >= 500
            else Reply(421, refusal.enhanced, refusal.text)
        )
        return True

    def _mail_from(self, event: MailFrom) -> bool:
        chain = self._chain
        self._prefers = []
        self._reset()
        greeted = self._machine.greetings != self._greeted
        self._greeted = self._machine.greetings
        if not (chain.sender or (greeted and chain.greeted)):
            return super()._mail_from(event)
        self._sender = event.sender
        question = chain.ask_sender(self._session(), greeted=greeted)
        return self._ask(question, partial(self._sender_judged, event))

    def _sender_judged(self, event: MailFrom, refusal: Reply | None) -> bool:
        if refusal is None:
            return super()._mail_from(event)
        self._count_refusal(refusal, event)
        return self._machine.answer(refusal)

    def _recipient(self, event: RcptTo) -> bool:
        context = self._context
        accounts = context.users.expand(event.address)
        wishes = context.policies.preferences(accounts)
        mixed = self._prefers and wishes != self._prefers[0] and not self._service.settings.lmtp
        if mixed and self._chain.rules.mixed_defer:
            raise MixedRecipientsError(event.address)
        if not self._chain.recipient:
            return self._accept(event, wishes)
        question = self._chain.ask_recipient(self._session(), event.address)
        return self._ask(question, partial(self._recipient_judged, event, wishes))

    def _recipient_judged(self, event: RcptTo, wishes: Preferences, refusal: Reply | None) -> bool:
        if refusal is None:
            return self._accept(event, wishes)
        self._count_refusal(refusal, event)
        more = self._machine.answer(refusal)
        self._slow_down()
        return more

    def _accept(self, event: RcptTo, wishes: Preferences) -> bool:
        more = super()._recipient(event)
        self._prefers.append(wishes)
        return more

    # -- the message

    def _body(self, event: BodyChunk) -> bool:
        if isinstance(self._incoming, RefusedIncoming):
            return True
        rest = self._split(event.data)
        return super()._body(BodyChunk(rest)) if rest else True

    def _new_incoming(self) -> Incoming:
        context = self._context
        incoming = begin_incoming(context)
        if isinstance(incoming, RefusedIncoming) or type(incoming).chunks is not Incoming.chunks:
            return incoming
        return KeptIncoming(incoming, str(context.config.data), context.budget)

    def _split(self, data: bytes) -> bytes:
        """Hold the header back; it counts."""
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
        envelope = self._envelope(event)
        self._keep_tail()
        message = Message(
            self._session(),
            envelope.id.hex(),
            event.octets,
            self._make_body(event),
            self._distinct_preferences(),
        )
        return self._ask(self._chain.judge(message), partial(self._judged, event, envelope))

    def _clean_header(self, event: EndOfMessage, header: bytes) -> EndOfMessage:
        """Take out what claims to be ours (RFC 8601 section 5)."""
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
        """The last octets: with the others of a message in pieces, or counted in memory."""
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

    def _judged(
        self, event: EndOfMessage, envelope: Envelope, verdicts: dict[Preferences, Verdict]
    ) -> bool:
        distinct = set(verdicts.values())
        if len(distinct) > 1:
            return self._judged_apart(event, verdicts)
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
        """As it goes to the layer: the header in the trace, the octets those of the rest."""
        header = self._header
        trace = envelope.trace
        recipients = envelope.recipients
        if verdict is not ACCEPT:
            trace = self._fields(verdict) + trace
            if verdict.junk:
                self._context.row.add(Cell.FILTER_JUNK)
                recipients = junk_recipients(self._context, recipients, envelope.octets)
        changed = remove(header, verdict.remove) if verdict.remove else header
        return envelope._replace(
            trace=trace + changed, recipients=recipients, octets=envelope.octets - len(header)
        )

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
        self._lease = None  # from now on the layer counts it
        done = partial(self._committed, envelope)
        incoming = self._incoming
        if incoming is None:
            self._context.layer.deliver(stored, rest, done)
        else:
            incoming.commit(stored, done)

    # -- LMTP: verdicts that differ

    def _judged_apart(self, event: EndOfMessage, verdicts: dict[Preferences, Verdict]) -> bool:
        """Each group of recipients with the same verdict gets a message of its own."""
        return self._ask(self._copies(verdicts), partial(self._deliver_apart, event, verdicts))

    async def _copies(self, verdicts: dict[Preferences, Verdict]) -> list[Incoming | None]:
        """A copy of the layer's part for every group that accepts."""
        accepting = sum(verdict.refusal is None for verdict in verdicts.values())
        incoming = self._incoming
        if incoming is None:
            return [None] * accepting
        copies: list[Incoming | None] = [incoming] if accepting else []
        try:
            while len(copies) < accepting:
                copies.append(await self._copy(incoming))
        except BaseException:
            for copy in copies[1:]:
                if copy is not None:
                    copy.abort()
            raise
        return copies

    async def _copy(self, incoming: Any) -> Incoming:
        context = self._context
        copy = self._new_incoming()
        if isinstance(copy, RefusedIncoming):
            raise copy.error
        chunks = iter(incoming.chunks())
        try:
            if incoming.in_memory:
                for chunk in chunks:
                    copy.write(chunk)
                return copy
            while True:
                piece = await context.loop.run_in_executor(context.threads, next, chunks, None)
                if piece is None:
                    return copy
                copy.write(bytes(piece))
        except BaseException:
            copy.abort()
            raise

    def _deliver_apart(
        self,
        event: EndOfMessage,
        verdicts: dict[Preferences, Verdict],
        copies: list[Incoming | None],
    ) -> bool:
        if not copies:
            self._forget_message()
        tail = self._tail
        self._lease = None
        self._incoming = None
        self._busy = True
        self._groups = {wish: verdict.refusal for wish, verdict in verdicts.items()}
        for wish, verdict in verdicts.items():
            if verdict.refusal is None:
                self._deliver_group(event, wish, verdict, tail, copies.pop())
            else:
                self._count_refusal(verdict.refusal)
        return self._answer_groups()

    def _deliver_group(
        self,
        event: EndOfMessage,
        wish: Preferences,
        verdict: Verdict,
        tail: bytes,
        incoming: Incoming | None,
    ) -> None:
        envelope = self._envelope(event)
        mailboxes = self._mailboxes_of(wish)
        envelope = envelope._replace(
            recipients=tuple(one for one in envelope.recipients if one.mailbox in mailboxes)
        )
        self._note(envelope, verdict)
        done = partial(self._group_committed, wish, envelope)
        if not envelope.recipients:  # all of them are in a group before
            self._groups[wish] = QueuedReply(envelope.id.hex())
            if incoming is not None:
                incoming.abort()
            return
        try:
            changed = self._changed(envelope, verdict)
            if incoming is None:
                self._context.layer.deliver(changed, tail, done)
            else:
                incoming.commit(changed, done)
        except Exception as error:
            if incoming is not None:
                incoming.abort()
            done(error if isinstance(error, RefusedError) else RefusedError(f"{error!r}"))

    def _mailboxes_of(self, wish: Preferences) -> set[int]:
        policies = self._context.policies
        users = self._context.users
        return {
            one.mailbox
            for one in self._recipients.entries.values()
            if policies.preferences(users.expand(one.address)) == wish
        }

    def _group_committed(
        self, wish: Preferences, envelope: Envelope, error: RefusedError | None
    ) -> None:
        if self._groups.get(wish) is not None:
            return
        name = envelope.id.hex()
        cells = self._context.row.cells
        if error is None:
            cells[Cell.MESSAGES] += 1
            cells[Cell.MESSAGE_OCTETS] += envelope.octets
            cells[Cell.RECIPIENTS] += len(envelope.recipients)
            self._groups[wish] = QueuedReply(name)
        else:
            cells[Cell.REFUSED] += 1
            self._groups[wish] = getattr(error, "smtp", RefusedError.smtp)
        status = "stored" if error is None else f"deferred ({clean(str(error))})"
        log_message(self, envelope, status)
        # While `_deliver_apart` is at work it answers.
        if self._asking is None and self._busy and self._answer_groups() and not self._ended:
            self._go_on()

    def _answer_groups(self) -> bool:
        """Answer once every group is decided; whether there is more to do."""
        if not self._busy or any(reply is None for reply in self._groups.values()):
            return False
        replies = [self._groups[wish] for wish in self._prefers]
        self._busy = False
        self._reset()
        self._machine.answer_each([one for one in replies if one is not None])
        return True

    # -- small things

    def _forget_message(self) -> None:
        super()._forget_message()
        if not self._busy:
            self._reset()

    def _committed(self, envelope: Envelope, error: RefusedError | None) -> None:
        if self._committing is envelope:
            self._reset()
        super()._committed(envelope, error)

    def _count_refusal(self, refusal: Reply, event: Event | None = None) -> None:
        context = self._context
        context.row.add(Cell.REFUSED)
        context.row.add(Cell.FILTER_REFUSED)
        log_refusal(self, refusal, event, "filter")

    def _session(self) -> Session:
        machine = self._machine
        secured: _Secured | None = None
        if machine.tls:
            secured = self._transport.get_extra_info("ssl_object")
        cipher = secured.cipher() if secured is not None else None
        return Session(
            self._client,
            "lmtp" if self._service.settings.lmtp else "smtp",
            machine.helo.decode("utf-8", "replace"),
            (secured.version() or "") if secured is not None else "",
            cipher[0] if cipher else "",
            self._sender,
            tuple(one.address for one in self._recipients.entries.values()),
        )

    _handlers: ClassVar[dict[type, Callable[[Any, Any], bool]]] = {
        **HANDLERS,
        MailFrom: _mail_from,
        RcptTo: _recipient,
        BodyChunk: _body,
        EndOfMessage: _end_of_message,
    }
