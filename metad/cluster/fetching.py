"""FETCH: a message as RETR sends it, in pieces, from a member that has it.

    request   mailbox 4 | id 16 | at 8 | bytes wanted 4
    answer    is it the last piece 1 | digest of the whole 16 | bytes

The digest is XXH3 without a seed; it is that of the whole in the last piece.  A request for no
bytes asks whether the holder can read the message at all.

Rules of this file:

* The holder verifies the record before its first piece, the asker the whole text before it is used.
* A holder that fails or whose text does not verify is replaced by the next one, from the start.
* One piece is on its way at a time.
* If a link was lost, or a holder had too many answers to send, all are asked again after a moment.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from xxhash import xxh3_128

from metad.cluster.answers import (
    TOO_MANY,
    Answer,
    Answered,
    EpochChanged,
    LinkFailed,
    Refused,
)
from metad.cluster.asking import FULL, LATE
from metad.cluster.frames import PIECE, Kind
from metad.cluster.peers import AGAIN_S, Peers
from metad.errors import ClusterError, RefusedError
from metad.limits import CLUSTER_TEXT
from metad.system.osio import Buffer

_ASK = struct.Struct(">I16sQI")
_PIECE = struct.Struct(">?16s")
# Bytes of a piece, so that its answer is one frame.
FETCHED = PIECE - _PIECE.size
PATIENCE_S = 10.0
# A fetch goes on under another view: nothing of it depends on one.
EPOCHS = 3
# How often all holders are asked where a link was lost, and where one had too much to send.
LOST_TRIES = 2
CROWDED_TRIES = 6


class Ask(NamedTuple):
    """`most`: bytes wanted from `at` on."""

    mailbox: int
    id: bytes
    at: int
    most: int

    def pack(self) -> bytes:
        return _ASK.pack(*self)


def unpack_ask(body: bytes) -> Ask:
    """Raises ClusterError."""
    if len(body) != _ASK.size:
        raise ClusterError("not a request for a message")
    ask = Ask._make(_ASK.unpack(body))
    if ask.most > FETCHED:
        raise ClusterError("a piece of a message would be too large")
    return ask


def pack_piece(*, last: bool, digest: bytes, data: Buffer) -> list[Buffer]:
    return [_PIECE.pack(last, digest), data]


class Sink(Protocol):
    """Where a text is collected.  `write` raises OSError."""

    def write(self, chunk: bytes) -> None: ...

    def close(self) -> None: ...


class Fetching:
    """One message on its way here."""

    def __init__(
        self,
        peers: Peers,
        key: tuple[int, bytes],
        holders: Sequence[int],
        new_sink: Callable[[], Sink],
        later: Callable[[float, Callable[[], None]], object],
        done: Callable[[Sink | RefusedError], None],
    ) -> None:
        """`key`: mailbox and id.  `later` calls after so many seconds.  `done` is called once,
        unless it is cancelled: with the sink that has the verified text, which then belongs to the
        caller."""
        self._peers = peers
        self._mailbox, self._id = key
        self._all = holders
        self._holders = list(holders)
        self._tries = 1
        self._most_tries = 1
        self._new_sink = new_sink
        self._later = later
        self._done = done
        self._sink: Sink | None = None
        self._over = False
        self._epochs = EPOCHS

    def start(self) -> None:
        self._try_next(RefusedError("no member that has the message answers"))

    def cancel(self) -> None:
        self._over = True
        self._drop()

    def _drop(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _try_next(self, error: RefusedError) -> None:
        self._drop()
        if not self._holders and self._tries < self._most_tries:
            self._later(AGAIN_S, partial(self._again, error))
            return
        if not self._holders:
            self._over = True
            self._done(error)
            return
        self._holder = self._holders.pop(0)
        self._sink = self._new_sink()
        self._at = 0
        self._digest = xxh3_128()
        self._ask()

    def _again(self, error: RefusedError) -> None:
        if not self._over:
            self._tries += 1
            self._most_tries = 1
            self._holders = list(self._all)
            self._try_next(error)

    def _ask(self) -> None:
        ask = Ask(self._mailbox, self._id, self._at, FETCHED)
        self._peers.request(self._holder, Kind.FETCH, (ask.pack(),), self._answered, PATIENCE_S)

    def _answered(self, answer: Answer) -> None:
        if self._over:
            return
        if isinstance(answer, EpochChanged) and self._epochs:
            self._epochs -= 1
            self._ask()
        elif isinstance(answer, Answered) and len(answer.body) >= _PIECE.size:
            self._take(answer.body)
        else:
            self._most_tries = max(self._most_tries, _tries_after(answer))
            text = answer.text if isinstance(answer, Refused) else "does not answer"
            self._try_next(RefusedError(f"node {self._holder}: {text}"))

    def _take(self, body: bytes) -> None:
        last, digest = _PIECE.unpack_from(body)
        data = body[_PIECE.size :]
        self._at += len(data)
        self._digest.update(data)
        sink = self._sink
        if (not data and not last) or self._at > CLUSTER_TEXT or sink is None:
            self._try_next(RefusedError(f"node {self._holder}: the message has no end"))
            return
        try:
            sink.write(data)
        except OSError as error:
            self._try_next(RefusedError(f"spool: {error}"))
            return
        if not last:
            self._ask()
        elif digest != self._digest.digest():
            self._try_next(RefusedError(f"node {self._holder}: the message does not verify"))
        else:
            self._over, self._sink = True, None
            self._done(sink)


def _tries_after(answer: Answer) -> int:
    """How often all are asked after this answer of one.  A patience that ended was long enough."""
    if answer == TOO_MANY or answer is FULL:
        return CROWDED_TRIES
    return LOST_TRIES if isinstance(answer, LinkFailed) and answer is not LATE else 1


def ask_readable(
    peers: Peers, key: tuple[int, bytes], members: Sequence[int], done: Callable[[bool], None]
) -> None:
    """Whether one of these members can read a message."""
    if not members:
        done(False)
        return
    member, *rest = members

    def answered(answer: Answer) -> None:
        if isinstance(answer, Answered):
            done(True)
        else:
            ask_readable(peers, key, rest, done)

    ask = Ask(*key, 0, 0)
    peers.request(member, Kind.FETCH, (ask.pack(),), answered, PATIENCE_S)
