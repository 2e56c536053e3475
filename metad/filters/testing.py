"""What every filter must do, as tests that any test runner collects (docs/filters.md).

    from metad.filters.testing import Conformance

    class TestMine(Conformance):
        filter = MyFilter

pytest runs this as it is; with unittest: `class TestMine(Conformance, unittest.TestCase)`.

Rules of this file:

* Only the interface is used: a filter that passes here works in a worker.
* Every test has its own loop and filter.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from metad.errors import Reply
from metad.filters.base import Filter, FilterContext, Message, Preferences, Session, Verdict
from metad.filters.body import Body, of_bytes
from metad.filters.fields import make_field

# Seconds for which a call may block the loop, and that an answer may take.
LOOP_SECONDS = 0.5
SECONDS = 10.0
SESSION = Session(
    client="192.0.2.1", protocol="smtp", helo="mx.example.net", tls="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384", sender="sender@example.net",
    recipients=("user@example.org",),
)  # fmt: skip
TEXT = b"From: <sender@example.net>\r\nSubject: a test\r\n\r\nText\r\n.\r\n..dots\r\n"


def demand(condition: bool, text: str) -> None:
    """An assertion that -O does not remove."""
    if not condition:
        raise AssertionError(text)


class Conformance:
    """`filter`: the class; `options`: its table in the configuration."""

    filter: ClassVar[type[Filter]]
    options: ClassVar[Mapping[str, Any]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Filter]:
        with tempfile.TemporaryDirectory(prefix="metad-filter-") as data:
            options = self.filter.check_options(self.options, Path(data))
            one = self.filter()
            one.start(FilterContext(asyncio.get_running_loop(), "mx.example.org", options))
            try:
                yield one
            finally:
                one.stop()

    def ask(self, *questions: Callable[[Filter], Any]) -> list[Any]:
        """The answers of one filter; AssertionError if it blocks the loop."""

        async def all_of_them() -> list[Any]:
            async with self.running() as one:
                return [await self.answer(question, one) for question in questions]

        return asyncio.run(all_of_them())

    async def answer(self, question: Callable[[Filter], Any], one: Filter) -> Any:
        begun = time.monotonic()
        found = question(one)
        held = time.monotonic() - begun
        demand(held < LOOP_SECONDS, f"the filter held the loop for {held:.1f} s")
        if isinstance(found, Awaitable):
            async with asyncio.timeout(SECONDS):
                found = await found
        return found

    def checked(self, *messages: Message) -> list[Any]:
        return self.ask(*(lambda one, given=given: one.message(given) for given in messages))

    # -- tests

    def test_it_has_a_name(self) -> None:
        demand(bool(self.filter.name) and self.filter.name.isprintable(), "it has no name")

    def test_unknown_settings_are_refused(self) -> None:
        try:
            self.filter.check_options({**self.options, "no-such-setting": 1}, Path("/nowhere"))
        except ValueError as error:
            demand("\n" not in str(error), "the reason has more than one line")
            return
        raise AssertionError("an unknown setting was accepted")

    def test_it_can_be_started_again(self) -> None:
        for _ in range(2):
            self.ask(lambda one: one.tick())

    def test_answers_before_the_message_are_refusals_or_none(self) -> None:
        bare = Session(SESSION.client, "smtp")
        answers = self.ask(
            lambda one: one.connected(bare),
            lambda one: one.greeted(SESSION._replace(sender="", recipients=())),
            lambda one: one.sender(SESSION._replace(recipients=())),
            lambda one: one.sender(SESSION._replace(sender="", recipients=())),
            lambda one: one.recipient(SESSION, "other@example.org"),
        )
        for answer in answers:
            demand(answer is None or _refuses(answer), f"{answer!r} is not a reply of class 4 or 5")

    def test_every_message_gets_a_verdict(self) -> None:
        for answer in self.checked(
            *(self.message(text) for text in (TEXT, b"", b"\r\n", b"x\r\n"))
        ):
            _check(answer, self.message(TEXT).preferences)

    def test_every_preference_gets_a_verdict(self) -> None:
        wishes = (Preferences(), Preferences(off=True), Preferences(mark=3.0, refuse=9.0))
        given = self.message(TEXT)._replace(preferences=wishes)
        for answer in self.checked(given):
            _check(answer, wishes)

    def test_a_large_message_that_is_read_from_a_disk(self) -> None:
        chunks = [b"From: <a@example.net>\r\n\r\n", *[b"line\r\n" * 10_000] * 50, b".\r\n"]
        size = sum(map(len, chunks)) - 3

        def read() -> list[bytes]:
            return chunks

        async def ask() -> Any:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(1) as threads:
                body = Body(read, size, threads=threads)
                given = Message(SESSION, "2" * 32, size, body)
                async with self.running() as one:
                    return await self.answer(lambda it: it.message(given), one)

        _check(asyncio.run(ask()), (Preferences(),))

    def test_the_same_message_gets_the_same_verdict_at_once_and_together(self) -> None:
        async def ask() -> list[Any]:
            async with self.running() as one:
                given = self.message(TEXT)
                asked = [self.answer(lambda it: it.message(given), one) for _ in range(20)]
                return list(await asyncio.gather(*asked))

        answers = [_plain(answer) for answer in asyncio.run(ask())]
        demand(all(one == answers[0] for one in answers), "verdicts on one message differ")

    def test_a_question_that_is_taken_back_leaves_the_filter_well(self) -> None:
        async def ask() -> Any:
            async with self.running() as one:
                for _ in range(5):
                    found = one.message(self.message(TEXT))
                    if isinstance(found, Awaitable):
                        task = asyncio.ensure_future(found)
                        await asyncio.sleep(0)
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                return await self.answer(lambda it: it.message(self.message(TEXT)), one)

        _check(asyncio.run(ask()), (Preferences(),))

    def message(self, text: bytes) -> Message:
        """A message; override it for a filter that needs another envelope."""
        stuffed = text.replace(b"\r\n.", b"\r\n..")
        if text.startswith(b"."):
            stuffed = b"." + stuffed
        dots = len(stuffed) - len(text)
        body = Body(lambda: (stuffed + b".\r\n",), len(text), dots) if dots else of_bytes(text)
        return Message(SESSION, "1" * 32, len(text), body)


def _refuses(answer: object) -> bool:
    return isinstance(answer, Reply) and answer.code // 100 in (4, 5)


def _check(answer: object, wishes: tuple[Preferences, ...]) -> None:
    verdicts = answer.values() if isinstance(answer, Mapping) else [answer]
    if isinstance(answer, Mapping):
        demand(all(one in answer for one in wishes), "a verdict is missing")
    for verdict in verdicts:
        if not isinstance(verdict, Verdict):
            raise AssertionError(f"{verdict!r} is no Verdict")
        demand(
            verdict.refusal is None or _refuses(verdict.refusal),
            f"{verdict.refusal!r} is not a reply of class 4 or 5",
        )
        for name, value in verdict.add:
            make_field(name, value)


def _plain(answer: object) -> object:
    return dict(answer) if isinstance(answer, Mapping) else answer
