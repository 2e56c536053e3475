"""This node's mail for a walk (cluster.walking): its entries, and its messages as copies.

Rules of this file:

* Records are read and verified in a thread.  A large one waits in a file without a name until the
  member has it.
* Of a message whose copies here name different mailboxes, each copy is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple, Protocol

import lmdb

from metad.budget import Budget
from metad.cluster.answers import INTERNAL, Answer, Answered, Refused
from metad.cluster.copies import for_mailboxes, pack_copy
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.cluster.streaming import Stream, Streaming
from metad.cluster.walking import Missing, Sent
from metad.errors import RefusedError
from metad.layers.logs import LogLayer
from metad.layers.spool import Spool
from metad.store.background import Background
from metad.store.ids import ID_SIZE
from metad.store.log import record
from metad.system.osio import Buffer

PIECE = 1000  # entries asked for at once
COPY_PATIENCE_S = 30.0


class ClusterStore(Protocol):
    """What a walk needs of the layer."""

    peers: Peers
    log: LogLayer
    streaming: Streaming


class _Found(NamedTuple):
    """A verified record: the COPY that names it, with its body or with that in `spool`."""

    copy: Sequence[Buffer]
    spool: Spool | None
    left: Sequence[int]  # mailboxes that another record names


class WalkedMail:
    """All of one node."""

    def __init__(
        self, layer: ClusterStore, thread: Background, report: Callable[[str], None]
    ) -> None:
        """`thread` reads records."""
        self._layer = layer
        self._log = layer.log
        self._thread = thread
        self._report = report

    def pieces(self) -> Iterator[list[bytes]]:
        index = self._log.index
        found: list[bytes] = []
        for mailbox, _ in index.usages():
            start, last = mailbox.to_bytes(4, "big"), b""
            while piece := index.listing_piece(mailbox, last, PIECE):
                last = piece[-1][:ID_SIZE]
                found += [start + one[:ID_SIZE] for one in piece]
                if len(found) >= PIECE:
                    yield found
                    found = []
        if found:
            yield found

    def send(self, member: int, message_id: bytes, mailboxes: Sequence[int], done: Sent) -> None:
        log = self._log

        def read() -> None:
            found: _Found | Missing | Refused = INTERNAL
            try:
                found = self._read(message_id, mailboxes)
            except lmdb.Error as error:  # which tells nothing about the message
                self._report(f"warning: not sent to another node: index: {error}")
            finally:  # the walk waits, whatever happens here
                log.loop.call_soon_threadsafe(go_on, found)

        def go_on(found: _Found | Missing | Refused) -> None:
            if isinstance(found, _Found):
                self._send(member, found, partial(sent, found.left))
            else:
                done(found)

        def sent(left: Sequence[int], answer: Answer) -> None:
            if left and isinstance(answer, Answered):
                self.send(member, message_id, left, done)
            else:
                done(answer)

        self._thread.put(read)

    def _send(self, member: int, found: _Found, done: Callable[[Answer], None]) -> None:
        spool = found.spool
        if spool is None:
            self._layer.peers.request(member, Kind.COPY, found.copy, done, COPY_PATIENCE_S)
            return

        def stored(answer: Answer) -> None:
            spool.close()
            done(answer)

        Stream(self._layer.streaming, member, spool, stored).store(found.copy, stored)

    # -- in the thread

    def _read(self, message_id: bytes, mailboxes: Sequence[int]) -> _Found | Missing:
        """A copy for some of the mailboxes: the first one's may be damaged, and others not."""
        reason: Exception | None = None
        for mailbox in mailboxes:
            try:
                return self._read_record(message_id, mailbox, mailboxes)
            except (RefusedError, OSError) as error:
                reason = reason or error
        if self._are_gone(message_id, mailboxes):
            return Missing.GONE
        self._report(f"warning: not sent to another node: {reason}")
        return Missing.DAMAGED

    def _are_gone(self, message_id: bytes, mailboxes: Sequence[int]) -> bool:
        keys = [one.to_bytes(4, "big") + message_id for one in mailboxes]
        try:
            return len(self._log.index.missing(keys)) == len(keys)
        except lmdb.Error:
            return False

    def _read_record(self, message_id: bytes, mailbox: int, mailboxes: Sequence[int]) -> _Found:
        reader = self._log.reader
        if reader.size(message_id) > self._layer.streaming.piece:
            return self._read_large(message_id, mailbox, mailboxes)
        stored = reader.read(message_id, mailbox)
        return _found(message_id, stored.envelope, mailboxes, (stored.body,))

    def _read_large(self, message_id: bytes, mailbox: int, mailboxes: Sequence[int]) -> _Found:
        log = self._log
        spool = Spool(log.osio, log.store.spool, Budget(0))  # always a file: this is a thread
        try:
            envelope: record.Envelope | None = None
            with closing(log.reader.stream(message_id, mailbox)) as pieces:
                for piece in pieces:
                    if isinstance(piece, bytes):
                        spool.write(piece)
                    else:
                        envelope = piece.envelope
            if envelope is None:
                raise RefusedError(f"message {message_id.hex()} has no envelope")
            return _found(message_id, envelope, mailboxes, (), spool)
        except BaseException:
            spool.close()
            raise


def _found(
    message_id: bytes,
    envelope: record.Envelope,
    mailboxes: Sequence[int],
    body: Sequence[Buffer],
    spool: Spool | None = None,
) -> _Found:
    named = {one.mailbox for one in envelope.recipients}
    packed = for_mailboxes(record.pack_envelope(envelope), mailboxes)
    copy = pack_copy(message_id, envelope.uid, packed, body)
    return _Found(copy, spool, [one for one in mailboxes if one not in named])
