"""The users of a cluster: one node accepts changes, and every other keeps a copy of its database.

    this node's lineage -> each member -> what is newer there: revisions, or pages of a whole copy

Rules of this file:

* The node that last began to accept changes counts: of two that do, the one that began at the
  greater epoch (`metad cluster alone`).  The other becomes its copy.
* No login or message waits for any of this.
* One worker of a node asks, once a second; all workers answer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import msgpack

from metad.cluster.answers import Answer, Answered, Refused
from metad.cluster.frames import Kind
from metad.cluster.serving import Reply
from metad.errors import ClusterError, MetadError
from metad.layers.base import Layer
from metad.layers.cluster import ClusterLayer
from metad.users.database import UserDatabase
from metad.users.journal import Lineage
from metad.users.mirror import Gone, Position, Replacement, UserMirror

PATIENCE_S = 5.0
LINEAGE, CHANGES, PAGE = "lineage", "changes", "page"


class UserMirroring:
    """One worker's part.  `asks`: this worker keeps the node's copy up to date."""

    def __init__(
        self,
        layer: Layer,
        users: UserDatabase,
        report: Callable[[str], None],
        *,
        asks: bool,
    ) -> None:
        self._layer = cast(ClusterLayer, layer)
        self._mirror = UserMirror(users)
        self._report = report
        self._asks = asks
        self._busy = False
        self._layer.requests.register(Kind.USERS, self.answer)

    # -- for others

    def answer(self, body: bytes, reply: Reply) -> None:
        """Our lineage and whether we accept changes; then revisions, or a page."""
        try:
            what, *arguments = msgpack.unpackb(body, use_list=False)
            answer = self._answer_to(what, arguments)
        except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
            raise ClusterError(f"not a request for users: {error}") from None
        except MetadError as error:
            reply(Refused(str(error)))
            return
        reply([msgpack.packb(answer)])

    def _answer_to(self, what: str, arguments: list[Any]) -> Any:
        lineage, source = self._mirror.lineage()
        if what == LINEAGE:
            return lineage, source
        if source:
            raise ClusterError("the users here are a copy themselves")
        if what == CHANGES:
            epoch, revision = arguments
            known = self._mirror.changes(revision) if epoch == lineage.epoch else None
            return lineage, known
        if what == PAGE:
            return self._mirror.page(Position(*arguments[0]))
        raise ClusterError(f"users: an unknown request {what!r}")

    # -- from others

    def tick(self) -> None:
        """Once a second: check whether another member has changes that we lack."""
        peers = self._layer.peers
        if self._busy or not self._asks:
            return
        view = peers.view()
        for member in {*view.active, *view.entering} - {peers.number}:
            self.request(member, (LINEAGE,), partial(self._compare, member), _leave)

    def request(
        self,
        member: int,
        body: tuple[Any, ...],
        done: Callable[[Any], None],
        failed: Callable[[], None],
    ) -> None:
        """Ask a member about its users.  `failed` is called if there is no good answer."""

        def answered(answer: Answer) -> None:
            if not isinstance(answer, Answered):
                failed()
                return
            try:
                done(msgpack.unpackb(answer.body, use_list=False))
            except MetadError as error:
                self._report(f"warning: users of node {member}: {error}")
                failed()
            except Exception as error:  # an answer that makes no sense, whatever that leads to
                self._report(f"warning: users of node {member}: {error!r}")
                failed()

        parts = [msgpack.packb(body)]
        self._layer.peers.request(member, Kind.USERS, parts, answered, PATIENCE_S)

    def _compare(self, member: int, answer: Any) -> None:
        (epoch, revision), source = answer
        theirs, mine = Lineage(epoch, revision), self._mirror.lineage()
        if source or self._busy or theirs <= mine[0]:
            return
        if not mine[1] and theirs.epoch <= mine[0].epoch:
            return  # both accept changes since the same epoch, which should be impossible
        self._busy = True
        if theirs.epoch != mine[0].epoch:
            self._copy_whole(member)
            return
        done = partial(self._changes_came, member)
        self.request(member, (CHANGES, theirs.epoch, mine[0].revision), done, self.ended)

    def _changes_came(self, member: int, answer: Any) -> None:
        _, changes = answer
        if changes is None:
            self._copy_whole(member)
            return
        self._mirror.apply(changes)
        self._busy = False

    def _copy_whole(self, member: int) -> None:
        self._report(f"users: taking a whole copy of those of node {member}")
        try:
            copying = _Copying(self, self._mirror, member)
        except BaseException:
            self.ended()
            raise
        copying.start()

    def tell(self, member: int, gone: Gone) -> None:
        """Both nodes had gone on alone, say."""
        if gone.number:
            named = ", ".join(gone.some) + ", ..." * (gone.number > len(gone.some))
            self._report(
                f"warning: users: the users of node {member} have replaced those of this node; "
                f"{gone.number} addresses that were here are not among them: {named}"
            )

    def ended(self) -> None:
        """It is done, or postponed to the next second."""
        self._busy = False


def _leave() -> None:
    """A member that does not answer is asked again in a second."""


class _Copying:
    """A whole copy, page by page, which replaces this node's users when complete."""

    def __init__(self, mirroring: UserMirroring, mirror: UserMirror, member: int) -> None:
        self._mirroring = mirroring
        self._member = member
        self._first: Lineage | None = None
        self._stack = ExitStack()
        self._whole: Replacement = self._stack.enter_context(mirror.replacing(member))

    def start(self) -> None:
        self._ask(Position())

    def _ask(self, position: Position) -> None:
        self._request((PAGE, tuple(position)), self._came)

    def _request(self, body: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        self._mirroring.request(self._member, body, done, self._end)

    def _came(self, answer: Any) -> None:
        (epoch, revision), rows, following = answer
        self._first = self._first or Lineage(epoch, revision)
        self._whole.add(rows)
        if following is not None:
            self._ask(Position(*following))
        else:
            self._request((CHANGES, self._first.epoch, self._first.revision), self._finish)

    def _finish(self, answer: Any) -> None:
        _, changes = answer
        if changes is not None and self._first is not None:
            self._whole.finish(self._first, changes)
        self._end()

    def _end(self) -> None:
        """Without `finish` nothing has changed.  Raises MetadError."""
        try:
            self._stack.close()
            self._mirroring.tell(self._member, self._whole.gone)
        finally:
            self._mirroring.ended()
