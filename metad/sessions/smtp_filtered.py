"""The session of a hub with filters.  A hub without filters loads none of this.

LMTP has one reply per recipient, so recipients with different verdicts get separate messages.
Everything else is in the two base classes.

    connect, HELO, MAIL, RCPT: smtp_asking    the message: smtp_checked    verdicts apart: here
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from metad.errors import (
    QueuedReply,
    RefusedError,
    Reply,
)
from metad.filters.base import Preferences, Verdict
from metad.layers.base import Envelope, Incoming
from metad.loglines import clean
from metad.protocol.smtp.machine import BodyChunk, EndOfMessage, MailFrom, RcptTo
from metad.sessions.incoming import RefusedIncoming
from metad.sessions.smtp import HANDLERS
from metad.sessions.smtp_checked import CheckedSmtpSession
from metad.sessions.smtp_log import log_message
from metad.system.refusals import count_refusal
from metad.system.shared_memory import Cell


class FilteredSmtpSession(CheckedSmtpSession):
    """One connection.  `_groups`: the reply for each group of recipients, once known."""

    __slots__ = ("_groups",)

    def _reset(self) -> None:
        super()._reset()
        self._groups: dict[Preferences, Reply | None] = {}

    # -- LMTP: verdicts that differ

    def _checked_apart(self, event: EndOfMessage, verdicts: dict[Preferences, Verdict]) -> bool:
        """Each group of recipients with the same verdict gets its own message."""
        return self._ask(self._copies(verdicts), partial(self._deliver_apart, event, verdicts))

    async def _copies(self, verdicts: dict[Preferences, Verdict]) -> list[Incoming | None]:
        """Make a copy of the layer's part for every accepting group."""
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
            reply: Reply = getattr(error, "smtp", RefusedError.smtp)
            self._groups[wish] = reply
            count_refusal(self._context.row, reply)
        status = "stored" if error is None else f"deferred ({clean(str(error))})"
        log_message(self, envelope, name, status)
        # `_deliver_apart` answers while it is running.
        if self._asking is None and self._busy and self._answer_groups() and not self._ended:
            self._go_on()

    def _answer_groups(self) -> bool:
        """Answer once every group is decided.  Returns whether there is more to do."""
        if not self._busy or any(reply is None for reply in self._groups.values()):
            return False
        replies = [self._groups[wish] for wish in self._prefers]
        self._busy = False
        self._reset()
        self._machine.answer_each([one for one in replies if one is not None])
        return True

    _handlers: ClassVar[dict[type, Callable[[Any, Any], bool]]] = {
        **HANDLERS,
        MailFrom: CheckedSmtpSession._mail_from,
        RcptTo: CheckedSmtpSession._recipient,
        BodyChunk: CheckedSmtpSession._body,
        EndOfMessage: CheckedSmtpSession._end_of_message,
    }
