"""A message that a client of this node sent, on its way to its copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from metad.cluster.answers import Answer
from metad.cluster.copies import for_mailboxes, pack_copy
from metad.cluster.copying import Copying
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.errors import RefusedError
from metad.layers.base import Done, Envelope
from metad.layers.logs import LogLayer
from metad.layers.message_record import append_message
from metad.layers.spool import SpooledBody, SpooledIncoming
from metad.system.osio import Buffer

COPY_PATIENCE = 5.0


class ClusterStore(Protocol):
    """What a message needs of the layer."""

    peers: Peers
    log: LogLayer

    def refuse(self, envelope: Envelope, reason: str, done: Done) -> None:
        """Too few members have a message: make that durable, then answer."""


class Outgoing:
    """The message: its own record, and the copies that are to be made."""

    __slots__ = ("_copying", "_done", "_envelope", "_layer", "_parts", "item")

    def __init__(
        self,
        layer: ClusterStore,
        envelope: Envelope,
        parts: Sequence[Buffer] | None,
        size: int,
        done: Done,
    ) -> None:
        """`parts`: trace and body in memory; None: the caller sets `item.spooled`.  `size`: octets
        of the body without the trace."""
        self._layer = layer
        self._envelope = envelope
        self._parts = parts
        self._done = done
        mailboxes = tuple([one.mailbox for one in envelope.recipients])
        self._copying = Copying(layer.peers, mailboxes, self._send, self._finished)
        now_ns = layer.log.osio.time_ns()
        self.item = append_message(envelope, parts, size, self._own_done, now_ns)

    def start(self) -> None:
        """Submit the own record, and send the copies."""
        log = self._layer.log
        is_taken = not log.committer.blocked and log.source.has_space
        if is_taken:
            log.committer.submit(self.item)
        self._copying.start()
        if not is_taken:
            self._copying.own_done(stored=False)

    def _own_done(self, error: RefusedError | None) -> None:
        self._copying.own_done(stored=error is None)

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        item = self.item
        packed = item.envelope
        if len(mailboxes) < len(item.recipients):
            packed = for_mailboxes(packed, mailboxes)
        body = self._parts or tuple(item.spooled.chunks())
        parts = pack_copy(item.id, item.uid, packed, body)
        self._layer.peers.request(member, Kind.COPY, parts, answered, COPY_PATIENCE)

    def _finished(self, reason: str | None) -> None:
        if reason is None:
            self._done(None)
        else:
            self._layer.refuse(self._envelope, reason, self._done)


class ClusterIncoming(SpooledIncoming):
    """A message while it arrives here."""

    __slots__ = ("_layer",)

    def __init__(self, layer: ClusterStore) -> None:
        log = layer.log
        super().__init__(log.osio, log.store.spool, log.budget)
        self._layer = layer

    def commit(self, envelope: Envelope, done: Done) -> None:
        parts = (envelope.trace, *self.parts) if self.in_memory else None
        outgoing = Outgoing(self._layer, envelope, parts, self.size, self.finished(done))
        if parts is None:
            outgoing.item.spooled = SpooledBody(envelope.trace, self)
        outgoing.start()
