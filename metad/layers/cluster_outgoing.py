"""A message that a client of this node sent, on its way to its copies.

    small      one COPY to each peer, when the message is complete
    large      streams to the peers that the rules choose, while it arrives; then STORE

Rules of this file:

* What a stream began is only a guess: when the message is complete, the rules choose the peers, and
  those without a stream get one from the start.
* A message that is aborted leaves nothing: a peer has it in a file without a name until STORE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from metad.cluster.answers import Answer
from metad.cluster.copies import for_mailboxes, pack_copy
from metad.cluster.copying import Copying
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.cluster.streaming import Source, Stream, Streaming
from metad.errors import RefusedError
from metad.layers.base import Done, Envelope
from metad.layers.held_spool import HeldSpool
from metad.layers.logs import LogLayer
from metad.layers.message_record import append_message
from metad.layers.spool import SpooledBody, SpooledIncoming, read_parts
from metad.system.osio import Buffer

COPY_PATIENCE = 5.0


class ClusterStore(Protocol):
    """What a message needs of the layer."""

    peers: Peers
    log: LogLayer
    streaming: Streaming

    def refuse(self, envelope: Envelope, reason: str, done: Done) -> None:
        """Too few members have a message: make that durable, then answer."""

    def others_suffice(self) -> bool:
        """Whether the peers alone can hold all copies."""


class InMemory:
    """A body that arrived whole, as a stream reads it."""

    __slots__ = ("_body", "size")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)

    def read(self, at: int, most: int) -> bytes:
        return read_parts((self._body,), at, most)


class CopiesAhead:
    """The streams of a message while it arrives: to the peers that will be asked for a copy, as it
    seems now.  `streams`: by member."""

    __slots__ = ("_layer", "_source", "streams")

    def __init__(self, layer: ClusterStore, mailboxes: Sequence[int], source: Source) -> None:
        self._layer = layer
        self._source = source
        self.streams: dict[int, Stream] = {}
        copying = Copying(layer.peers, mailboxes, self._begin, lambda reason: None)
        copying.start()
        if not _is_taken(layer.log):
            copying.own_done(stored=False)

    def _begin(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        """If the stream fails, `answered` has the next in line chosen."""
        if member in self.streams:
            return

        def failed(answer: Answer) -> None:
            self.streams.pop(member, None)
            answered(answer)

        stream = Stream(self._layer.streaming, member, self._source, failed)
        self.streams[member] = stream
        stream.more()

    def more(self) -> None:
        """More of the message has arrived."""
        for stream in list(self.streams.values()):
            stream.more()

    def drop(self) -> None:
        for stream in self.streams.values():
            stream.drop()
        self.streams.clear()


class Outgoing:
    """The message: its own record, and the copies that are to be made."""

    __slots__ = (
        "_copying", "_done", "_envelope", "_layer", "_parts", "_source", "_streams", "_unused",
        "item",
    )  # fmt: skip

    def __init__(
        self,
        layer: ClusterStore,
        envelope: Envelope,
        source: Source,
        parts: Sequence[Buffer] | None,
        done: Done,
    ) -> None:
        """`source`: the body without the trace.  `parts`: both, in memory; None: the caller sets
        `item.spooled`."""
        self._layer = layer
        self._envelope = envelope
        self._source = source
        self._parts = parts
        self._done = done
        self._streams: list[Stream] = []
        self._unused: dict[int, Stream] = {}
        mailboxes = tuple([one.mailbox for one in envelope.recipients])
        self._copying = Copying(layer.peers, mailboxes, self._send, self._finished)
        now_ns = layer.log.osio.time_ns()
        self.item = append_message(envelope, parts, source.size, self._own_done, now_ns)

    def use(self, ahead: CopiesAhead) -> None:
        """Go on with the streams that were begun."""
        self._unused = ahead.streams

    def start(self) -> None:
        """Submit the own record, and send the copies."""
        log = self._layer.log
        is_taken = _is_taken(log)
        if is_taken:
            log.committer.submit(self.item)
        self._copying.start()
        if not is_taken:
            self._copying.own_done(stored=False)
        for stream in self._unused.values():  # the rules have chosen others
            stream.drop()
        self._unused.clear()

    def _own_done(self, error: RefusedError | None) -> None:
        self._copying.own_done(stored=error is None)

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        item, source = self.item, self._source
        packed = item.envelope
        if len(mailboxes) < len(item.recipients):
            packed = for_mailboxes(packed, mailboxes)
        if source.size > self._layer.streaming.piece:
            stream = self._unused.pop(member, None)
            if stream is None or not stream.is_open:
                stream = Stream(self._layer.streaming, member, source, answered)
            self._streams.append(stream)
            stream.store(pack_copy(item.id, item.uid, packed, (self._envelope.trace,)), answered)
            return
        body = self._parts or tuple(item.spooled.chunks())
        parts = pack_copy(item.id, item.uid, packed, body)
        self._layer.peers.request(member, Kind.COPY, parts, answered, COPY_PATIENCE)

    def _finished(self, reason: str | None) -> None:
        for stream in self._streams:
            stream.drop()
        del self.item  # which refers to this: garbage would keep the message in memory
        if reason is None:
            self._done(None)
        else:
            self._layer.refuse(self._envelope, reason, self._done)


def _is_taken(log: LogLayer) -> bool:
    """Whether this node takes mail."""
    return not log.committer.blocked and log.source.has_space


class ClusterIncoming(HeldSpool, SpooledIncoming):
    """A message while it arrives here."""

    __slots__ = ("_ahead", "_layer", "_mailboxes")

    def __init__(self, layer: ClusterStore, mailboxes: Sequence[int]) -> None:
        """`mailboxes`: of its recipients, as far as they are known."""
        log = layer.log
        super().__init__(log.osio, log.store.spool, log.budget, layer.others_suffice)
        self._layer = layer
        self._mailboxes = mailboxes
        self._ahead: CopiesAhead | None = None

    def write(self, chunk: bytes) -> None:
        super().write(chunk)
        if self.size > self._layer.streaming.piece and self._mailboxes:
            if self._ahead is None:
                self._ahead = CopiesAhead(self._layer, self._mailboxes, self)
            self._ahead.more()

    def commit(self, envelope: Envelope, done: Done) -> None:
        parts = (envelope.trace, *self.parts) if self.in_memory else None
        outgoing = Outgoing(self._layer, envelope, self, parts, self.finished(done))
        if parts is None:
            outgoing.item.spooled = SpooledBody(envelope.trace, self)
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            outgoing.use(ahead)
        outgoing.start()

    def abort(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.drop()
        super().abort()
