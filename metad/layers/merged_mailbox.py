"""A mailbox of a cluster in one session: the messages of all members, as one listing.

Rules of this file:

* What lies here is read here.  If it does not verify, it is fetched from another member.
* What lies elsewhere is fetched with the messages that follow it, and verified by its digest.
* Deletions are told to all members before they are confirmed (cluster.deleting).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from xxhash import xxh3_128_digest

from metad.cluster.answers import Answer, Answered
from metad.cluster.deleting import Deleting
from metad.cluster.frames import Kind
from metad.cluster.opening import ENTRY_SIZE, Opened, OwnMailbox, unlock
from metad.cluster.peers import Peers
from metad.errors import DamagedError, RefusedError
from metad.layers.base import Done, NotAtHandError
from metad.layers.listing import Listing
from metad.layers.logs import LogLayer, LogMaildrop
from metad.system.osio import Buffer

DIGEST_SIZE = 16
FETCH_PATIENCE = 10.0
# Messages fetched ahead, and their bytes at most.
AHEAD = 16
AHEAD_SIZE = 1 << 20
_ENTRY = struct.Struct(">16sI")


class ClusterStore(Protocol):
    """What a session needs of the layer."""

    peers: Peers
    log: LogLayer

    def entomb(self, mailbox: int, ids: bytes, done: Done) -> None: ...


class MergedListing(Listing):
    """The listing that members together have, complete from the start."""

    __slots__ = ()

    def __init__(self, entries: bytes) -> None:
        self._packed = entries
        self.messages = len(entries) // ENTRY_SIZE
        self.octets = sum([size for _, size in _ENTRY.iter_unpack(entries)])
        self.is_complete = True

    def steps(self) -> Iterator[None]:
        return iter(())


class MergedMaildrop(LogMaildrop):
    """One session's mailbox."""

    __slots__ = (
        "_brought", "_cluster", "_holders", "_lock", "_own", "_token", "_uids", "_waiting",
    )  # fmt: skip

    def __init__(
        self, cluster: ClusterStore, mailbox: int, own: OwnMailbox, opened: Opened
    ) -> None:
        super().__init__(cluster.log, mailbox, MergedListing(b"".join(opened.entries)))
        self._cluster = cluster
        self._own = own
        self._lock = opened.lock
        self._token = opened.token
        self._holders = opened.holders
        self._uids = opened.uids
        self._brought: dict[int, bytes] = {}
        self._waiting: dict[int, list[Done]] = {}

    def uid(self, number: int, /) -> str:
        message_id = self._id(number)
        return self._uids.get(message_id) or message_id.hex()

    # -- messages

    def fetch(self, number: int, most: int, /) -> Sequence[Buffer] | Iterator[Buffer]:
        text = self._brought.pop(number, None)
        if text is not None:
            return [text]
        if self._id(number) in self._holders:
            raise NotAtHandError
        try:
            return super().fetch(number, most)
        except DamagedError:
            others = self._others()
            if not others:
                raise
            self._holders[self._id(number)] = others
            raise NotAtHandError from None

    def _others(self) -> list[int]:
        peers = self._cluster.peers
        return [one for one in peers.view().line(self._mailbox) if one != peers.number]

    def bring(self, number: int, done: Done) -> None:
        self._waiting.setdefault(number, []).append(done)
        size = 0
        for ahead in range(number, min(number + AHEAD, len(self) + 1)):
            size += self.size(ahead)
            if ahead > number and size > AHEAD_SIZE:
                break
            is_asked = ahead != number and ahead in self._waiting
            holders = self._holders.get(self._id(ahead))
            if holders and not is_asked and ahead not in self._brought:
                self._waiting.setdefault(ahead, [])
                self._ask(ahead, list(holders))

    def _ask(self, number: int, holders: list[int]) -> None:
        """Ask the first holder, then the others."""
        if not holders:
            self._came(number, RefusedError("no member that has the message answers"))
            return
        member, *rest = holders

        def answered(answer: Answer) -> None:
            text = _verified(answer)
            if self._closed:
                return
            if text is None:
                self._ask(number, rest)
            else:
                self._brought[number] = text
                self._came(number, None)

        parts = (self._mailbox.to_bytes(4, "big"), self._id(number))
        self._cluster.peers.request(member, Kind.FETCH, parts, answered, FETCH_PATIENCE)

    def _came(self, number: int, error: RefusedError | None) -> None:
        for done in self._waiting.pop(number, ()):
            self._layer.loop.call_soon(_call(done, error))

    # -- the end

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        if not numbers:
            self._layer.loop.call_soon(lambda: done(None))
            return
        ids = b"".join([self._id(number) for number in numbers])

        def decided(reason: str | None) -> None:
            done(None if reason is None else RefusedError(reason))

        parts = (self._mailbox.to_bytes(4, "big"), ids)
        deleting = Deleting(self._cluster.peers, parts, decided)

        def own_done(error: RefusedError | None) -> None:
            deleting.own_done(stored=error is None)

        deleting.start()
        self._cluster.entomb(self._mailbox, ids, own_done)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._brought.clear()
            waiting, self._waiting = self._waiting, {}
            for number in waiting:
                for done in waiting[number]:
                    self._layer.loop.call_soon(_call(done, RefusedError("closed")))
            peers = self._cluster.peers
            unlock(peers, self._own, self._lock, self._mailbox, self._token)


def _verified(answer: Answer) -> bytes | None:
    """The message in an answer to FETCH, if it is what the holder sent."""
    if not isinstance(answer, Answered):
        return None
    digest, text = answer.body[:DIGEST_SIZE], answer.body[DIGEST_SIZE:]
    return text if xxh3_128_digest(text) == digest else None


def _call(done: Done, error: RefusedError | None) -> Callable[[], None]:
    return lambda: done(error)
