"""What a link has to write: small frames at once, large bodies piece by piece.

Rules of this file:

* While the transport's buffer is full nothing is written; then small frames go first.
* One large body at a time: the other side never has parts of many in its memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from metad.limits import CLUSTER_OUTSTANDING, CLUSTER_REQUEST_MEMORY

# Small frames that a peer may leave unread: twice as many as the requests of both sides.
MOST_FRAMES: Final = 4 * CLUSTER_OUTSTANDING // CLUSTER_REQUEST_MEMORY


class Outgoing:
    """`queued`: the bytes that wait, whole bodies of which a part is written included.

    `write` may call `pause` and `resume`.
    """

    __slots__ = ("_large", "_paused", "_pumping", "_small", "_write", "queued")

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._small: deque[bytes] = deque()
        self._large: deque[tuple[Iterator[bytes], int]] = deque()
        self._paused = True  # until there is a transport
        self._pumping = False
        self.queued = 0

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait.  Any number may, if they are the only ones."""
        return not self.queued or self.queued + size <= CLUSTER_OUTSTANDING

    @property
    def is_unread(self) -> bool:
        """Whether more small frames wait than for any peer that keeps to its limits."""
        return len(self._small) > MOST_FRAMES

    def send(self, frame: bytes) -> None:
        if self._paused or self._small:
            self._small.append(frame)
            self.queued += len(frame)
        else:
            self._write(frame)

    def send_large(self, frames: Iterator[bytes], size: int) -> None:
        """The frames of a body of `size` bytes, made when they are written."""
        self._large.append((frames, size))
        self.queued += size
        self._pump()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._pump()

    def clear(self) -> None:
        self._paused = True
        self._small.clear()
        self._large.clear()
        self.queued = 0

    def _pump(self) -> None:
        """Write until the transport is full.  It may call `pause` and `resume` from within."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self._paused and (self._small or self._large):
                self._write_one()
        finally:
            self._pumping = False

    def _write_one(self) -> None:
        if self._small:
            frame = self._small.popleft()
            self.queued -= len(frame)
            self._write(frame)
            return
        frames, size = self._large[0]
        piece = next(frames, None)
        if piece is None:
            self._large.popleft()
            self.queued -= size
        else:
            self._write(piece)
