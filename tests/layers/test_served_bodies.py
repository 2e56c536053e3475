"""What another member gets of a message whose reading fails in the thread."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from metad.cluster.answers import INTERNAL
from metad.cluster.fetching import FETCHED, Ask
from metad.layers.served_bodies import ServedBodies, _Text
from tests.support.store_kit import StepLoop

ASK = Ask(7, bytes(16), 0, FETCHED)


def pieces() -> Iterator[bytes]:
    yield b"Subject: x"
    raise ValueError("a bug")


def served() -> tuple[ServedBodies, StepLoop]:
    log: Any = SimpleNamespace(loop=StepLoop())
    thread: Any = None
    return ServedBodies(log, thread), log.loop


def test_a_bug_in_the_thread_is_answered() -> None:
    bodies, loop = served()
    got: list[object] = []
    reply: Any = got.append
    with pytest.raises(ValueError, match="a bug"):
        bodies._read_in_thread(reply, _Text(pieces()), ASK)
    with pytest.raises(ValueError, match="a bug"):
        bodies._texts_in_thread(reply, [pieces()])
    loop.run()
    assert got == [INTERNAL, INTERNAL]
