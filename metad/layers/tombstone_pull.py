"""Tombstones that were missed, pulled from the other members, a second after the other.

    this node's vector -> the tombstones that it lacks, and how far the other is -> stored here
    -> the vector moves on

With each answer the other tells its mark and its vector (layers.member_marks).

Rules of this file:

* The vector moves only when all before it is in this node's log and index.
* One worker of a node pulls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import lmdb
import msgpack

from metad.cluster.answers import Answer, Answered
from metad.cluster.frames import Kind
from metad.cluster.marks import Heard, unpack_heard
from metad.cluster.peers import Peers
from metad.errors import ClusterError, RefusedError
from metad.layers.base import Done
from metad.layers.logs import LogLayer
from metad.layers.member_marks import MemberMarks
from metad.store.ids import ID_SIZE
from metad.store.index.tombstones import Origin, Tombstone, Tombstones, pack_told

PATIENCE_S = 5.0
MOST = 1000  # tombstones in one answer
T = TypeVar("T")


class ClusterStore(Protocol):
    """What pulling needs of the layer."""

    peers: Peers
    log: LogLayer
    tombstones: Tombstones
    marks: MemberMarks

    def entomb(self, mailbox: int, ids: bytes, done: Done, told: bytes = b"") -> None: ...


def answer_pull(tombstones: Tombstones, mark: bytes, body: bytes) -> bytes:
    """What this node tells of itself, and what an asker with this vector lacks: of one origin, the
    first `MOST`.

    Answers [mark, this node's vector, None or [number, incarnation, up to, [mailbox, id,
    sequence]...]].  Raises ClusterError.
    """
    theirs, mine = _vector(body), tombstones.vector()
    lacking = None
    for origin, last in mine.items():
        known = theirs.get(origin, 0)
        if last > known:
            found = tombstones.since(origin, known, MOST)
            upto = found[-1].sequence if len(found) == MOST else last
            lacking = (*origin, upto, [(one.mailbox, one.id, one.sequence) for one in found])
            break
    packed: bytes = msgpack.packb((mark, _rows(mine), lacking))
    return packed


def _rows(vector: Mapping[Origin, int]) -> list[tuple[int, int, int]]:
    return [(*origin, last) for origin, last in vector.items()]


def _number(value: object, bits: int) -> int:
    """A value that a row of so many bits can hold.  Raises ValueError."""
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"a number has not {bits} bits")
    return value


def _origin(number: object, life: object) -> Origin:
    return Origin(_number(number, 16), _number(life, 64))


def _unpack_vector(rows: Any) -> dict[Origin, int]:
    return {_origin(number, life): _number(last, 64) for number, life, last in rows}


def _vector(body: bytes) -> dict[Origin, int]:
    """Raises ClusterError."""
    try:
        return _unpack_vector(msgpack.unpackb(body, use_list=False))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ClusterError(f"not a vector: {error}") from None


class Pulled(NamedTuple):
    """An answer.  `upto`: how far `origin` is known with `found`; 0: nothing is lacking."""

    mark: Heard
    vector: dict[tuple[int, int], int]
    origin: Origin
    upto: int
    found: list[Tombstone]


def _answer(body: bytes) -> Pulled:
    """Raises ClusterError."""
    try:
        mark, vector, lacking = msgpack.unpackb(body, use_list=False)
        number, life, upto, rows = lacking or (0, 0, 0, ())
        origin = _origin(number, life)
        found = [Tombstone(_number(box, 32), one, origin, _number(at, 64)) for box, one, at in rows]
        if any(type(one.id) is not bytes or len(one.id) != ID_SIZE for one in found):
            raise ClusterError("a tombstone has a bad id")
        told = cast(dict[tuple[int, int], int], _unpack_vector(vector))
        return Pulled(unpack_heard(mark), told, origin, _number(upto, 64), found)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ClusterError(f"not an answer: {error}") from None


class TombstonePull:
    """One node's pulling from all members."""

    def __init__(self, layer: ClusterStore, report: Callable[[str], None]) -> None:
        self._layer = layer
        self._report = report
        self._busy: set[int] = set()

    def tick(self) -> None:
        """Ask every member that is not being asked."""
        peers = self._layer.peers
        view = peers.view()
        for member in {*view.active, *view.entering} - {peers.number} - self._busy:
            self._ask(member)

    def _ask(self, member: int) -> None:
        vector = self._layer.tombstones.vector()
        body = msgpack.packb(_rows(vector))
        self._busy.add(member)
        answered = partial(self._answered, member)
        self._layer.peers.request(member, Kind.TOMBSTONES, [body], answered, PATIENCE_S)

    def _answered(self, member: int, answer: Answer) -> None:
        self._busy.discard(member)
        if not isinstance(answer, Answered):
            return
        try:
            pulled = _answer(answer.body)
        except ClusterError as error:
            self._report(f"warning: tombstones of member {member}: {error}")
            return
        self._layer.marks.told(member, pulled.mark, pulled.vector)
        if pulled.upto:
            self._busy.add(member)
            self._store(member, pulled.origin, pulled.upto, pulled.found)

    def _store(self, member: int, origin: Origin, upto: int, found: list[Tombstone]) -> None:
        """A deletion record for each that does not stand here; then the vector moves on."""
        left = self._with_lock(lambda: self._layer.tombstones.note(found))
        if left is None:
            self._busy.discard(member)
            return
        boxes: dict[int, list[Tombstone]] = {}
        for one in left:
            boxes.setdefault(one.mailbox, []).append(one)
        waiting = len(boxes)
        failed: RefusedError | None = None

        def stored(error: RefusedError | None) -> None:
            nonlocal waiting, failed
            waiting -= 1
            failed = failed or error
            if waiting <= 0:
                self._advance(member, origin, upto, failed)

        if not boxes:
            stored(None)
        for mailbox, ones in boxes.items():
            told = pack_told([(one.origin, one.sequence) for one in ones])
            self._layer.entomb(mailbox, b"".join([one.id for one in ones]), stored, told)

    def _advance(self, member: int, origin: Origin, upto: int, failed: RefusedError | None) -> None:
        self._busy.discard(member)
        log = self._layer.log
        # A deletion that the index refused lags: until it is entered the vector must not move.
        if failed is None and not log.feed.lagging:
            self._with_lock(lambda: self._layer.tombstones.advance(origin, upto))
            if self._layer.tombstones.vector().get(origin, 0) >= upto:
                self._ask(member)  # there may be more

    def _with_lock(self, change: Callable[[], T]) -> T | None:
        """Change the index, if its lock is free; None: the next second will do."""
        index = self._layer.log.index
        if not index.try_lock():
            return None
        try:
            return change()
        except lmdb.Error as error:
            self._report(f"warning: tombstones: {error}")
            return None
        finally:
            index.unlock()
