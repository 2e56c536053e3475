"""The body of a message as a filter reads it: as the sender wrote it, without dot stuffing.

Rules of this file:

* A body in memory is not copied for a filter that takes it piece by piece.
* A body in a file is read in a thread, one piece at a time: a filter that reads slowly costs one
  piece of memory.
* It may be read any number of times, until the message is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor

from metad.layers.texts import Unstuffer
from metad.system.osio import Buffer

_END = len(b".\r\n")


class Body:
    """`size` bytes.  `read` gives the wire octets of the message from the start, at each call.

    `stuffed`: the number of stuffed dots in them.  `threads`: where `read` may wait for a disk;
    None if it never does.
    """

    __slots__ = ("_read", "_stuffed", "_threads", "size")

    def __init__(
        self,
        read: Callable[[], Iterable[Buffer]],
        size: int,
        stuffed: int = 0,
        threads: Executor | None = None,
    ) -> None:
        self._read = read
        self._stuffed = stuffed
        self._threads = threads
        self.size = size

    @property
    def in_memory(self) -> bool:
        return self._threads is None

    def parts(self) -> Iterator[Buffer]:
        """All pieces.  May wait for a disk if it is not `in_memory`."""
        chunks = self._read()
        return _first(_unstuffed(chunks) if self._stuffed else chunks, self.size)

    def first(self, size: int) -> Body:
        """The first `size` bytes as a body; they are read only when it is."""
        return Body(self._read, min(size, self.size), self._stuffed, self._threads)

    async def pieces(self) -> AsyncIterator[Buffer]:
        """All pieces, without blocking the loop."""
        parts = self.parts()
        if self._threads is None:
            for part in parts:
                yield part
            return
        loop = asyncio.get_running_loop()
        while True:
            piece = await loop.run_in_executor(self._threads, next, parts, None)
            if piece is None:
                return
            yield piece

    async def read(self, limit: int | None = None) -> bytes:
        """The first `limit` bytes, or all of them."""
        found = bytearray()
        async for piece in self.pieces():
            found += piece
            if limit is not None and len(found) >= limit:
                return bytes(found[:limit])
        return bytes(found)


def of_bytes(message: bytes) -> Body:
    """The body of a message given without dot stuffing."""
    return Body(lambda: (message + b".\r\n",), len(message))


def _first(chunks: Iterable[Buffer], size: int) -> Iterator[Buffer]:
    """The first `size` octets: a whole message without stuffed dots, except for its final dot
    line."""
    left = size
    for chunk in chunks:
        length = len(chunk)
        if length <= left:
            left -= length
            yield chunk
        else:
            if left:
                yield memoryview(chunk)[:left]
            return


def _unstuffed(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    unstuffer = Unstuffer(lf=False)
    for chunk in chunks:
        yield unstuffer.feed(chunk)
    yield unstuffer.finish()
