"""The requests that one side of a link has sent, until they are answered.

Rules of this file:

* Each `done` is called once: by the answer, by its deadline, or when the link is closed.
* A `done` that raises is reported, and keeps no other request from its answer.
* A request whose patience ended still counts until it is answered: a peer that stalls gets no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metad.cluster.answers import Answer, Done, LinkFailed
from metad.cluster.frames import MOST_TAG, RELEASES, FrameError, Kind
from metad.limits import (
    CLUSTER_BODY,
    CLUSTER_OUTSTANDING,
    CLUSTER_PARTS,
    CLUSTER_REQUEST_MEMORY,
    MIB,
)

FULL: Final = LinkFailed("too much waits for answers on this link")
TOO_LARGE: Final = LinkFailed(f"larger than {CLUSTER_BODY // MIB} MiB")
LATE: Final = LinkFailed("no answer in time")


class Waiting:
    """One request.  `done` is None when it was called; `parts` are the pieces of an answer."""

    __slots__ = ("cost", "deadline", "done", "epoch", "parts")

    def __init__(self, done: Done, deadline: float, epoch: int, cost: int) -> None:
        self.done: Done | None = done
        self.deadline = deadline
        self.epoch = epoch
        self.cost = cost
        self.parts: list[bytes] | None = None


class Asking:
    """`outstanding`: the bytes of requests without an answer."""

    __slots__ = ("_held", "_report", "_tag", "_waiting", "outstanding")

    def __init__(self, report: Callable[[str], None]) -> None:
        """`report` takes a line for the log."""
        self._report = report
        self._tag = 0
        self._waiting: dict[int, Waiting] = {}
        self._held = 0
        self.outstanding = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def obstacle(self, kind: int, size: int) -> LinkFailed | None:
        """Why a request cannot be sent.  A large one can, if it is the only one.

        Parts of large messages wait for room, so they leave some to what would be refused.
        """
        if kind in RELEASES:
            return None
        if size > CLUSTER_BODY:
            return TOO_LARGE
        wanted = self.outstanding + size + CLUSTER_REQUEST_MEMORY
        most = CLUSTER_PARTS if kind == Kind.PART else CLUSTER_OUTSTANDING
        return FULL if self.outstanding and wanted > most else None

    def add(self, done: Done, deadline: float, epoch: int, size: int) -> int:
        """The tag of a new request."""
        tag = self._tag
        while True:
            tag = tag + 1 if tag < MOST_TAG else 1
            if tag not in self._waiting:
                break
        self._tag = tag
        cost = size + CLUSTER_REQUEST_MEMORY
        self.outstanding += cost
        self._waiting[tag] = Waiting(done, deadline, epoch, cost)
        return tag

    def take_piece(self, tag: int, body: bytes) -> None:
        """Keep a piece that is not the last one.  Raises FrameError."""
        waiting = self._waiting.get(tag)
        if waiting is None:
            raise FrameError("an answer to no request")
        self._held += len(body)
        if self._held > CLUSTER_BODY:
            raise FrameError(f"answers of more than {CLUSTER_BODY // MIB} MiB at once")
        if waiting.parts is None:
            waiting.parts = []
        waiting.parts.append(body)

    def take(self, tag: int, body: bytes) -> tuple[Waiting, bytes]:
        """The request that is answered, and the whole body.  Raises FrameError."""
        waiting = self._waiting.pop(tag, None)
        if waiting is None:
            raise FrameError("an answer to no request")
        self.outstanding -= waiting.cost
        if waiting.parts is not None:
            self._held -= sum(map(len, waiting.parts))
            body = b"".join((*waiting.parts, body))
        return waiting, body

    def is_wanted(self, tag: int) -> bool:
        """Whether a request that waits to be sent still has patience; otherwise it is forgotten."""
        waiting = self._waiting[tag]
        if waiting.done is None:
            del self._waiting[tag]
            self.outstanding -= waiting.cost
        return waiting.done is not None

    def tell(self, waiting: Waiting, answer: Answer) -> None:
        """Call `done` of a request, unless it was called."""
        done, waiting.done = waiting.done, None
        if done is not None:
            try:
                done(answer)
            except Exception as error:
                self._report(f"panic: after the answer of another node: {error!r}")

    def expire(self, now: float) -> None:
        for waiting in list(self._waiting.values()):
            if waiting.deadline <= now:
                self.tell(waiting, LATE)

    def fail_all(self, reason: str) -> None:
        failed = LinkFailed(reason)
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._held = self.outstanding = 0
        for one in waiting:
            self.tell(one, failed)
