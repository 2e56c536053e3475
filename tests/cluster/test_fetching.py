"""FETCH: a message in pieces from its holders; the test answers for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xxhash import xxh3_128_digest

from metad.cluster.answers import TOO_MANY, Answer, Answered, EpochChanged, Refused
from metad.cluster.asking import FULL, LATE
from metad.cluster.fetching import (
    CROWDED_TRIES,
    EPOCHS,
    FETCHED,
    LOST_TRIES,
    Ask,
    Fetching,
    ask_readable,
    pack_piece,
    unpack_ask,
)
from metad.cluster.frames import Kind
from metad.cluster.peers import AGAIN_S
from metad.errors import ClusterError, RefusedError
from tests.cluster.test_mail import DONE, LOST, THREE, FakePeers, an_id

KEY = (7, an_id(1))
TEXT = b"one piece, and another"


class Sink:
    def __init__(self, fails: bool) -> None:
        self.data = b""
        self.is_open = True
        self._fails = fails

    def write(self, chunk: bytes) -> None:
        if self._fails:
            raise OSError(28, "no space")
        self.data += chunk

    def close(self) -> None:
        self.is_open = False


class Fetch:
    def __init__(self, *holders: int, full: bool = False) -> None:
        self.peers = FakePeers(THREE)
        self.sinks: list[Sink] = []
        self.outcome: list[Sink | RefusedError] = []
        self.full = full
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.fetching = Fetching(
            self.peers,
            KEY,
            holders,
            self._new_sink,
            self._later,
            self.outcome.append,  # type: ignore[arg-type]
        )
        self.fetching.start()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))

    def go_on(self) -> None:
        """All holders are asked again."""
        ((seconds, call),) = self.timers
        assert seconds == AGAIN_S
        assert not any(one.is_open for one in self.sinks)
        self.timers.clear()
        call()

    def _new_sink(self) -> Sink:
        self.sinks.append(Sink(self.full))
        return self.sinks[-1]

    @property
    def asked(self) -> tuple[int, Ask]:
        ((member, kind, body, _),) = self.peers.asked
        assert kind == Kind.FETCH
        return member, unpack_ask(body)

    def answer(self, answer: Answer) -> None:
        self.peers.answer(self.asked[0], answer)

    def piece(self, data: bytes, *, last: bool = False, of: bytes = TEXT) -> None:
        parts = pack_piece(last=last, digest=xxh3_128_digest(of), data=data)
        self.answer(Answered(b"".join(parts)))

    @property
    def got(self) -> bytes:
        (sink,) = self.outcome
        assert isinstance(sink, Sink)
        assert sink.is_open
        assert [one for one in self.sinks if one.is_open] == [sink]
        return sink.data

    @property
    def error(self) -> str:
        (error,) = self.outcome
        assert isinstance(error, RefusedError)
        assert not any(one.is_open for one in self.sinks)
        return str(error)


def test_pieces_come_one_by_one_and_the_whole_is_verified() -> None:
    fetch = Fetch(2, 3)
    assert fetch.asked == (2, Ask(*KEY, 0, FETCHED))
    fetch.piece(TEXT[:9])
    assert fetch.asked == (2, Ask(*KEY, 9, FETCHED))
    fetch.piece(TEXT[9:], last=True)
    assert fetch.got == TEXT


@pytest.mark.parametrize("answer", [LOST, Refused("damaged"), DONE])
def test_another_holder_begins_again(answer: Answer) -> None:
    fetch = Fetch(2, 3)
    fetch.piece(TEXT[:9])
    fetch.answer(answer)
    assert fetch.asked == (3, Ask(*KEY, 0, FETCHED))
    fetch.piece(TEXT, last=True)
    assert fetch.got == TEXT


@pytest.mark.parametrize(
    ("answer", "tries"),
    [(LOST, LOST_TRIES), (FULL, CROWDED_TRIES), (TOO_MANY, CROWDED_TRIES),
     (LATE, 1), (Refused("damaged"), 1)],
)  # fmt: skip
def test_what_may_be_over_soon_is_tried_again(answer: Answer, tries: int) -> None:
    fetch = Fetch(2, 3)
    for attempt in range(tries):
        if attempt:
            fetch.go_on()
        fetch.answer(answer)
        fetch.answer(Refused("damaged"))
    assert not fetch.timers
    assert fetch.error == "node 3: damaged"


def test_a_holder_that_is_back_gives_it() -> None:
    fetch = Fetch(2)
    fetch.piece(TEXT[:9])
    fetch.answer(LOST)
    fetch.go_on()
    assert fetch.asked == (2, Ask(*KEY, 0, FETCHED))
    fetch.piece(TEXT, last=True)
    assert fetch.got == TEXT


def test_a_session_that_ends_while_it_waits_wants_nothing_more() -> None:
    fetch = Fetch(2)
    fetch.answer(LOST)
    fetch.fetching.cancel()
    fetch.go_on()
    assert not fetch.peers.asked
    assert not fetch.outcome


def test_a_text_that_does_not_verify_is_not_used() -> None:
    fetch = Fetch(2)
    fetch.piece(TEXT[:9])
    fetch.piece(TEXT[9:-1] + b"?", last=True)
    assert "does not verify" in fetch.error


def test_the_last_reason_is_told() -> None:
    fetch = Fetch(2, 3)
    fetch.answer(Refused("no space"))
    fetch.answer(Refused("message 01 does not verify"))
    assert fetch.error == "node 3: message 01 does not verify"
    assert "no member" in Fetch().error


def test_a_holder_that_sends_no_end_is_left() -> None:
    fetch = Fetch(2)
    fetch.piece(TEXT)
    fetch.piece(b"")
    assert "no end" in fetch.error


def test_a_full_disk_ends_it() -> None:
    fetch = Fetch(2, full=True)
    fetch.piece(TEXT, last=True)
    assert "no space" in fetch.error


def test_another_view_changes_nothing_but_not_for_ever() -> None:
    fetch = Fetch(2)
    fetch.piece(TEXT[:9])
    for _ in range(EPOCHS):
        fetch.answer(EpochChanged())
        assert fetch.asked[1].at == 9
    fetch.answer(EpochChanged())
    assert fetch.error


def test_a_session_that_ends_wants_nothing_more() -> None:
    fetch = Fetch(2)
    fetch.piece(TEXT[:9])
    fetch.fetching.cancel()
    fetch.piece(TEXT[9:], last=True)
    assert not fetch.outcome
    assert not fetch.sinks[0].is_open
    assert not fetch.peers.asked


def test_who_can_read_it_is_asked_in_turn() -> None:
    for answer, readable in ((Answered(b"a piece"), True), (Refused("damaged"), False)):
        peers, outcome = FakePeers(THREE), list[bool]()
        ask_readable(peers, KEY, [2, 3], outcome.append)
        peers.answer(2, LOST)
        peers.answer(3, answer)
        assert outcome == [readable]


@pytest.mark.parametrize("body", [b"", b"x" * 31, Ask(*KEY, 0, FETCHED + 1).pack()])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ClusterError):
        unpack_ask(body)
