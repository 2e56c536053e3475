"""The copies that a process sends to each member: those of a moment go in one COPY.

A request costs both nodes about as much as storing a message does, whatever it carries: a tag, a
TLS record, a turn of the other loop, an answer.  So a message waits until this node begins to
commit its own records, and then goes with all others that wait.

    add ... add -> flush, when the own group begins or after two milliseconds -> COPY -> each answer

Rules of this file:

* A copy waits no longer than two milliseconds for others, whatever the own disk does.
* Each `answered` is called once, with what became of this message: a member may store some of a
  request and not the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from metad.cluster.answers import Answer, Answered, Refused
from metad.cluster.copies import MOST_TOGETHER, unpack_places
from metad.cluster.frames import PIECE, Kind
from metad.cluster.peers import Peers
from metad.errors import ClusterError

WAIT_S: Final = 0.002
PATIENCE_S: Final = 5.0
_NOT_STORED: Final = Refused("not stored")


class _Request:
    """The messages of one COPY."""

    __slots__ = ("_report", "answered", "parts", "size")

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.parts: list[bytes] = []
        self.size = 0
        self.answered: list[Callable[[Answer], None]] = []

    def take(self, answer: Answer) -> None:
        """The member has answered, or will not."""
        answered = self.answered
        refused: set[int] = set()
        if isinstance(answer, Answered) and answer.body:
            try:
                refused = unpack_places(answer.body, len(answered))
            except ClusterError as error:
                answer = Refused(str(error))
        for place, one in enumerate(answered):
            try:
                one(_NOT_STORED if place in refused else answer)
            except Exception as error:  # the others are answered all the same
                self._report(f"panic: after the answer to a copy: {error!r}")


class CopyRequests:
    """Those of one process.  `later` calls something after some seconds, `report` takes a line for
    the log."""

    def __init__(
        self,
        peers: Peers,
        later: Callable[[float, Callable[[], None]], object],
        report: Callable[[str], None],
    ) -> None:
        self._peers = peers
        self._report = report
        self._later = later
        self._waiting: dict[int, _Request] = {}
        self._round = 0  # of waiting: a timer of an earlier one does nothing

    def add(self, member: int, copy: list[bytes], answered: Callable[[Answer], None]) -> None:
        """Send a message (`pack_copy`) soon; `answered` is called later."""
        head, payload = copy
        size = len(head) + len(payload)
        request = self._waiting.get(member)
        if request is None:
            request = self._begin(member)
        elif request.size + size > PIECE or len(request.answered) >= MOST_TOGETHER:
            del self._waiting[member]
            self._send(member, request)
            request = self._waiting.get(member) or self._begin(member)
        request.parts += copy
        request.size += size
        request.answered.append(answered)

    def _begin(self, member: int) -> _Request:
        if not self._waiting:
            self._round += 1
            self._later(WAIT_S, partial(self._waited, self._round))
        request = self._waiting[member] = _Request(self._report)
        return request

    def _waited(self, number: int) -> None:
        if number == self._round:
            self.flush()

    def flush(self) -> bool:
        """Send what waits.  False: nothing did."""
        waiting, self._waiting = self._waiting, {}
        for member, request in waiting.items():
            self._send(member, request)
        return bool(waiting)

    def _send(self, member: int, request: _Request) -> None:
        """`answered` of these messages may be called at once, and may add others."""
        parts, request.parts = request.parts, []
        self._peers.request(member, Kind.COPY, parts, request.take, PATIENCE_S)
