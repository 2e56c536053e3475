"""A POP3 session on the loop: the machine's events to users and layer.

Rules of this file:

* Nothing blocks here: passwords that are not remembered are checked in a thread, and so are
  messages read that the page cache does not have.
* A client that does not read is not served further: no more than one message waits for it, and
  less when memory is short.  One that sends far ahead is not read from.
* A dropped connection deletes nothing: only the machine's Quit leads to a deletion.
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from metad import limits
from metad.errors import DrainingError, LoginDelayError, MetadError, RefusedError
from metad.layers.base import Maildrop
from metad.loglines import clean
from metad.protocol.pop3.machine import (
    Event,
    Login,
    Personal,
    Pop3,
    Pop3Settings,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.sessions.connection import Connection, Service
from metad.sessions.context import Client
from metad.system.osio import Buffer
from metad.system.shared_memory import Cell
from metad.users.database import Account, login_name

TOO_MANY = b"-ERR [SYS/TEMP] too many connections\r\n"
NONCE_OCTETS = 18
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Pop3Service(Service):
    """A listener for POP3.  `settings(readable)`: whether a password may come readably, TLS."""

    settings: Callable[[bool, bool], Pop3Settings]
    plaintext: str

    def settings_for(self, client: Client, *, tls: bool) -> Pop3Settings:
        near = self.plaintext == "loopback" and client.near
        return self.settings(tls or near or self.plaintext == "always", tls)

    def make(self, client: Client | None = None) -> Pop3Session:
        return Pop3Session(self, client)


class Pop3Session(Connection):
    """One connection."""

    __slots__ = (
        "_drop", "_last", "_machine", "_progress", "_retrieved", "_stream", "_topping", "_user",
    )  # fmt: skip
    _machine: Pop3
    _service: Pop3Service

    def __init__(self, service: Pop3Service, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._drop: Maildrop | None = None
        self._user = ""
        self._retrieved = 0
        self._topping = False
        self._stream: Iterator[Buffer] | None = None
        # As of the last look at the deadlines: commands answered, octets not yet sent, and since
        # when these are the same.
        self._progress = (0, 0)
        self._last = self._context.now

    # -- the transport's side

    def _set_up(self, client: Client, *, secure: bool) -> None:
        self._machine = Pop3(self._service.settings_for(client, tls=secure), tls=secure)

    def _greet(self) -> None:
        self._machine.start()
        if self._context.draining:
            self._machine.fail(DrainingError.pop3)
        self._advance()

    def _upgraded(self) -> None:
        client = cast(Client, self._known)
        self._machine.tls_started(self._service.settings_for(client, tls=True))
        if self._context.draining:
            self._machine.fail(DrainingError.pop3)
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._machine.receive(data)
        if self._busy:
            self._count_waiting()
        else:
            self._advance()

    def eof_received(self) -> bool:
        machine = self._machine
        machine.eof()
        self._advance()
        # Behind TLS there is no half of a connection to keep open.
        return not (machine.closed or machine.tls)

    def _gone(self) -> None:
        if not self._busy:
            self._close_drop()
        self._machine.fail("connection lost")

    def pause_writing(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resumed(self) -> None:
        if self._stream is not None and not self._busy:
            self._next_piece()
        self._advance()

    # -- the worker's side

    def expire(self, now: float) -> None:
        """A command, or octets that the client takes, are progress; half a command is none."""
        progress = (self._machine.commands, self._transport.get_write_buffer_size())
        if self._busy or progress != self._progress:
            self._progress = progress
            self._last = now
            return
        if now - self._last > self._patience():
            self._machine.fail("session timed out")
            self._flush()
            if self._paused:
                self._transport.abort()

    def _patience(self) -> int:
        """Seconds without any progress."""
        if self._paused and self._context.gate.is_crowded:
            return limits.CROWDED_GRACE
        return limits.POP3_IDLE if self._machine.authorized else limits.POP3_LOGIN_IDLE

    def drain(self) -> None:
        if not self._machine.authorized and not self._busy:
            self._machine.fail(DrainingError.pop3)
            self._flush()

    # -- events

    def _advance(self) -> None:
        """Carry out every event that is there, then write all answers at once."""
        machine = self._machine
        while not self._busy and not self._paused and self._stream is None:
            event = machine.next_event()
            if event is None:
                if not machine.full:
                    break
                self._flush()
                continue
            self._carry_out(event)
        self._flush()

    def _flush(self) -> None:
        machine = self._machine
        if machine.output:
            self._transport.writelines(machine.take_output())
        if machine.closed:
            self._close_drop()
            self._end(abrupt=machine.abrupt)
        elif self._busy or self._paused or self._waits:
            self._count_waiting()

    @property
    def _is_blocked(self) -> bool:
        return self._busy or self._paused or self._stream is not None

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, Retrieve):
            self._retrieve(event.number)
        elif isinstance(event, Login):
            self._login(event)
        elif isinstance(event, Quit):
            self._quit(event)
        elif isinstance(event, Top):
            self._top(event.number)
        elif isinstance(event, ScramUser):
            self._scram_user(event)
        elif isinstance(event, ScramLogin):
            self._scram_login(event)
        elif isinstance(event, StartTls):
            # The +OK goes out in the clear, and is the last that does.
            self._flush()
            self._start_tls()

    def _off_the_loop(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do `work` in a thread, then `then` with its result, or its exception, on the loop."""
        context = self._context
        self._busy = True

        def finished(outcome: Any) -> None:
            self._busy = False
            if self._transport.is_closing():
                self._close_drop()
                if isinstance(outcome, Maildrop):
                    outcome.close()
                return
            then(outcome)
            self._advance()

        def run() -> None:
            try:
                outcome = work()
            except Exception as error:
                outcome = error
            context.loop.call_soon_threadsafe(finished, outcome)

        context.threads.submit(run)

    # -- login

    def _login(self, event: Login) -> None:
        context = self._context
        user = self._login_name(event.user)
        account = context.logins.recall(user, event.password)
        if account is not None:
            self._open(account)
            return

        def verified(outcome: Account | Exception | None) -> None:
            if isinstance(outcome, Account):
                context.logins.remember(user, event.password, outcome)
                self._open(outcome)
            elif isinstance(outcome, Exception):
                self._log(f"user=<{self._user}>: login failed: {outcome}")
                self._machine.login_failed(RefusedError.pop3)
            else:
                self._login_failed()

        def check() -> bool:
            if self._ended:  # while it waited for its turn
                self._busy = False
                return False
            self._off_the_loop(verify, verified)
            return True

        def verify() -> Account | None:
            try:
                return context.users.verify(user, event.password)
            finally:
                context.loop.call_soon_threadsafe(context.gate.checked, self._network)

        self._busy = True
        context.gate.check(self._network, check)

    def _login_name(self, user: str) -> str:
        name = login_name(user, self._context.config.pop3.default_domain)
        self._user = clean(name)
        return name

    def _scram_user(self, event: ScramUser) -> None:
        """The user's keys, or made-up ones: who asks does not learn who exists."""
        nonce = binascii.b2a_base64(secrets.token_bytes(NONCE_OCTETS), newline=False)
        try:
            _, keys = self._context.users.scram_keys(self._login_name(event.user))
        except MetadError as error:
            self._log(f"user=<{self._user}>: login failed: {error}")
            self._machine.login_failed(RefusedError.pop3)
        else:
            self._machine.scram_keys(keys, nonce)

    def _scram_login(self, event: ScramLogin) -> None:
        account = None
        if event.proven:
            account = self._context.users.account(self._login_name(event.user))
        if account is None or account.disabled:
            self._login_failed()
        else:
            self._open(account)

    def _login_failed(self) -> None:
        """The answer waits, the longer the more logins of this network have failed lately."""
        context = self._context
        context.row.add(Cell.LOGIN_FAILURES)
        delay = context.gate.failure_delay(self._network, context.loop.time())
        self._log(f"user=<{self._user}>: authentication failed, answered in {delay:g} s")
        self._busy = True
        context.loop.call_later(delay, self._answer_failure)

    def _answer_failure(self) -> None:
        self._busy = False
        if not self._ended:
            self._machine.login_failed()
            self._advance()

    def _open(self, account: Account) -> None:
        context = self._context
        delay = context.policies.login_delay(account)
        try:
            if delay and context.last_logins.too_soon(account.id, delay):
                raise LoginDelayError
            self._drop = context.layer.open_mailbox(account.id)
        except RefusedError as error:
            self._log(f"user=<{self._user}>: {error.pop3}")
            self._machine.login_failed(error.pop3)
            return
        except Exception as error:  # a layer's: it costs this login, no more
            self._log(f"user=<{self._user}>: {error!r}")
            self._machine.login_failed(RefusedError.pop3)
            return
        context.row.add(Cell.LOGINS)
        context.last_logins.note(account.id, at_once=bool(delay))
        expiry = context.policies.expiry(account)
        self._machine.login_ok(self._drop, Personal(expiry // DAY if expiry else None, delay))

    # -- messages

    def _retrieve(self, number: int) -> None:
        drop = cast(Maildrop, self._drop)
        if self._must_stream(number):
            self._begin_stream(number, top=False)
            return
        try:
            chunks = drop.fetch(number, wait=False)
        except Exception as error:
            self._refuse(number, error)
            return
        if chunks is not None:
            self._send(number, chunks)
        else:
            self._off_the_loop(
                lambda: drop.fetch(number, wait=True),
                lambda outcome: self._fetched(number, outcome),
            )

    def _must_stream(self, number: int) -> bool:
        """While memory is short no message but a small one is fetched whole."""
        context, drop = self._context, cast(Maildrop, self._drop)
        return context.waiting.is_short and drop.size(number) > limits.PIECE_GIVEN

    def _fetched(self, number: int, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            self._refuse(number, outcome)
        elif outcome is not None:
            self._send(number, outcome)
        else:
            self._begin_stream(number, top=False)

    def _send(self, number: int, chunks: Any) -> None:
        self._machine.message(chunks)
        self._retrieved += 1
        row = self._context.row
        row.add(Cell.RETRIEVED)
        row.add(Cell.RETRIEVED_OCTETS, cast(Maildrop, self._drop).size(number))

    def _refuse(self, number: int, error: Exception) -> None:
        text = error.pop3 if isinstance(error, RefusedError) else RefusedError.pop3
        self._context.row.add(Cell.DAMAGED)
        self._log(f"user=<{self._user}>: message {number}: {error}")
        self._machine.refused(text)

    def _top(self, number: int) -> None:
        drop = cast(Maildrop, self._drop)
        if self._must_stream(number):
            self._begin_stream(number, top=True)
            return

        def fetched(outcome: Any) -> None:
            if isinstance(outcome, Exception):
                self._refuse(number, outcome)
            elif outcome is not None:
                self._machine.top([bytes(chunk) for chunk in outcome])
            else:
                self._begin_stream(number, top=True)

        try:
            chunks = drop.fetch(number, wait=False)
        except Exception as error:
            fetched(error)
            return
        if chunks is not None:
            fetched(chunks)
        else:
            self._off_the_loop(lambda: drop.fetch(number, wait=True), fetched)

    # -- large messages, piece by piece

    def _begin_stream(self, number: int, *, top: bool) -> None:
        """Verify a large message in a thread, then send a piece whenever the last has gone."""
        stream = cast(Maildrop, self._drop).stream(number)

        def first(outcome: Any) -> None:
            if isinstance(outcome, Exception):
                self._refuse(number, outcome)
                return
            if not top:
                self._machine.message_begin()
            self._stream = stream
            self._topping = top
            self._piece(outcome)

        self._off_the_loop(lambda: next(stream), first)

    def _next_piece(self) -> None:
        stream = self._stream
        if stream is not None:
            self._off_the_loop(lambda: next(stream, None), self._piece)

    def _piece(self, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            # Half of a message is out and its log cannot be read: only a hang-up says so.
            self._log(f"user=<{self._user}>: {outcome}")
            self._transport.abort()
            return
        self._last = self._context.now
        if outcome is None or self._give(bytes(outcome)):
            self._end_stream()
            return
        self._flush()
        if not self._paused:
            self._next_piece()

    def _give(self, piece: bytes) -> bool:
        """Hand octets to the machine.  True: it needs no more of this message."""
        if not self._topping:
            self._machine.message_chunk(piece)
            return False
        self._machine.top([piece])
        return self._machine.top_done

    def _end_stream(self) -> None:
        self._close_stream()
        if not self._topping:
            self._machine.message_end()
        self._retrieved += 1

    def _close_stream(self) -> None:
        """Let go of the log that a large message is read from."""
        stream, self._stream = self._stream, None
        if isinstance(stream, Generator):
            stream.close()

    # -- the end

    def _quit(self, event: Quit) -> None:
        drop = cast(Maildrop, self._drop)
        deleted = len(event.deleted)
        self._busy = True

        def done(error: RefusedError | None) -> None:
            self._busy = False
            if error is None:
                self._context.row.add(Cell.DELETED, deleted)
                self._log(f"user=<{self._user}>: retr={self._retrieved}, del={deleted}")
                self._machine.quit_done()
            else:
                self._log(f"user=<{self._user}>: deletions failed: {error}")
                self._machine.quit_failed()
            self._close_drop()
            if not self._transport.is_closing():
                self._advance()

        try:
            drop.delete(event.deleted, done)
        except Exception as error:
            done(RefusedError(f"{error!r}"))

    def _close_drop(self) -> None:
        if self._stream is not None:
            self._close_stream()
        drop, self._drop = self._drop, None
        if drop is not None:
            with suppress(Exception):  # a layer's
                drop.close()

    def _log(self, text: str) -> None:
        self._context.log.line("pop3", f"client={self._client}, {text}")
