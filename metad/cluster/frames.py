"""What goes over a link: frames, each a head of 16 bytes and a body.

    length of the body 4 | kind 1 | flags 1 | reserved 2 | tag 4 | epoch 4      big-endian

An answer has the tag of its request.  A body longer than a piece goes in several frames of one tag;
all but the last are whole pieces, and have the flag MORE.  Small frames pass between the pieces of
a large one.

Rules of this file:

* Bounded: a head that promises more than a piece is refused before its body is waited for, and so
  is one of less with MORE, of which there could be any number.
* However the bytes were cut on their way, the same frames come out, and then the same error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

from metad.errors import ClusterError
from metad.limits import KIB
from metad.system.osio import Buffer

HEAD: Final = struct.Struct(">IBBHII")
HEAD_SIZE: Final = HEAD.size
PIECE: Final = 256 * KIB
# A piece of a body with what a kind may put in front of it.
MOST_BODY: Final = PIECE + 64
MORE: Final = 1
MOST_TAG: Final = 0xFFFFFFFF


class Kind(IntEnum):
    """Of the link itself from 1, requests from 16, answers from 32.

    The first PONG tells that the HELLO was accepted; later ones answer a PING.
    """

    HELLO = 1
    VIEW = 2
    PING = 3
    PONG = 4
    COPY = 16
    LIST = 17
    LOCK = 18
    UNLOCK = 19
    FETCH = 20
    DELETE = 21
    TOMBSTONES = 22
    JOIN = 23
    STATE = 24
    LACKS = 25
    USERS = 26
    PART = 27
    STORE = 28
    DROP = 29
    TEXTS = 30
    ANSWER = 32
    REFUSED = 33
    STALE = 34


FIRST_REQUEST: Final = Kind.COPY
FIRST_ANSWER: Final = Kind.ANSWER
# What gives back a lock or a message begun on the other side.  They are answered at once and always
# taken, however much waits on the link: nothing else would ever release it while the link lives.
RELEASES: Final = frozenset({int(Kind.UNLOCK), int(Kind.DROP)})
_KNOWN: Final = frozenset(int(kind) for kind in Kind)
# Kind, flags, tag, epoch, body.  A plain tuple: there is one for every copy of a message.
Frame = tuple[int, int, int, int, bytes]


class FrameError(ClusterError):
    """What arrived is not a frame, or has no place here."""


def encode(kind: int, tag: int, epoch: int, parts: Sequence[Buffer], size: int) -> bytes:
    """One frame; `size` is the sum of `parts`, a piece at most."""
    return b"".join((HEAD.pack(size, kind, 0, 0, tag, epoch), *parts))


def pieces(kind: int, tag: int, epoch: int, parts: Sequence[Buffer]) -> Iterator[bytes]:
    """The frames of a body of any length."""
    left = sum(map(len, parts))
    waiting: list[memoryview] = []
    size = 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[: PIECE - size]
            view = view[len(taken) :]
            waiting.append(taken)
            size += len(taken)
            if size == PIECE and left > PIECE:
                yield b"".join((HEAD.pack(size, kind, MORE, 0, tag, epoch), *waiting))
                left -= size
                waiting, size = [], 0
    yield b"".join((HEAD.pack(size, kind, 0, 0, tag, epoch), *waiting))


class Decoder:
    """Makes frames of the bytes of one connection.  `most`: bytes of the body of one; it may be
    changed after a frame, for the next."""

    __slots__ = ("_held", "_parts", "_wanted", "most")

    def __init__(self, most: int = MOST_BODY) -> None:
        self.most = most
        self._parts: list[bytes] = []
        self._held = 0
        self._wanted = HEAD_SIZE

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes.  Raises FrameError after those before the fault.

        To be used up before it is called again, or never called again.
        """
        if self._held:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._wanted:
                return
            data = b"".join(self._parts)
            self._parts = []
            self._held = 0
        at, end = 0, len(data)
        self._wanted = HEAD_SIZE
        while end - at >= HEAD_SIZE:
            length, kind, flags, reserved, tag, epoch = HEAD.unpack_from(data, at)
            if length > self.most or kind not in _KNOWN or flags > MORE or reserved:
                raise FrameError(_fault(length, kind, flags, self.most))
            if flags and length < PIECE:
                raise FrameError("a piece is too small")
            stop = at + HEAD_SIZE + length
            if stop > end:
                self._wanted = HEAD_SIZE + length
                break
            yield kind, flags, tag, epoch, data[at + HEAD_SIZE : stop]
            at = stop
        if at < end:
            self._parts.append(data[at:] if at else data)
            self._held = end - at


def _fault(length: int, kind: int, flags: int, most: int) -> str:
    if length > most:
        return f"a frame of {length:,} bytes is too long"
    if kind not in _KNOWN:
        return f"a frame has the unknown kind {kind}"
    return f"a frame has the unknown flags {flags}" if flags > MORE else "a frame is not ours"
