"""A POP3 session until its mailbox is open.

Rules of this file:

* Guessing is slow whatever the client does.  A network with recent failures waits before a password
  is checked, and only a few of its logins are checked at a time.  A client that hangs up before the
  answer has failed.
* A remembered login does not wait.
* The time of the answer reveals nothing: an unknown user, a disabled user and a wrong password are
  answered after the same time.  Only the log distinguishes them.
* While users may be missing here, they are all answered as a failure of ours.
* Passwords are checked in a thread.
"""

from __future__ import annotations

import binascii
import secrets
import time
from contextlib import suppress

from metad import limits
from metad.errors import (
    BehindError,
    DrainingError,
    LoginDelayError,
    MailboxInUseError,
    MetadError,
    RefusedError,
    UsersLostError,
)
from metad.layers.base import Maildrop
from metad.loglines import clean
from metad.protocol.pop3.auth import AUTH_FAILED
from metad.protocol.pop3.machine import Login, Personal, Pop3, ScramLogin, ScramUser
from metad.sessions.client import Client
from metad.sessions.connection import Connection, Service
from metad.sessions.pop3_attempt import Attempt, Check, Decided
from metad.system.shared_memory import Cell
from metad.users.account import Account
from metad.users.database import login_name

NONCE_OCTETS = 18
DAY = 86_400
# Why a login failed, as logged, and its counter.
UNKNOWN = "unknown user"
FAILURES = {
    UNKNOWN: Cell.LOGIN_UNKNOWN,
    "user disabled": Cell.LOGIN_DISABLED,
    "wrong password": Cell.LOGIN_WRONG,
    "the client hung up": Cell.LOGIN_GONE,
}


class Pop3Login(Connection):
    """One connection, up to login."""

    __slots__ = ("_attempt", "_drop", "_machine", "_mailbox", "_master", "_mechanism", "_user")
    _machine: Pop3
    _draining = DrainingError.pop3
    _crowded = "[SYS/TEMP] too many connections"
    _kicked = "[SYS/TEMP] ended by the administrator"

    def __init__(self, service: Service, client: Client | None = None) -> None:
        super().__init__(service, client)
        self._drop: Maildrop | None = None
        self._user = ""
        self._mechanism = "none"
        self._mailbox = ""
        self._master = ""
        self._attempt: Attempt | None = None

    # -- passwords

    def _login(self, event: Login) -> None:
        context = self._context
        self._mechanism = "PLAIN"
        user = self._login_names(event.user, event.master)
        account = context.logins.recall(user, event.password)
        if account is not None:
            self._admit(account)
            return

        def decided(outcome: Account | Exception | None) -> None:
            if isinstance(outcome, Account):
                context.logins.remember(user, event.password, outcome)
            self._decide(outcome)

        def check(attempt: Attempt) -> None:
            attempt.verify(lambda: context.users.verify(user, event.password), decided)

        self._begin_attempt(check, is_guess=True)

    def _login_names(self, user: str, master: str | None = None) -> str:
        """Note the mailbox's user, and the master user if one opens it.  Returns whose password is
        checked."""
        name = login_name(user, self._context.config.pop3.default_domain)
        self._mailbox = name
        self._user = clean(name)
        self._master = clean(master or "")
        return master or name

    # -- SCRAM

    def _scram_user(self, event: ScramUser) -> None:
        """Send the user's keys, or fake ones, so that the client does not learn which users
        exist."""
        self._mechanism = "SCRAM-SHA-256"
        name = self._login_names(event.user)

        def send_keys(attempt: Attempt) -> None:
            self._busy = False
            nonce = binascii.b2a_base64(secrets.token_bytes(NONCE_OCTETS), newline=False)
            try:
                _, keys = self._context.users.scram_keys(name)
            except MetadError as error:
                attempt.end()
                self._decide(error)
            else:
                self._machine.scram_keys(keys, nonce)
                self._go_on()

        self._begin_attempt(send_keys, is_guess=False)

    def _scram_login(self, event: ScramLogin) -> None:
        if self._attempt is not None:
            self._attempt.end()
            self._attempt.began = self._context.loop.time()
        account = None
        if event.proven:
            account = self._context.users.account(self._login_names(event.user, event.master))
        self._decide(None if account is None or account.disabled else account)

    # -- attempts

    def _begin_attempt(self, check: Check, *, is_guess: bool) -> None:
        """Call `check` when the network's turn comes and its delay has passed."""
        if self._attempt is not None:
            self._attempt.end()
        self._busy = True
        self._attempt = Attempt(self, self._context, self._network, check, is_guess=is_guess)
        self._context.limiter.check(self._network, self._attempt.start)

    def attempt_decided(self, outcome: Account | Exception | None, decided: Decided) -> None:
        """A thread has checked the password.  Whatever fails now, the client gets an answer."""
        self._busy = False
        try:
            decided(outcome)
        except Exception as error:
            self._log_failure(repr(error))
            self._machine.login_failed(RefusedError.pop3)
        self._go_on()

    def _decide(self, outcome: Account | Exception | None) -> None:
        """The outcome of a login: an account, wrong credentials (None), or our own failure."""
        if isinstance(outcome, Account):
            self._admit(outcome)
        elif outcome is None:
            self._login_failed()
        else:
            self._context.row.add(Cell.LOGIN_REFUSED)
            self._log_failure(str(outcome))
            self._machine.login_failed(RefusedError.pop3)

    def _admit(self, account: Account) -> None:
        """The credentials were right: open the account's mailbox, or the one that a master user
        requests, even if that user is disabled, so that mail can be moved away."""
        if not self._master:
            self._open(account)
            return
        wanted = self._context.users.account(self._mailbox)
        if wanted is None:
            self._login_failed()
            return
        self._context.log.event("pop3", "opened by a master user", self._who())
        self._open(wanted)

    def _login_failed(self) -> None:
        """Count a failure; every kind of failure is answered after the same time."""
        context, reason = self._context, self._why_wrong()
        lost = context.users.lost
        text = UsersLostError.pop3 if lost else AUTH_FAILED
        if lost and reason == UNKNOWN:
            context.row.add(Cell.LOGIN_REFUSED)
            context.limiter.login_failed(self._network, context.loop.time())  # as a wrong password
            self._log_failure(f"{text}: {reason}, and not all users are here")
        else:
            self._count_failure(reason)
        began = self._attempt.began if self._attempt is not None else context.loop.time()
        due = began + context.limiter.answer_after - context.loop.time()
        self._busy = True
        context.loop.call_later(max(due, 0.0), self._answer_failure, text)

    def _why_wrong(self) -> str:
        """Why the credentials were wrong, only for the log and the counters."""
        users = self._context.users
        account = users.account(self._master or self._user)
        if account is None or users.account(self._user) is None:
            return UNKNOWN
        return "user disabled" if account.disabled else "wrong password"

    def _count_failure(self, reason: str) -> None:
        context = self._context
        context.row.add(Cell.LOGIN_FAILURES)
        context.row.add(FAILURES[reason])
        context.limiter.login_failed(self._network, context.loop.time())
        self._log_failure(reason)

    def _answer_failure(self, text: str) -> None:
        self._busy = False
        if not self._ended:
            self._machine.login_failed(text)
            self._go_on()

    def _gone(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None and attempt.end() and attempt.is_guess:
            self._count_failure("the client hung up")

    # -- the mailbox

    def _open(self, account: Account, until: float = 0.0, asked_ns: int = 0) -> None:
        """Open the mailbox of an account that has logged in; `until`: how long to wait for it.

        `asked_ns`: all mail acknowledged before that is listed; 0: before now.
        """
        context = self._context
        asked_ns = asked_ns or time.monotonic_ns()
        delay = context.policies.login_delay(account)
        try:
            if delay and context.last_logins.too_soon(account.id, delay):
                raise LoginDelayError
            if context.layer.opens_later:
                self._open_later(account, until)
                return
            if context.layer.is_behind(account.id, asked_ns):
                self._wait_for_mail(account, until, asked_ns)
                return
            drop = self._drop = context.layer.open_mailbox(account.id)
        except Exception as error:
            self._busy = False
            self._not_opened(account, until, error)
        else:
            self._opened(account, drop, delay)

    def _open_later(self, account: Account, until: float) -> None:
        """Open the mailbox through a layer that must ask other nodes first."""
        self._busy = True

        def done(outcome: Maildrop | Exception) -> None:
            self._busy = False
            if isinstance(outcome, Exception):
                if not self._ended:
                    self._not_opened(account, until, outcome)
            elif self._ended:
                outcome.close()
            else:
                self._drop = outcome
                self._opened(account, outcome, self._context.policies.login_delay(account))
            if not self._ended:
                self._go_on()

        self._context.layer.open_later(account.id, done)

    def _opened(self, account: Account, drop: Maildrop, delay: int) -> None:
        context = self._context
        context.row.add(Cell.LOGINS)
        context.last_logins.note(account.id, at_once=bool(delay))
        expiry = context.policies.expiry(account)
        self._machine.login_ok(drop, Personal(expiry // DAY if expiry else None, delay))

    def _not_opened(self, account: Account, until: float, error: Exception) -> None:
        if isinstance(error, MailboxInUseError):
            self._wait_for_mailbox(account, until, error)
        elif isinstance(error, RefusedError):
            self._refuse_login(error)
        else:  # a layer's error: it affects only this login
            self._context.row.add(Cell.LOGIN_REFUSED)
            self._log_failure(repr(error))
            self._machine.login_failed(RefusedError.pop3)

    def _wait_for_mailbox(self, account: Account, until: float, error: MailboxInUseError) -> None:
        """Wait for a mailbox in use: two devices of one user may poll at the same time."""
        loop = self._context.loop
        until = until or loop.time() + limits.IN_USE_PATIENCE
        if loop.time() < until:
            self._busy = True
            loop.call_later(limits.IN_USE_RETRY, self._retry, account, until)
        else:
            self._refuse_login(error)

    def _wait_for_mail(self, account: Account, until: float, asked_ns: int) -> None:
        """Wait until all mail acknowledged before this login is in the index."""
        loop = self._context.loop
        until = until or loop.time() + limits.BEHIND_PATIENCE
        left = until - loop.time()
        if left > 0:
            self._busy = True
            delay = max((limits.BEHIND_PATIENCE - left) / 4, limits.BEHIND_RETRY)
            delay = min(delay, limits.BEHIND_RETRY_MOST)
            loop.call_later(delay, self._retry, account, until, asked_ns)
        else:
            self._refuse_login(BehindError())

    def _retry(self, account: Account, until: float, asked_ns: int = 0) -> None:
        self._busy = False
        if not self._ended:
            self._open(account, until, asked_ns)
            self._go_on()

    def _refuse_login(self, error: RefusedError) -> None:
        self._context.row.add(Cell.LOGIN_REFUSED)
        # The client may know that it must wait; the reason is for the operator.
        self._log_failure(f"{error.pop3}: {clean(str(error))}" if str(error) else error.pop3)
        self._machine.login_failed(error.pop3)

    def _close_drop(self) -> None:
        drop, self._drop = self._drop, None
        if drop is not None:
            with suppress(Exception):  # a layer's
                drop.close()

    def _who(self) -> dict[str, object]:
        """The fields with which every line of a session begins."""
        master = {"master": self._master} if self._master else {}
        return {
            "client": self._client,
            "user": self._user,
            **master,
            "tls": self._tls,
            "mech": self._mechanism,
        }

    def _log_failure(self, reason: str) -> None:
        """A login failed; equal lines of a network are summed up."""
        fields = self._who() | {"reason": reason}
        self._context.log.limited(self._network, "pop3", "login failed", fields)

    def _log(self, text: str) -> None:
        line = f"client={self._client}, user=<{self._user}>: {text}"
        self._context.log.limited_line(self._network, "pop3", line)
