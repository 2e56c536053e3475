"""Messages of one session that other members have, fetched before the client asks where possible.

Rules of this file:

* A text waits in a spool: in memory if small, counted in the budget, otherwise in a file.
* A client that takes messages in order gets the next ones fetched ahead: `AHEAD` messages and
  `AHEAD_SIZE` bytes at most, and only while large messages leave memory.  Small ones come several
  at a time; what does not come so is fetched by itself.
* What was fetched is given once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, cast

from metad.cluster.answers import Answer, Answered
from metad.cluster.fetching import Fetching, Sink
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.cluster.small_texts import PATIENCE_S, TEXT_HEAD, TEXTS_SIZE, pack_ask, unpack_texts
from metad.errors import ClusterError, RefusedError
from metad.layers.base import Done
from metad.layers.held_spool import HeldSpool
from metad.layers.logs import LogLayer
from metad.layers.spool import Spool
from metad.system.osio import Buffer

# Messages fetched ahead, and their bytes at most.
AHEAD = 16
AHEAD_SIZE = 1 << 20


class ClusterStore(Protocol):
    """What a session needs of the layer."""

    peers: Peers
    log: LogLayer


class _Together:
    """Small messages that were asked for in one request."""

    __slots__ = ("is_over", "numbers", "size")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.size = 0  # of their texts in the answer, about
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class FarBodies:
    """`holders`: members that have a message, by its id.  `fetched`: bytes that wait for the client
    or are on their way."""

    def __init__(
        self,
        cluster: ClusterStore,
        mailbox: int,
        holders: dict[bytes, list[int]],
        id_of: Callable[[int], bytes],
        size_of: Callable[[int], int],
    ) -> None:
        """`id_of`, `size_of`: of the message with a number."""
        self._cluster = cluster
        self._mailbox = mailbox
        self.holders = holders
        self._id_of = id_of
        self._size_of = size_of
        self._here: dict[int, Spool] = {}
        self._coming: dict[int, Fetching | _Together] = {}
        self._waiting: dict[int, list[Done]] = {}
        self._given: Spool | None = None  # is read by the client now
        self._last = 0
        self.fetched = 0

    def take(self, number: int) -> Sequence[Buffer] | Iterator[Buffer] | None:
        """A message that was fetched.  None: it was not."""
        spool = self._here.pop(number, None)
        if spool is None:
            return None
        self.fetched -= self._size_of(number)
        if spool.in_memory:
            parts = list(spool.parts)
            spool.close()
            return parts
        self._close_given()
        self._given = spool
        return _read(spool)

    def _close_given(self) -> None:
        if self._given is not None:
            self._given.close()
            self._given = None

    def look_ahead(self, number: int, last: int) -> None:
        """The client takes `number` of `last` messages: fetch what follows, if it goes in order."""
        is_next, self._last = number == self._last + 1, number
        half = min(number + AHEAD // 2, last)
        if not is_next or not self.holders or half in self._here or half in self._coming:
            return
        for member, together in self._choose_ahead(
            range(number + 1, min(number + AHEAD, last) + 1)
        ):
            if len(together.numbers) == 1:
                self._fetch(together.numbers[0])
            else:
                self._fetch_together(member, together)

    def _choose_ahead(self, numbers: range) -> list[tuple[int, _Together]]:
        """What is to be fetched of these messages, as memory allows, by the member to be asked."""
        budget, wanted = self._cluster.log.budget, self.fetched
        requests: list[tuple[int, _Together]] = []
        latest: dict[int, _Together] = {}
        for number in numbers:
            holders = self.holders.get(self._id_of(number))
            if holders is None or number in self._here or number in self._coming:
                continue
            size = self._size_of(number)
            wanted += size
            if wanted > AHEAD_SIZE or budget.used + wanted > budget.half:
                break
            together = latest.get(holders[0])
            if together is None or together.size + TEXT_HEAD + size > TEXTS_SIZE:
                together = latest[holders[0]] = _Together()
                requests.append((holders[0], together))
            together.numbers.append(number)
            together.size += TEXT_HEAD + size
        return requests

    def _fetch_together(self, member: int, together: _Together) -> None:
        for number in together.numbers:
            self.fetched += self._size_of(number)
            self._coming[number] = together
        parts = (pack_ask(self._mailbox, map(self._id_of, together.numbers)),)
        answered = partial(self._came_together, together)
        self._cluster.peers.request(member, Kind.TEXTS, parts, answered, PATIENCE_S)

    def _came_together(self, together: _Together, answer: Answer) -> None:
        if together.is_over:
            return
        numbers = together.numbers
        texts: list[bytes | None] = [None] * len(numbers)
        if isinstance(answer, Answered):
            with suppress(ClusterError):
                texts = unpack_texts(answer.body, len(numbers))
        for number, text in zip(numbers, texts, strict=True):
            spool = None if text is None else self._keep(text)
            if spool is not None:
                self._fetched(number, spool)
            else:
                self._fetch_instead(number, is_lost=not isinstance(answer, Answered))

    def _fetch_instead(self, number: int, *, is_lost: bool) -> None:
        """It has not come with others: fetch it, at once unless that failed and no client waits."""
        del self._coming[number]
        self.fetched -= self._size_of(number)
        if number in self._waiting or not is_lost:
            self._fetch(number)

    def _keep(self, text: bytes) -> Spool | None:
        spool = self._new_spool()
        try:
            spool.write(text)
        except OSError:
            spool.close()
            return None
        return spool

    def _new_spool(self) -> Spool:
        log = self._cluster.log
        return HeldSpool(log.osio, log.store.spool, log.budget, lambda: True)

    def bring(self, number: int, done: Done) -> None:
        """Fetch a message; `done` is called later."""
        self._waiting.setdefault(number, []).append(done)
        if number in self._here:
            self._came(number, None)
        elif number not in self._coming:
            self._fetch(number)

    def _fetch(self, number: int) -> None:
        message_id = self._id_of(number)
        self.fetched += self._size_of(number)
        fetching = self._coming[number] = Fetching(
            self._cluster.peers,
            (self._mailbox, message_id),
            self.holders[message_id],
            self._new_spool,
            self._cluster.log.loop.call_later,
            partial(self._fetched, number),
        )
        fetching.start()

    def _fetched(self, number: int, outcome: Sink | RefusedError) -> None:
        self._coming.pop(number, None)
        if isinstance(outcome, RefusedError):
            self.fetched -= self._size_of(number)
            self._came(number, outcome)
        else:
            self._here[number] = cast(Spool, outcome)
            self._came(number, None)

    def _came(self, number: int, error: RefusedError | None) -> None:
        for done in self._waiting.pop(number, ()):
            self._cluster.log.loop.call_soon(partial(done, error))

    def close(self) -> None:
        """The session ends.  Idempotent."""
        for coming in self._coming.values():
            coming.cancel()
        for spool in self._here.values():
            spool.close()
        self._close_given()
        for number in list(self._waiting):
            self._came(number, RefusedError("closed"))
        self._coming.clear()
        self._here.clear()
        self.fetched = 0
        self._id_of, self._size_of = bytes, int  # no cycle with the mailbox, which has this


def _read(spool: Spool) -> Iterator[Buffer]:
    """The pieces of a message in a file, which is closed after the last one."""
    try:
        yield from spool.pieces()
    finally:
        spool.close()
