"""One POP3 login attempt, from its turn among its network's attempts to its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from metad.sessions.context import WorkerContext
from metad.users.account import Account


class Guesser(Protocol):
    """The session of an attempt."""

    def attempt_decided(self, outcome: Account | Exception | None, decided: Decided) -> None: ...


class Attempt:
    """A login being checked.  Until its end, it holds one of its network's turns.

    `began`: when the check began, after all waiting.  `is_guess`: credentials have arrived, so a
    client that hangs up now has failed.
    """

    __slots__ = (
        "_check", "_context", "_has_turn", "_in_thread", "_network", "_session", "began",
        "is_guess",
    )  # fmt: skip

    def __init__(
        self,
        session: Guesser,
        context: WorkerContext,
        network: str,
        check: Check,
        *,
        is_guess: bool,
    ) -> None:
        self._session: Guesser | None = session
        self._context = context
        self._network = network
        self._check = check
        self._has_turn = False
        self._in_thread = False
        self.is_guess = is_guess
        self.began = 0.0

    def start(self) -> bool:
        """It is this attempt's turn.  False: the attempt is over, and the next one gets the
        turn."""
        if self._session is None:
            return False
        self._has_turn = True
        loop = self._context.loop
        delay = self._context.limiter.login_delay(self._network, loop.time())
        if delay:
            loop.call_later(delay, self._run)
        else:
            self._run()
        return True

    def _run(self) -> None:
        if self._session is not None:
            self.began = self._context.loop.time()
            self._check(self)

    def verify(self, work: Callable[[], Account | None], decided: Decided) -> None:
        """Check a password in a thread; `decided` is called on the loop, if the session lives."""
        loop = self._context.loop
        self._in_thread = True

        def run() -> None:
            outcome: Account | Exception | None
            began = time.thread_time()
            try:
                outcome = work()
            except Exception as error:
                outcome = error
            seconds = time.thread_time() - began
            loop.call_soon_threadsafe(self._verified, outcome, seconds, decided)

        self._context.threads.submit(run)

    def _verified(
        self, outcome: Account | Exception | None, seconds: float, decided: Decided
    ) -> None:
        self._in_thread = False
        self._context.limiter.note_check(seconds)
        session = self._session
        self.end()
        if session is not None:
            session.attempt_decided(outcome, decided)

    def end(self) -> bool:
        """Give the turn to the network's next login.  Returns whether this one was undecided."""
        undecided = self._session is not None
        self._session = None
        if self._has_turn and not self._in_thread:
            self._has_turn = False
            self._context.limiter.checked(self._network)
        return undecided


Check = Callable[[Attempt], None]
Decided = Callable[[Account | Exception | None], None]
