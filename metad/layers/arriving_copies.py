"""Copies that other members send, stored here: whole ones, and those that come in pieces.

Rules of this file:

* Nothing is confirmed before it is durable.
* The messages of one COPY are answered together; some may be stored and others not.
* What has come of a message waits in a spool: in memory if small, counted in the budget, otherwise
  in a file without a name.  It becomes a record only when its end is there and verifies.
* What a link may have without an answer is bounded, by its bytes (cluster.serving) and in messages.
* A link that ends takes its unfinished messages with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from xxhash import xxh3_128

from metad.cluster.answers import Refused
from metad.cluster.copies import Copy, pack_places, unpack_copies, unpack_copy
from metad.cluster.serving import Asker, Reply
from metad.cluster.streaming import pack_size, unpack_drop, unpack_part, unpack_store
from metad.errors import ClusterError, RefusedError
from metad.layers.base import Done
from metad.layers.logs import LogLayer
from metad.layers.spool import Spool, SpooledBody
from metad.limits import (
    CHUNK_MEMORY,
    CLUSTER_OUTSTANDING,
    CLUSTER_REQUEST_MEMORY,
    CLUSTER_STREAMS,
    CLUSTER_TEXT,
)
from metad.store.log.encode import Append
from metad.system.osio import Buffer

# As many as there may be requests without an answer on a link.
MOST_UNANSWERED = CLUSTER_OUTSTANDING // CLUSTER_REQUEST_MEMORY
NO_SPACE = Refused("no space for mail")
TOO_MANY = Refused("too many messages at once")
TOO_LARGE = Refused("a message is too large")
NOT_WHOLE = Refused("a message is not whole")


class ClusterStore(Protocol):
    """What copies need of the layer."""

    log: LogLayer

    def flush(self) -> None:
        """Write to the links now."""


class _Together:
    """The messages of one COPY, which is answered when all are durable or refused."""

    __slots__ = ("_answered", "_left", "_reason", "_refused", "_reply", "count")

    def __init__(self, count: int, reply: Reply, answered: Callable[[Asker, int], None]) -> None:
        """`answered` gets the link and the number of messages, after the answer."""
        self.count = self._left = count
        self._reply = reply
        self._answered = answered
        self._refused: list[int] = []
        self._reason = ""

    def done(self, place: int, error: Exception | None) -> None:
        """One is."""
        if error is not None:
            self._refused.append(place)
            self._reason = str(error) or "not stored"
        self._left -= 1
        if self._left:
            return
        if not self._refused:
            self._reply(())
        elif len(self._refused) == self.count:
            self._reply(Refused(self._reason))
        else:
            self._reply([pack_places(self._refused)])
        self._answered(self._reply.link, self.count)


class _Arriving:
    """One message in pieces."""

    __slots__ = ("digest", "spool")

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.digest = xxh3_128()

    def is_whole(self, size: int, digest: bytes) -> bool:
        return self.spool.size == size and self.digest.digest() == digest


class ArrivingCopies:
    """Those of all links of one worker."""

    def __init__(self, layer: ClusterStore) -> None:
        self._log = layer.log
        self._flush = layer.flush
        self._arriving: dict[tuple[Asker, int], _Arriving] = {}
        self._unanswered: dict[Asker, int] = {}  # messages of COPYs

    def __len__(self) -> int:
        """Messages that have no end yet."""
        return len(self._arriving)

    def copy(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        if not self._is_taken():
            reply(NO_SPACE)
            return
        copies = unpack_copies(body)
        unanswered = self._unanswered.get(reply.link, 0) + len(copies)
        if unanswered > MOST_UNANSWERED:
            reply(TOO_MANY)
            return
        self._unanswered[reply.link] = unanswered
        together = _Together(len(copies), reply, self._answered)
        for place, copy in enumerate(copies):
            done = partial(together.done, place)
            if isinstance(copy, ClusterError):
                done(copy)
            else:
                self._take(copy, done)

    def _answered(self, link: Asker, count: int) -> None:
        left = self._unanswered.pop(link, 0) - count
        if left > 0:
            self._unanswered[link] = left
        self._flush()  # the loop may enter mail in the index next

    def _take(self, copy: Copy, done: Done) -> None:
        """Store a whole message."""
        log = self._log
        message_id, uid, packed, recipients, body = copy
        held = len(body) + CHUNK_MEMORY
        if log.budget.used + held > log.budget.half:
            self._take_in_spool(copy, done)
            return
        item = Append(message_id, packed, (body,), len(body), done, recipients)
        item.uid = uid
        item.held = held
        log.committer.submit(item)

    def _take_in_spool(self, copy: Copy, done: Done) -> None:
        """The same while memory is short."""
        arriving = _Arriving(self._new_spool())
        refusal = self._write(arriving, copy.body)
        if refusal is None:
            self._append(copy._replace(body=b""), arriving.spool, done)
        else:
            done(RefusedError(refusal.text))

    def part(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        number, at, data = unpack_part(body)
        key = reply.link, number
        arriving = self._arriving.get(key)
        if arriving is None:
            if at:  # what came before is lost, or late
                reply([pack_size(0)])
                return
            if not self._is_taken():
                reply(NO_SPACE)
                return
            if len(self._arriving) >= CLUSTER_STREAMS:
                reply(TOO_MANY)
                return
            arriving = self._arriving[key] = _Arriving(self._new_spool())
        refusal = self._write(arriving, data) if at == arriving.spool.size else None
        if refusal is not None:
            del self._arriving[key]
            reply(refusal)
            return
        reply([pack_size(arriving.spool.size)])

    def store(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        number, size, digest, rest = unpack_store(body)
        arriving = self._arriving.pop((reply.link, number), None)
        if arriving is None:
            reply(NOT_WHOLE)
            return
        try:
            copy = unpack_copy(rest)
            if not arriving.is_whole(size, digest):
                raise RefusedError(NOT_WHOLE.text)
            if not self._is_taken():
                raise RefusedError(NO_SPACE.text)
        except Exception:
            arriving.spool.close()
            raise
        self._append(copy, arriving.spool, partial(_durable, reply))

    def drop(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        arriving = self._arriving.pop((reply.link, unpack_drop(body)), None)
        if arriving is not None:
            arriving.spool.close()
        reply(())

    def link_ended(self, link: Asker) -> None:
        self._unanswered.pop(link, None)
        for key in [one for one in self._arriving if one[0] is link]:
            self._arriving.pop(key).spool.close()

    def stop(self) -> None:
        for arriving in self._arriving.values():
            arriving.spool.close()
        self._arriving.clear()

    # -- inside

    def _is_taken(self) -> bool:
        return not self._log.committer.blocked and self._log.source.has_space

    def _new_spool(self) -> Spool:
        return Spool(self._log.osio, self._log.store.spool, self._log.budget)

    def _write(self, arriving: _Arriving, data: bytes) -> Refused | None:
        """Why it cannot be kept: then the spool is closed."""
        spool = arriving.spool
        refusal: Refused | None = TOO_LARGE
        writer = self._log.committer.writer
        most = CLUSTER_TEXT if writer is None else min(CLUSTER_TEXT, writer.log.size)
        if spool.size + len(data) <= most:
            try:
                spool.write(data)
                refusal = None
            except OSError as error:
                refusal = Refused(f"spool: {error.strerror or error}")
        if refusal is None:
            arriving.digest.update(data)
        else:
            spool.close()
        return refusal

    def _append(self, copy: Copy, spool: Spool, done: Done) -> None:
        """Commit what is in front (`copy.body`), and behind it what is in the spool."""
        size = len(copy.body) + spool.size
        parts: tuple[Buffer, ...] | None = None
        if spool.in_memory:
            parts = (copy.body, *spool.parts)
        done = partial(_close_and_tell, spool, done)
        item = Append(copy.id, copy.packed, parts, size, done, copy.recipients)
        item.uid = copy.uid
        item.held = len(copy.body) + CHUNK_MEMORY
        if parts is None:
            item.spooled = SpooledBody(copy.body, spool)
        self._log.committer.submit(item)


def _close_and_tell(spool: Spool, done: Done, error: RefusedError | None) -> None:
    spool.close()
    done(error)


def _durable(reply: Reply, error: RefusedError | None) -> None:
    reply(() if error is None else Refused(str(error) or "not stored"))
