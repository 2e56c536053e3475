"""The requests that one side of a link has received, until it has answered them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from metad.cluster.answers import Refused
from metad.cluster.frames import MORE, FrameError
from metad.limits import CLUSTER_BODY, CLUSTER_OUTSTANDING, CLUSTER_REQUEST_MEMORY, MIB
from metad.system.osio import Buffer


class Asker(Protocol):
    """The link on which a request came, and the number of the node that asked."""

    @property
    def peer(self) -> int: ...

    def answer(self, tag: int, answer: Sequence[Buffer] | Refused) -> None: ...


class Reply:
    """Answers one request: call it once, now or later, with the parts of the answer or a refusal.

    `link` tells the links of one node apart; a link that is closed takes the answer and drops it.
    """

    __slots__ = ("_tag", "link")

    def __init__(self, link: Asker, tag: int) -> None:
        self.link = link
        self._tag = tag

    def __call__(self, answer: Sequence[Buffer] | Refused) -> None:
        self.link.answer(self._tag, answer)

    @property
    def member(self) -> int:
        """The number of the node that asks."""
        return self.link.peer


class Serving:
    """`unanswered`: tag -> the bytes that its request takes."""

    __slots__ = ("_held", "_total", "partial", "unanswered")

    def __init__(self) -> None:
        self.partial: dict[int, tuple[int, int, list[bytes]]] = {}
        self.unanswered: dict[int, int] = {}
        self._held = 0
        self._total = 0

    def collect(self, kind: int, flags: int, tag: int, epoch: int, body: bytes) -> bytes | None:
        """The whole body, once its last piece is here.  Raises FrameError."""
        first = (kind, epoch, list[bytes]())
        known_kind, known_epoch, parts = self.partial.setdefault(tag, first)
        if (kind, epoch) != (known_kind, known_epoch):
            raise FrameError("the pieces of a request differ in kind or epoch")
        parts.append(body)
        self._held += len(body)
        if self._held > CLUSTER_BODY:
            raise FrameError(f"requests of more than {CLUSTER_BODY // MIB} MiB at once")
        if flags & MORE:
            return None
        whole = b"".join(self.partial.pop(tag)[2])
        self._held -= len(whole)
        return whole

    def begin(self, tag: int, size: int, *, is_release: bool = False) -> None:
        """A request is handed to its handler.  Raises FrameError.

        `is_release`: it is answered before the next one is read (frames.RELEASES).
        """
        unanswered = self.unanswered
        cost = size + CLUSTER_REQUEST_MEMORY
        if unanswered:
            if tag in unanswered:
                raise FrameError("two requests have one tag")
            if self._total + cost > CLUSTER_OUTSTANDING and not is_release:
                raise FrameError(f"more than {CLUSTER_OUTSTANDING // MIB} MiB of requests wait")
        self._total += cost
        unanswered[tag] = cost

    def end(self, tag: int) -> bool:
        """It is answered.  False: it was already, or the link is closed."""
        cost = self.unanswered.pop(tag, None)
        if cost is None:
            return False
        self._total -= cost
        return True

    def clear(self) -> None:
        self.partial.clear()
        self.unanswered.clear()
        self._held = self._total = 0
