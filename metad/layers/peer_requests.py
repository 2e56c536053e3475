"""What other members of the cluster ask of this node, answered.

    COPY        store a message that another member received        -> nothing
    PART STORE  the same for a large one, in pieces                  -> cluster.streaming
    LIST        this node's part of a mailbox                        -> cluster.listed
    LOCK UNLOCK the lock of a mailbox, while the link lives          -> nothing
    FETCH       a message as RETR sends it                           -> cluster.fetching
    TEXTS       several small ones                                   -> cluster.small_texts
    DELETE      tombstones                                           -> nothing
    TOMBSTONES  what a member's vector lacks                         -> layers.tombstone_pull
    STATE       what this node has                                   -> cluster.entering.MemberState
    LACKS       entries that should be here                          -> those that are not

Rules of this file:

* Nothing is answered before it is durable.
* A lock taken for another member's session is released when its link ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from metad.cluster.answers import IN_USE, Refused
from metad.cluster.entering import MemberState
from metad.cluster.frames import RELEASES, Kind
from metad.cluster.listed import DIGESTS_SIZE, Listed
from metad.cluster.serving import Asker, Reply
from metad.errors import ClusterError, RefusedError
from metad.layers.arriving_copies import ArrivingCopies
from metad.layers.base import Done
from metad.layers.logs import LogLayer
from metad.layers.member_marks import MemberMarks
from metad.layers.own_mailbox import OwnMailbox
from metad.layers.served_bodies import ServedBodies
from metad.layers.tombstone_pull import answer_pull
from metad.store.background import Background
from metad.store.ids import ID_SIZE
from metad.store.index.tombstones import Tombstones

MAILBOX_SIZE = 4
KEY_SIZE = MAILBOX_SIZE + ID_SIZE


class ClusterStore(Protocol):
    """What requests need of the layer."""

    log: LogLayer
    tombstones: Tombstones
    marks: MemberMarks

    def entomb(self, mailbox: int, ids: bytes, done: Done) -> None: ...

    def state(self) -> MemberState: ...

    def flush(self) -> None: ...


class PeerRequests:
    """The requests of all links of one worker."""

    def __init__(self, layer: ClusterStore, thread: Background) -> None:
        """`thread` reads what is not in memory."""
        self._layer = layer
        self._log = layer.log
        self._thread = thread
        self.copies = ArrivingCopies(layer)
        self._bodies = ServedBodies(layer.log, thread)
        self._locks: dict[Asker, dict[int, bytes]] = {}  # mailbox, token of the session
        self._handlers: dict[Kind, Callable[[bytes, Reply], None]] = {
            Kind.COPY: self.copies.copy,
            Kind.PART: self.copies.part,
            Kind.STORE: self.copies.store,
            Kind.DROP: self.copies.drop,
            Kind.LIST: self._list,
            Kind.LOCK: self._lock,
            Kind.UNLOCK: self._unlock,
            Kind.FETCH: self._bodies.fetch,
            Kind.TEXTS: self._bodies.texts,
            Kind.DELETE: self._delete,
            Kind.TOMBSTONES: self._tombstones,
            Kind.STATE: self._state,
            Kind.LACKS: self._lacks,
        }

    def register(self, kind: Kind, handler: Callable[[bytes, Reply], None]) -> None:
        """Let another part of the worker answer requests of a kind."""
        self._handlers[kind] = handler

    def handle(self, kind: int, body: bytes, reply: Reply) -> None:
        """Answer one request, now or later."""
        handler = self._handlers.get(Kind(kind))
        if handler is None:
            reply(Refused("an unknown request"))
            return
        if self._layer.marks.refusal and kind not in RELEASES:
            reply(Refused(self._layer.marks.refusal))
            return
        try:
            handler(body, reply)
        except (ClusterError, RefusedError) as error:
            reply(Refused(str(error)))

    def tick(self) -> None:
        """A second has passed."""
        self._bodies.tick()

    def stop(self) -> None:
        self._thread.stop()
        self._bodies.stop()
        self.copies.stop()

    # -- mail in

    def _delete(self, body: bytes, reply: Reply) -> None:
        mailbox, ids = _mailbox_and_rest(body)
        if not ids or len(ids) % ID_SIZE:
            raise ClusterError("not a deletion")
        self._layer.entomb(mailbox, ids, partial(_durable, reply))

    def _tombstones(self, body: bytes, reply: Reply) -> None:
        reply([answer_pull(self._layer.tombstones, self._layer.marks.mark(), body)])

    def _state(self, body: bytes, reply: Reply) -> None:
        reply([self._layer.state().pack()])

    def _lacks(self, body: bytes, reply: Reply) -> None:
        """The entries that are neither here nor deleted."""
        if len(body) % KEY_SIZE:
            raise ClusterError("not a list of entries")
        keys = [body[at : at + KEY_SIZE] for at in range(0, len(body), KEY_SIZE)]
        missing = self._log.index.missing(keys)
        stands = self._layer.tombstones.stands
        reply([one for one in missing if not stands(_mailbox(one), one[MAILBOX_SIZE:])])

    # -- mail out

    def _lock(self, body: bytes, reply: Reply) -> None:
        mailbox, token = _mailbox_and_rest(body)
        if not self._log.locks.acquire(mailbox):
            reply(IN_USE)
            return
        self._locks.setdefault(reply.link, {})[mailbox] = token
        reply(())

    def _unlock(self, body: bytes, reply: Reply) -> None:
        mailbox, token = _mailbox_and_rest(body)
        held = self._locks.get(reply.link, {})
        if held.get(mailbox) == token:
            del held[mailbox]
            self._log.locks.release(mailbox)
        reply(())

    def link_ended(self, link: Asker) -> None:
        """Its sessions are over, or go on without a lock."""
        for mailbox in self._locks.pop(link, ()):
            self._log.locks.release(mailbox)
        self._bodies.link_ended(link)
        self.copies.link_ended(link)

    def _list(self, body: bytes, reply: Reply) -> None:
        mailbox, digests = _mailbox_and_rest(body)
        if len(digests) not in (0, DIGESTS_SIZE):
            raise ClusterError("not digests of a listing")

        def listed(outcome: Listed | RefusedError) -> None:
            if isinstance(outcome, Listed):
                reply([outcome.pack(digests)])
            else:
                reply(Refused(str(outcome)))

        OwnMailbox(self._log, self._layer.tombstones, mailbox).list(listed)


def _mailbox(key: bytes) -> int:
    return int.from_bytes(key[:MAILBOX_SIZE], "big")


def _mailbox_and_rest(body: bytes) -> tuple[int, bytes]:
    """Raises ClusterError."""
    if len(body) < MAILBOX_SIZE:
        raise ClusterError("a request without a mailbox")
    return int.from_bytes(body[:MAILBOX_SIZE], "big"), body[MAILBOX_SIZE:]


def _durable(reply: Reply, error: RefusedError | None) -> None:
    reply(() if error is None else Refused(str(error) or "not stored"))
