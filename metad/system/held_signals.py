"""Signals that end a process wait until a block has ended.

Where their handlers raise, as Python's own does for Ctrl-C, the exception can come while a process
is being started: it runs then, and no variable refers to it, so it would be left behind.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_signals() -> Iterator[None]:
    """Handle `ENDING` signals after the block only, whether it fails or not.

    One that is ignored stays so, also for a process that the block starts.  In another thread than
    the main one it does nothing: Python runs no handler there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ENDING}
    raising = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in raising:
            signal.signal(number, lambda number, _frame: held.append(number))
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        for arrived in held:
            signal.raise_signal(arrived)
