"""The circuit breaker, and the chain around it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metad.errors import Reply
from metad.filters.base import Filter, Message, Preferences, Session, Verdict
from metad.filters.body import of_bytes
from metad.filters.breaker import FAILURES, MAX_PAUSE, PAUSE, Breaker
from metad.filters.chain import NOT_ASKED, NOT_CHECKED, FilterChain, Rules

SESSION = Session("192.0.2.1", "smtp")
PLAIN, OFF = Preferences(), Preferences(off=True)
NO = Reply(550, "5.7.1", "No")


def opened() -> Breaker:
    breaker = Breaker()
    assert [breaker.failed(0) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return breaker


def test_it_opens_after_failures_in_a_row_alone() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not breaker.failed(0)
        assert not breaker.succeeded()
    assert breaker.allows(0)
    assert not breaker.is_open
    assert not opened().allows(PAUSE / 2)


def test_one_call_at_a_time_tries_again_after_pauses_that_double() -> None:
    breaker = opened()
    now, pause = 0.0, PAUSE
    for _ in range(8):
        now += pause
        assert not breaker.allows(now - 0.01)
        assert breaker.allows(now)
        assert not breaker.allows(now)
        assert not breaker.failed(now)  # a call from before it opened
        assert not breaker.allows(now)
        assert not breaker.failed(now, probe=True)
        pause = min(MAX_PAUSE, 2 * pause)
    assert pause == MAX_PAUSE
    assert breaker.allows(now + pause)
    assert breaker.succeeded()
    assert breaker.allows(now + pause)


def test_a_call_that_was_taken_back_leaves_the_try_to_the_next() -> None:
    breaker = opened()
    assert breaker.allows(PAUSE)
    breaker.abandoned()  # another call, from before it opened
    assert not breaker.allows(PAUSE)
    breaker.abandoned(probe=True)
    assert breaker.allows(PAUSE)


def test_calls_from_before_it_opened_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    for _ in range(20):
        assert not breaker.failed(0)
    assert breaker.allows(PAUSE)


class Fixed(Filter):
    name = "fixed"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def message(self, message: Message) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def sender(self, session: Session) -> Any:
        return self.message(None)  # type: ignore[arg-type]


class Never(Fixed):
    async def message(self, message: Message) -> Any:
        await asyncio.Event().wait()


class Cancelled(Fixed):
    """Awaits something that is cancelled; the client has not gone."""

    async def message(self, message: Message) -> Any:
        found: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found.cancel()
        await found


class Chain:
    """Filters with a clock and a log of the test's."""

    def __init__(self, *filters: Filter, defer: bool = False) -> None:
        self.lines: list[str] = []
        self.counts: dict[str, int] = {}
        self.now = 0.0
        rules = Rules(0.05, defer, "mx", "+junk", mixed_defer=True)
        self.chain = FilterChain(
            list(filters), rules, self.lines.append, self.count, lambda: self.now
        )

    def count(self, name: str, amount: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + amount

    def judge(self, *wishes: Preferences) -> dict[Preferences, Verdict]:
        message = Message(SESSION, "1", 1, of_bytes(b"x"), wishes or (PLAIN,))
        return asyncio.run(self.chain.check(message))


def test_the_first_refusal_wins_and_the_rest_is_not_asked() -> None:
    last = Fixed(Verdict())
    chain = Chain(Fixed(Verdict(add=(("A", "1"),))), Fixed(Verdict(NO)), last)
    assert chain.judge() == {PLAIN: Verdict(NO, (("A", "1"),))}
    assert last.asked == 0


def test_what_filters_add_accumulates_the_last_on_top() -> None:
    first = Verdict(add=(("A", "1"),), remove=(("X", 0),), note="one")
    chain = Chain(Fixed(first), Fixed(Verdict(add=(("B", "2"),), junk=True, note="two")))
    assert chain.judge()[PLAIN] == Verdict(
        None, (("B", "2"), ("A", "1")), (("X", 0),), junk=True, note="one; two"
    )


_verdict: Any = Verdict
BAD: list[Any] = [
    None, 7, "accept", {}, Verdict(Reply(250, "2.0.0", "Ok")), _verdict("550 no"),
    ValueError("two\nlines"), OSError(13, "denied"), {PLAIN: NO},
    _verdict(add=(("A B", "c"),)), _verdict(add=(("A", "b\r\nBcc: c"),)), _verdict(add=7),
    _verdict(remove=(("A", "all"),)), _verdict(add=(("A", 1),)),
]  # fmt: skip


@pytest.mark.parametrize("answer", BAD)
@pytest.mark.parametrize("defer", [False, True])
def test_any_other_answer_is_a_failure(answer: Any, defer: bool) -> None:
    chain = Chain(Fixed(answer), defer=defer)
    verdict = chain.judge()[PLAIN]
    assert verdict.refusal == (NOT_CHECKED if defer else None)
    assert verdict.add == (("X-Metad-Filter", "unchecked (fixed failed)"),)
    assert chain.counts["failures"] == 1


def test_who_wants_no_filter_is_not_hit_by_its_failure() -> None:
    found = Chain(Fixed(ValueError()), defer=True).judge(OFF, PLAIN)
    assert found[OFF] == Verdict()
    assert found[PLAIN].refusal == NOT_CHECKED


@pytest.mark.slow
def test_a_late_answer_is_a_failure_and_then_the_filter_is_not_asked() -> None:
    chain = Chain(Never(None))
    for _ in range(FAILURES):
        assert "no answer within" in chain.judge()[PLAIN].note
    assert "not asked" in chain.judge()[PLAIN].note
    assert len([line for line in chain.lines if "asked less often" in line]) == 1


@pytest.mark.slow
def test_a_filter_that_never_answers_is_not_waited_for() -> None:
    async def judge() -> dict[Preferences, Verdict]:
        message = Message(SESSION, "1", 1, of_bytes(b"x"), (PLAIN,))
        async with asyncio.timeout(20):
            return await Chain(Never(None)).chain.check(message)

    assert "no answer within" in asyncio.run(judge())[PLAIN].note


def test_a_filter_that_cancels_itself_has_failed() -> None:
    chain = Chain(Cancelled(None), defer=True)
    assert chain.judge()[PLAIN].refusal == NOT_CHECKED
    assert chain.counts["failures"] == 1


@pytest.mark.slow
def test_a_client_that_goes_while_the_filter_is_tried_again_leaves_the_try_to_the_next() -> None:
    never = Never(None)
    chain = Chain(never)
    for _ in range(FAILURES):
        chain.judge()
    chain.now += PAUSE

    async def go_away() -> None:
        message = Message(SESSION, "1", 1, of_bytes(b"x"), (PLAIN,))
        task = asyncio.create_task(chain.chain.check(message))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(go_away())
    assert "no answer within" in chain.judge()[PLAIN].note


def test_failures_before_the_message() -> None:
    for defer in (False, True):
        chain = Chain(Fixed(ValueError("broken")), defer=defer)
        found = asyncio.run(chain.chain.ask_sender(SESSION))
        assert found == (NOT_ASKED if defer else None)
    good = Chain(Fixed(NO))
    assert asyncio.run(good.chain.ask_sender(SESSION)) == NO
    assert not good.chain.connected
    assert not good.chain.recipient
