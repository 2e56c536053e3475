"""A large message on its way to one member: in pieces, while it arrives here.

    PART    number of the stream 4 | at 8 | bytes                  -> bytes that the member has 8
    STORE   number 4 | size 8 | digest 16 | a COPY (cluster.copies) whose body goes in front
                                                                   -> nothing, once it is durable
    DROP    number 4: the stream is not wanted                     -> nothing

Rules of this file:

* Parts are answered with what the member has, so after a change of the epoch or a loss the stream
  goes on from there.  Only STORE depends on the epoch.
* Parts on their way are few and count in the memory budget.  While there is no room for one, on the
  link or in memory, the stream waits: until more of the message arrives, and after its end until
  its patience ends.
* A stream stores one message once.  Whatever goes wrong ends it: the caller begins a new one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

from xxhash import xxh3_128

from metad.budget import Budget
from metad.cluster.answers import Answer, Answered, EpochChanged, LinkFailed, Refused
from metad.cluster.asking import FULL
from metad.cluster.frames import MOST_TAG, PIECE, Kind
from metad.cluster.peers import Peers
from metad.errors import ClusterError
from metad.system.osio import Buffer

_PART = struct.Struct(">IQ")
_STORE = struct.Struct(">IQ16s")
_SIZE = struct.Struct(">Q")
PART_HEAD = _PART.size
STORE_HEAD = _STORE.size
# Bytes of a part, so that it is one frame.
STREAMED = PIECE - PART_HEAD
# Parts of one stream without an answer.
WINDOW = 4
PATIENCE_S = 5.0
# A member syncs a whole message before it answers: bytes per second that even a slow disk takes.
SLOW_DISK = 8 << 20
# How often a stream goes on from what the member has.
REWINDS = 8
RETRY_S = 0.02
DROP_TRIES = 3

Done = Callable[[Answer], None]


def unpack_part(body: bytes) -> tuple[int, int, bytes]:
    """Number, offset, bytes.  Raises ClusterError."""
    if len(body) <= PART_HEAD:
        raise ClusterError("not a part of a message")
    return *_PART.unpack_from(body), body[PART_HEAD:]


def unpack_store(body: bytes) -> tuple[int, int, bytes, bytes]:
    """Number, size and digest of what was streamed, the COPY.  Raises ClusterError."""
    if len(body) <= STORE_HEAD:
        raise ClusterError("not the end of a message")
    return *_STORE.unpack_from(body), body[STORE_HEAD:]


def unpack_drop(body: bytes) -> int:
    """Raises ClusterError."""
    if len(body) != 4:
        raise ClusterError("not a stream")
    return int.from_bytes(body, "big")


def pack_size(size: int) -> bytes:
    return _SIZE.pack(size)


class Source(Protocol):
    """The message; its size grows while it arrives."""

    @property
    def size(self) -> int: ...

    def read(self, at: int, most: int) -> bytes:
        """Bytes from `at` on.  Raises OSError."""


@dataclass(slots=True)
class Streaming:
    """What the streams of one process share.  `later` calls something after some seconds; `piece`:
    bytes of a part."""

    peers: Peers
    budget: Budget
    later: Callable[[float, Callable[[], None]], object]
    piece: int = STREAMED
    numbers: count[int] = field(default_factory=lambda: count(1))


class Stream:
    """One message to one member.  `is_open`: it may still become a copy."""

    __slots__ = (
        "_answered", "_confirmed", "_copy", "_digest", "_digested", "_failed", "_flying",
        "_is_full", "_number", "_progress", "_rewinding", "_rewinds", "_sent", "_shared",
        "_source", "_waits", "is_open", "member",
    )  # fmt: skip

    def __init__(self, shared: Streaming, member: int, source: Source, failed: Done) -> None:
        """`failed` is called if the stream ends before `store`."""
        self._shared = shared
        self.member = member
        self._source = source
        self._failed = failed
        self._number = next(shared.numbers) & MOST_TAG
        self._sent = self._confirmed = 0
        self._flying = 0  # parts without an answer
        self._digest = xxh3_128()
        self._digested = 0
        self._rewinding = False
        self._rewinds = 0
        self._copy: Sequence[Buffer] | None = None  # once the message is complete
        self._answered: Done = failed
        self._progress = 0.0  # when the member last confirmed something, or the end was there
        self._is_full = False  # there was no room, on the link or in memory
        self._waits = False  # for a timer, which tries again
        self.is_open = True

    def more(self) -> None:
        """The source has grown."""
        self._is_full = False
        self._go_on()

    def store(self, copy: Sequence[Buffer], answered: Done) -> None:
        """The source is complete: have the member store it.  `copy`: what names it, and what goes
        in front."""
        self._copy = copy
        self._answered = answered
        self._progress = self._shared.peers.now()
        self.more()

    def drop(self) -> None:
        """It is not wanted any more.  Idempotent."""
        if self.is_open:
            self.is_open = False
            self._tell_drop(DROP_TRIES)

    # -- parts

    def _go_on(self) -> None:
        while self._may_send() and self._flying < WINDOW:
            left = self._source.size - self._sent
            if not left or (left < self._shared.piece and self._copy is None):
                break
            self._send_part(min(left, self._shared.piece))
        if self._may_send() and self._copy is not None and self._confirmed == self._source.size:
            self._send_store()

    def _may_send(self) -> bool:
        return self.is_open and not self._rewinding and not self._is_full

    def _send_part(self, size: int) -> None:
        shared, at = self._shared, self._sent
        budget = shared.budget
        # Half is for small messages; a stream that has nothing on its way may use it.
        if budget.used + size > (budget.half if self._flying else budget.limit):
            self._wait()
            return
        budget.used += size
        try:
            data = self._source.read(at, size)
        except OSError as error:
            budget.give_back(size)
            self._fail(LinkFailed(f"spool: {error}"))
            return
        if at + len(data) > self._digested:
            self._digest.update(data[self._digested - at :])
            self._digested = at + len(data)
        self._sent += len(data)
        self._flying += 1
        parts = (_PART.pack(self._number, at), data)
        on_answer = partial(self._on_part, at, size)
        shared.peers.request(self.member, Kind.PART, parts, on_answer, PATIENCE_S)

    def _on_part(self, at: int, size: int, answer: Answer) -> None:
        self._flying -= 1
        self._shared.budget.give_back(size)
        if not self.is_open:
            return
        if isinstance(answer, Answered) and len(answer.body) == _SIZE.size:
            (has,) = _SIZE.unpack(answer.body)
            self._is_full = False
            self._confirm(has, at + size)
        elif isinstance(answer, EpochChanged) or answer is FULL:
            self._rewind(counts=answer is not FULL)
        else:
            self._fail(answer)
        if self._rewinding and not self._flying:
            self._rewinding = False
            self._sent = self._confirmed
            if answer is FULL:
                self._wait()
                return
        self._go_on()

    def _confirm(self, has: int, expected: int) -> None:
        if has < self._confirmed or has > self._sent:
            self._fail(LinkFailed("the member has lost what it got"))
            return
        if has > self._confirmed:
            self._confirmed = has
            self._progress = self._shared.peers.now()
        if has < expected:
            self._rewind(counts=True)

    def _rewind(self, *, counts: bool) -> None:
        """Send again what the member has not got, once no part is on its way."""
        if not self._rewinding:
            self._rewinding = True
            self._rewinds += counts
            if self._rewinds > REWINDS:
                self._fail(LinkFailed("the stream breaks again and again"))

    def _wait(self) -> None:
        """There is no room, on the link or in memory."""
        self._is_full = True
        if self._copy is None or self._waits or not self.is_open:
            return
        if self._shared.peers.now() - self._progress > PATIENCE_S:
            self._fail(LinkFailed("no room for a part of a message"))
            return
        self._waits = True
        self._shared.later(RETRY_S, self._waited)

    def _waited(self) -> None:
        self._waits = False
        self.more()

    # -- the end

    def _send_store(self) -> None:
        self.is_open = False
        size = self._confirmed
        parts = (_STORE.pack(self._number, size, self._digest.digest()), *(self._copy or ()))
        patience_s = PATIENCE_S + size / SLOW_DISK
        self._shared.peers.request(self.member, Kind.STORE, parts, self._stored, patience_s)

    def _stored(self, answer: Answer) -> None:
        if answer is FULL:  # it was not sent
            self.is_open = True
            self._wait()
            return
        if isinstance(answer, EpochChanged):  # it may not have been carried out
            self._tell_drop(DROP_TRIES)
        self._answered(answer)

    def _fail(self, answer: Answer) -> None:
        if self.is_open:
            self.drop()
            if isinstance(answer, Answered):
                answer = Refused("not the answer to a part of a message")
            self._answered(answer)

    def _tell_drop(self, tries: int) -> None:
        def answered(answer: Answer) -> None:
            if isinstance(answer, EpochChanged) and tries > 1:
                self._tell_drop(tries - 1)

        if self._sent:
            parts = (self._number.to_bytes(4, "big"),)
            self._shared.peers.request(self.member, Kind.DROP, parts, answered, PATIENCE_S)
