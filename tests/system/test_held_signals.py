"""Signals that wait until a process that is being started is known."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from metad.system.held_signals import ENDING, held_signals


class StoppedError(Exception):
    """What the handlers of these tests raise."""


def stop(number: int, _frame: object) -> None:
    raise StoppedError(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, stop) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_within_the_block_comes_right_after_it(number: signal.Signals) -> None:
    done = []
    with pytest.raises(StoppedError, match=str(int(number))):
        with held_signals():
            signal.raise_signal(number)
            done.append("the rest of the block")
        done.append("what follows it")
    assert done == ["the rest of the block"]
    assert signal.getsignal(number) is stop


def test_it_comes_after_a_block_that_fails_too() -> None:
    with pytest.raises(StoppedError) as caught, held_signals():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    assert isinstance(caught.value.__context__, ValueError)


def test_a_signal_that_is_ignored_stays_so_also_for_processes() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ask = "import signal; print(int(signal.getsignal(signal.SIGHUP)))"
    with held_signals():
        signal.raise_signal(signal.SIGHUP)
        done = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) == signal.SIG_IGN


def test_another_thread_runs_the_block_as_it_is() -> None:
    ran = []

    def block() -> None:
        with held_signals():
            ran.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert ran == [stop]
