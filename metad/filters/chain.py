"""All filters of a worker, as its sessions see them: in order, with a deadline and failures
handled.

Rules of this file:

* The first refusal wins, and later filters are not asked.
* A failing filter never decides: filter.failure does, and its circuit breaker stops further
  requests.
* No exception of a filter leaves this file, except CancelledError: the client has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from metad.errors import Reply
from metad.filters.base import (
    ACCEPT,
    Answer,
    Filter,
    Message,
    Preferences,
    Session,
    Verdict,
)
from metad.filters.breaker import Breaker
from metad.filters.fields import make_field
from metad.filters.rspamd import unchecked

T = TypeVar("T")

NOT_CHECKED = Reply(451, "4.7.1", "The message could not be checked, try again later")
NOT_ASKED = Reply(451, "4.7.1", "Try again later")
_NOTHING: Verdict = Verdict()


class Rules(NamedTuple):
    """Of the table [filter]: `deadline` in seconds; `defer`: an unchecked message gets a 451."""

    deadline: float
    defer: bool
    authserv_id: str
    junk: str
    mixed_defer: bool


class FailedError(Exception):
    """The filter did not answer as it should; the text is for the log."""


class Guarded:
    """One filter with its deadline and its breaker."""

    def __init__(self, filter_: Filter, chain: FilterChain) -> None:
        self.filter = filter_
        self.breaker = Breaker()
        self._chain = chain

    async def ask(self, call: Callable[[], Any]) -> Any:
        """The answer, awaited if need be.  Raises FailedError."""
        chain = self._chain
        if not self.breaker.allows(chain.now()):
            raise FailedError("not asked: it failed too often")
        probe = self.breaker.is_open
        try:
            async with asyncio.timeout(chain.rules.deadline):
                answer = call()
                if isinstance(answer, Awaitable):
                    answer = await answer
        except asyncio.CancelledError:
            if _is_cancelled():
                self.breaker.abandoned(probe=probe)
                raise
            raise self._failed("it was cancelled", probe=probe) from None
        except TimeoutError:
            reason = f"no answer within {chain.rules.deadline:g} s"
            raise self._failed(reason, probe=probe) from None
        except Exception as error:
            raise self._failed(str(error) or repr(error), probe=probe) from None
        if self.breaker.succeeded():
            chain.report(f"{self.filter.name}: answers again")
        return answer

    def _failed(self, reason: str, *, probe: bool) -> FailedError:
        chain = self._chain
        if self.breaker.failed(chain.now(), probe=probe):
            chain.report(f"warning: {self.filter.name}: fails and is asked less often: {reason}")
        return FailedError(reason)


class FilterChain:
    """The filters of one worker.  `connected`, `greeted`, `sender`, `recipient`: the filters to be
    asked then; `message`: at the end of a message."""

    def __init__(
        self,
        filters: list[Filter],
        rules: Rules,
        report: Callable[[str], None],
        count: Callable[[str, int], None] = lambda name, amount: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.report = report
        self.now = now
        self._count = count
        self.all = [Guarded(one, self) for one in filters]
        self.connected = self._with("connected")
        self.greeted = self._with("greeted")
        self.sender = self._with("sender")
        self.recipient = self._with("recipient")
        self.message = self._with("message")

    def _with(self, method: str) -> tuple[Guarded, ...]:
        base = getattr(Filter, method)
        return tuple(one for one in self.all if getattr(type(one.filter), method) is not base)

    def stop(self) -> None:
        for one in self.all:
            self._safely(one.filter.name, one.filter.stop)

    def tick(self) -> None:
        for one in self.all:
            self._safely(one.filter.name, one.filter.tick)

    def _safely(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.report(f"warning: {name}: {error!r}")

    # -- before the message

    async def ask_connected(self, session: Session) -> Reply | None:
        return await self._first(self.connected, lambda one: one.connected(session))

    async def ask_greeted(self, session: Session) -> Reply | None:
        return await self._first(self.greeted, lambda one: one.greeted(session))

    async def ask_sender(self, session: Session) -> Reply | None:
        return await self._first(self.sender, lambda one: one.sender(session))

    async def ask_recipient(self, session: Session, address: str) -> Reply | None:
        return await self._first(self.recipient, lambda one: one.recipient(session, address))

    async def _first(
        self, asked: tuple[Guarded, ...], call: Callable[[Filter], Answer]
    ) -> Reply | None:
        for one in asked:
            try:
                answer = await one.ask(partial(call, one.filter))
                if answer is not None:
                    return _checked_refusal(answer)
            except FailedError as error:
                self._count("failures", 1)
                self.report(f"warning: {one.filter.name}: {error}")
                if self.rules.defer:
                    return NOT_ASKED
        return None

    # -- the message

    async def check(self, message: Message) -> dict[Preferences, Verdict]:
        """The verdict of all filters together, for each of the message's preferences."""
        started = self.now()
        found = dict.fromkeys(message.preferences, ACCEPT)
        for one in self.message:
            left = tuple(wish for wish, verdict in found.items() if verdict.refusal is None)
            if not left:
                break
            for wish, verdict in (
                await self._check(one, message._replace(preferences=left))
            ).items():
                found[wish] = _both(found[wish], verdict)
        self._count("checks", 1)
        self._count("time_us", int((self.now() - started) * 1_000_000))
        return found

    async def _check(self, one: Guarded, message: Message) -> dict[Preferences, Verdict]:
        try:
            answer = await one.ask(lambda: one.filter.message(message))
            return _checked(answer, message.preferences)
        except FailedError as error:
            name = one.filter.name
            self._count("failures", 1)
            refusal = NOT_CHECKED if self.rules.defer else None
            reason = f"{name} failed"
            failed = Verdict(refusal, (unchecked(reason),), note=f"{name} failed: {error}")
            return {wish: _NOTHING if wish.off else failed for wish in message.preferences}


def _is_cancelled() -> bool:
    """Whether the client has gone.  Otherwise the filter itself raised CancelledError, and a
    session that took it for its own would wait forever."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _checked(answer: object, preferences: tuple[Preferences, ...]) -> dict[Preferences, Verdict]:
    """Raises FailedError: a filter may return anything."""
    if isinstance(answer, Verdict):
        found = dict.fromkeys(preferences, _checked_verdict(answer))
    elif isinstance(answer, Mapping):
        missing = [one for one in preferences if one not in answer]
        if missing:
            raise FailedError("its answer lacks a verdict")
        found = {one: _checked_verdict(answer[one]) for one in preferences}
    else:
        raise FailedError(f"its answer is not a verdict: {type(answer).__name__}")
    return found


def _checked_verdict(verdict: Any) -> Verdict:
    """Raises FailedError."""
    if not isinstance(verdict, Verdict):
        raise FailedError(f"its answer is not a verdict: {type(verdict).__name__}")
    if verdict.refusal is not None:
        _checked_refusal(verdict.refusal)
    try:
        add = tuple((_of(str, name), _of(str, value)) for name, value in verdict.add)
        gone = tuple((_of(str, name), _of(int, number)) for name, number in verdict.remove)
        for name, value in add:
            make_field(name, value)
        return Verdict(verdict.refusal, add, gone, bool(verdict.junk), str(verdict.note))
    except (TypeError, ValueError) as error:
        raise FailedError(f"its verdict has an impossible header: {error}") from None


def _of(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def _checked_refusal(reply: Any) -> Reply:
    if not isinstance(reply, Reply) or reply.code // 100 not in (4, 5):
        raise FailedError(f"its refusal is not a reply of class 4 or 5: {reply!r}")
    return reply


def _both(first: Verdict, then: Verdict) -> Verdict:
    if first is ACCEPT:
        return then
    return Verdict(
        then.refusal,
        then.add + first.add,
        first.remove + then.remove,
        first.junk or then.junk,
        "; ".join(note for note in (first.note, then.note) if note),
    )
