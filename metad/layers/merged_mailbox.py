"""A mailbox of a cluster in one session: the messages of all members, as one listing.

Rules of this file:

* What lies here is read here.  If it does not verify, it is fetched from another member.
* What lies elsewhere is fetched and verified (layers.far_bodies).
* Deletions are told to all members before they are confirmed (cluster.deleting).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from metad.cluster.deleting import Deleting
from metad.cluster.listed import ENTRY_SIZE
from metad.cluster.opening import Opened, OwnMailbox, unlock
from metad.cluster.peers import Peers
from metad.errors import DamagedError, RefusedError
from metad.layers.base import Done, NotAtHandError
from metad.layers.far_bodies import FarBodies
from metad.layers.listing import Listing
from metad.layers.logs import LogLayer, LogMaildrop
from metad.system.osio import Buffer


class ClusterStore(Protocol):
    """What a session needs of the layer."""

    peers: Peers
    log: LogLayer

    def entomb(self, mailbox: int, ids: bytes, done: Done) -> None: ...


class MergedListing(Listing):
    """The listing that members together have, complete from the start."""

    __slots__ = ()

    def __init__(self, entries: bytes | bytearray, octets: int) -> None:
        """`octets`: the sum of their sizes."""
        self._packed = entries
        self.messages = len(entries) // ENTRY_SIZE
        self.octets = octets
        self.is_complete = True

    def steps(self) -> Iterator[None]:
        return iter(())


class MergedMaildrop(LogMaildrop):
    """One session's mailbox."""

    __slots__ = ("_cluster", "_far", "_lock", "_own", "_token", "_uids")

    def __init__(
        self, cluster: ClusterStore, mailbox: int, own: OwnMailbox, opened: Opened
    ) -> None:
        union = opened.union
        super().__init__(cluster.log, mailbox, MergedListing(union.entries, union.octets))
        self._cluster = cluster
        self._own = own
        self._lock = opened.lock
        self._token = opened.token
        self._uids = union.uids
        self._far = FarBodies(cluster, mailbox, union.holders, self._id, self.size)

    def uid(self, number: int, /) -> str:
        message_id = self._id(number)
        return self._uids.get(message_id) or message_id.hex()

    # -- messages

    def fetch(self, number: int, most: int, /) -> Sequence[Buffer] | Iterator[Buffer]:
        far = self._far
        text = far.take(number)
        if text is None and self._id(number) in far.holders:
            raise NotAtHandError
        far.look_ahead(number, len(self))
        if text is not None:
            return text
        try:
            found = super().fetch(number, most)
        except DamagedError:
            self._seek_elsewhere(number)
            raise
        return found if isinstance(found, Sequence) else self._read(number, found)

    def _read(self, number: int, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        """The pieces, unless the message does not verify.  Used in a thread."""
        try:
            first = next(pieces)
        except DamagedError:
            self._seek_elsewhere(number)
            raise
        yield first
        yield from pieces

    def _seek_elsewhere(self, number: int) -> None:
        """The message is damaged here.  Raises NotAtHandError if others may have it."""
        peers = self._cluster.peers
        line = peers.view().line(self._mailbox)
        others = [one for one in line if one != peers.number]
        if others:
            self._far.holders[self._id(number)] = others
            raise NotAtHandError from None

    def bring(self, number: int, done: Done) -> None:
        self._far.bring(number, done)
        self._far.look_ahead(number, len(self))

    # -- the end

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        if not numbers:
            self._layer.loop.call_soon(lambda: done(None))
            return
        ids = b"".join([self._id(number) for number in numbers])

        def decided(reason: str | None) -> None:
            done(None if reason is None else RefusedError(reason))

        parts = (self._mailbox.to_bytes(4, "big"), ids)
        deleting = Deleting(self._cluster.peers, parts, self._layer.loop.call_later, decided)

        def own_done(error: RefusedError | None) -> None:
            deleting.own_done(stored=error is None)

        deleting.start()
        self._cluster.entomb(self._mailbox, ids, own_done)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._far.close()
            peers = self._cluster.peers
            unlock(peers, self._own, self._lock, self._mailbox, self._token)
