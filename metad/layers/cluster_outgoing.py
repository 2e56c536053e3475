"""A message that a client of this node sent, on its way to its copies.

    small      to each peer with other messages, when it is complete (cluster.copy_requests)
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
from metad.cluster.copy_requests import CopyRequests
from metad.cluster.copying import Copying
from metad.cluster.peers import Peers
from metad.cluster.streaming import Source, Stream, Streaming
from metad.errors import RefusedError
from metad.layers.base import Done, Envelope
from metad.layers.held_spool import HeldSpool
from metad.layers.logs import LogLayer
from metad.layers.message_record import append_message
from metad.layers.spool import SpooledBody, SpooledIncoming, read_parts
from metad.store.log.encode import Append

NOT_TAKEN = RefusedError("this node takes no mail")


class ClusterStore(Protocol):
    """What a message needs of the layer."""

    peers: Peers
    log: LogLayer
    copies: CopyRequests
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


class CopiesAhead(Copying):
    """The streams of a message while it arrives: to the peers that will be asked for a copy, as it
    seems now.  `streams`: by member."""

    __slots__ = ("_layer", "_source", "streams")

    def __init__(self, layer: ClusterStore, mailboxes: Sequence[int], source: Source) -> None:
        super().__init__(layer.peers, mailboxes)
        self._layer = layer
        self._source = source
        self.streams: dict[int, Stream] = {}
        self.start()
        if layer.log.committer.blocked or not layer.log.source.has_space:
            self.own_done(NOT_TAKEN)

    def _send(
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

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """The message is not complete: the rules are asked again at its end."""

    def _finish(self, reason: str | None) -> None:
        """The same."""

    def more(self) -> None:
        """More of the message has arrived."""
        for stream in list(self.streams.values()):
            stream.more()

    def drop(self) -> None:
        for stream in self.streams.values():
            stream.drop()
        self.streams.clear()


class Outgoing(Copying):
    """The message: its own record, and the copies that are to be made."""

    __slots__ = ("_done", "_envelope", "_layer", "_source", "_streams", "_unused", "item")

    def __init__(
        self, layer: ClusterStore, envelope: Envelope, item: Append, source: Source | None,
        done: Done,
    ) -> None:  # fmt: skip
        """`source`: the body without the trace; None: it is small, and in `item`."""
        recipients = item.recipients
        one = len(recipients) == 1  # nearly always
        mailboxes = (recipients[0][0],) if one else tuple([each[0] for each in recipients])
        super().__init__(layer.peers, mailboxes)
        self._layer = layer
        self._envelope = envelope
        self._source = source
        self._done = done
        self._streams: tuple[Stream, ...] = ()
        self._unused: dict[int, Stream] | None = None
        self.item = item
        item.done = self.own_done

    def use(self, ahead: CopiesAhead) -> None:
        """Go on with the streams that were begun."""
        self._unused = ahead.streams

    def begin(self) -> None:
        """Submit the own record, and send the copies."""
        log = self._layer.log
        committer = log.committer
        is_taken = not committer.blocked and log.source.has_space
        if is_taken:
            committer.submit(self.item)
        self.start()
        if not is_taken:
            self.own_done(NOT_TAKEN)
        if self._unused is not None:
            for stream in self._unused.values():  # the rules have chosen others
                stream.drop()
            self._unused.clear()

    def _send(
        self, member: int, mailboxes: Sequence[int], answered: Callable[[Answer], None]
    ) -> None:
        item, source, layer = self.item, self._source, self._layer
        packed = item.envelope
        if len(mailboxes) < len(item.recipients):
            packed = for_mailboxes(packed, mailboxes)
        if source is None or source.size <= layer.streaming.piece:
            body = item.spooled.chunks() if item.parts is None else item.parts
            layer.copies.add(member, pack_copy(item.id, item.uid, packed, body), answered)
            return
        stream = self._unused.pop(member, None) if self._unused else None
        if stream is None or not stream.is_open:
            stream = Stream(layer.streaming, member, source, answered)
        self._streams = (*self._streams, stream)
        stream.store(pack_copy(item.id, item.uid, packed, (self._envelope.trace,)), answered)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._layer.log.loop.call_later(seconds, call)

    def _finish(self, reason: str | None) -> None:
        # Both refer to this: garbage would keep the message in memory.
        streams, self._streams = self._streams, ()
        del self.item
        for stream in streams:
            stream.drop()
        if reason is None:
            self._done(None)
        else:
            self._layer.refuse(self._envelope, reason, self._done)


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
        finished = self.finished(done)
        now_ns = self._layer.log.osio.time_ns()
        item = append_message(envelope, parts, self.size, finished, now_ns)
        if parts is None:
            item.spooled = SpooledBody(envelope.trace, self)
        outgoing = Outgoing(self._layer, envelope, item, self, finished)
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            outgoing.use(ahead)
        outgoing.begin()

    def abort(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.drop()
        super().abort()
