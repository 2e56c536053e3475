"""Accepting when the system has no descriptor left: it waits and continues."""

from __future__ import annotations

import errno
import os
from typing import Any

from metad.system.accepting import PAUSE, Accepting


class Loop:
    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}
        self.later: list[tuple[float, Any]] = []

    def add_reader(self, descriptor: int, call: Any) -> None:
        self.readers[descriptor] = call

    def remove_reader(self, descriptor: int) -> None:
        self.readers.pop(descriptor, None)

    def call_later(self, delay: float, call: Any) -> None:
        self.later.append((delay, call))


class Listening:
    """A socket with scripted results of accept()."""

    def __init__(self, *outcomes: OSError) -> None:
        self.outcomes = list(outcomes)

    def fileno(self) -> int:
        return 7

    def accept(self) -> Any:
        raise self.outcomes.pop(0)


def accepting(sock: Listening) -> tuple[Accepting, Loop, list[str]]:
    loop, lines = Loop(), list[str]()
    return Accepting(loop, sock, _no_one, lines.append), loop, lines  # type: ignore[arg-type]


def _no_one(sock: Any, peer: Any) -> None:
    raise AssertionError("nothing connects")


def refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_without_descriptors_it_rests_instead_of_turning_and_logging_without_end() -> None:
    sock = Listening(refused(errno.EMFILE), BlockingIOError())
    it, loop, lines = accepting(sock)
    loop.readers[7]()
    assert lines == ["warning: accept: Too many open files"]
    assert loop.readers == {}
    ((delay, go_on),) = loop.later
    assert delay == PAUSE
    go_on()
    loop.readers[7]()
    assert sock.outcomes == []
    it.close()
    assert loop.readers == {}


def test_a_client_that_went_away_in_the_queue_is_skipped() -> None:
    sock = Listening(ConnectionAbortedError(), BlockingIOError())
    _, loop, lines = accepting(sock)
    loop.readers[7]()
    assert sock.outcomes == []
    assert lines == []
    assert 7 in loop.readers


def test_a_closed_acceptor_does_not_begin_again_after_its_rest() -> None:
    it, loop, _ = accepting(Listening(refused(errno.ENFILE)))
    loop.readers[7]()
    it.close()
    loop.later[0][1]()
    assert loop.readers == {}
