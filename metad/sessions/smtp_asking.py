"""An SMTP or LMTP session that asks filters before the message: at connect, HELO, MAIL and RCPT.

Rules of this file:

* While a filter is being asked, the session is busy, as during a commit: it processes nothing else.
* If the client disconnects, the question is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, cast

from metad.errors import (
    DrainingError,
    MixedRecipientsError,
    RefusedError,
    Reply,
)
from metad.filters.base import Preferences, Session
from metad.filters.chain import FilterChain
from metad.protocol.smtp.machine import Event, MailFrom, RcptTo
from metad.sessions.smtp import SmtpSession
from metad.sessions.smtp_log import log_refusal, log_refused_commands
from metad.system.refusals import count_reason
from metad.system.shared_memory import Cell


class _Secured(Protocol):
    """The part of an ssl.SSLObject that shows the negotiated parameters."""

    def version(self) -> str | None: ...
    def cipher(self) -> tuple[str, str, int] | None: ...


class AskingSmtpSession(SmtpSession):
    """`_prefers`: the preferences of each accepted RCPT, in order."""

    __slots__ = ("_asking", "_greeted", "_helo_refusal", "_prefers")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asking: asyncio.Task[Any] | None = None
        self._greeted = 0  # the greeting about which the filters were asked, and their refusal
        self._helo_refusal: Reply | None = None
        self._prefers: list[Preferences] = []

    @property
    def _chain(self) -> FilterChain:
        return cast(FilterChain, self._context.filters)

    # -- asking

    def _ask(self, question: Coroutine[Any, Any, Any], then: Callable[[Any], bool]) -> bool:
        """`then` gets the answer later; it returns the same as a handler."""
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
        if self._machine.closed:  # the hub is shutting down
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
        if not (chain.sender or chain.greeted):
            return super()._mail_from(event)
        if self._machine.refusals:  # of the transaction before, in the same packet
            log_refused_commands(self)
        self._sender = event.sender
        return self._ask(self._ask_sender(), partial(self._sender_checked, event))

    async def _ask_sender(self) -> Reply | None:
        """A client refused at HELO stays refused until the next HELO."""
        chain, session = self._chain, self._session()
        if self._greeted != self._machine.greetings:
            self._greeted = self._machine.greetings
            self._helo_refusal = await chain.ask_greeted(session)
        return self._helo_refusal or await chain.ask_sender(session)

    def _sender_checked(self, event: MailFrom, refusal: Reply | None) -> bool:
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
        return self._ask(question, partial(self._recipient_checked, event, wishes))

    def _recipient_checked(self, event: RcptTo, wishes: Preferences, refusal: Reply | None) -> bool:
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

    def _count_refusal(self, refusal: Reply, event: Event | None = None) -> None:
        context = self._context
        count_reason(context.row, Cell.REFUSED_FILTER)
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
