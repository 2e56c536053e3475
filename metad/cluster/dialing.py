"""Several attempts at one connection, a moment apart, until the first that succeeds.

The processes of a node share its address, and the kernel puts each connection into the queue of one
of them.  The queue of a process that has died waits for its successor: another attempt most likely
meets one that serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

# Seconds that an attempt has before another one begins beside it, and how many there are at most.
ALONE_SECONDS: Final = 0.5
ATTEMPTS: Final = 3


async def first_of(connect: Callable[[], Coroutine[None, None, object]]) -> None:
    """Returns when one attempt has succeeded; the others are cancelled.  If all that have begun
    have failed, raises the exception of the last, and begins no other."""
    waiting: set[asyncio.Task[object]] = set()
    left = ATTEMPTS
    try:
        while True:
            if left:
                left -= 1
                waiting.add(asyncio.ensure_future(connect()))
            done, waiting = await asyncio.wait(
                waiting,
                timeout=ALONE_SECONDS if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            errors = [one.exception() for one in done]
            if None in errors:
                return
            if not waiting and errors[0] is not None:
                raise errors[0]
    finally:
        for one in waiting:
            one.cancel()
