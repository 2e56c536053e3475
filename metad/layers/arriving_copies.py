"""Copies that other members send, stored here: whole ones, and those that come in pieces.

Rules of this file:

* Nothing is confirmed before it is durable.
* What has come of a message waits in a spool: in memory if small, counted in the budget, otherwise
  in a file without a name.  It becomes a record only when its end is there and verifies.
* A link that ends takes its unfinished messages with it.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from xxhash import xxh3_128

from metad.cluster.answers import Refused
from metad.cluster.copies import Copy, unpack_copy
from metad.cluster.serving import Asker, Reply
from metad.cluster.streaming import pack_size, unpack_drop, unpack_part, unpack_store
from metad.errors import RefusedError
from metad.layers.logs import LogLayer
from metad.layers.spool import Spool, SpooledBody
from metad.limits import CHUNK_MEMORY, CLUSTER_MESSAGE, CLUSTER_STREAMS
from metad.store.log.encode import Append
from metad.system.osio import Buffer

NO_SPACE = Refused("no space for mail")
TOO_MANY = Refused("too many messages at once")
TOO_LARGE = Refused("a message is too large")
NOT_WHOLE = Refused("a message is not whole")


class ClusterStore(Protocol):
    """What copies need of the layer."""

    log: LogLayer


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
        self._arriving: dict[tuple[Asker, int], _Arriving] = {}

    def __len__(self) -> int:
        """Messages that have no end yet."""
        return len(self._arriving)

    def copy(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        if not self._is_taken():
            reply(NO_SPACE)
            return
        copy = unpack_copy(body)
        budget = self._log.budget
        if budget.used + len(copy.body) + CHUNK_MEMORY <= budget.half:
            self._append(copy, None, reply)
            return
        arriving = _Arriving(self._new_spool())
        if self._write(arriving, bytes(copy.body), reply):
            self._append(copy._replace(body=memoryview(b"")), arriving.spool, reply)

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
        if at == arriving.spool.size and not self._write(arriving, data, reply):
            del self._arriving[key]
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
        self._append(copy, arriving.spool, reply)

    def drop(self, body: bytes, reply: Reply) -> None:
        """Raises ClusterError."""
        arriving = self._arriving.pop((reply.link, unpack_drop(body)), None)
        if arriving is not None:
            arriving.spool.close()
        reply(())

    def link_ended(self, link: Asker) -> None:
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

    def _write(self, arriving: _Arriving, data: bytes, reply: Reply) -> bool:
        """False: it is answered, and the spool closed."""
        spool = arriving.spool
        refusal: Refused | None = TOO_LARGE
        if spool.size + len(data) <= CLUSTER_MESSAGE:
            try:
                spool.write(data)
                refusal = None
            except OSError as error:
                refusal = Refused(f"spool: {error.strerror or error}")
        if refusal is not None:
            spool.close()
            reply(refusal)
            return False
        arriving.digest.update(data)
        return True

    def _append(self, copy: Copy, spool: Spool | None, reply: Reply) -> None:
        """Commit what is in front (`copy.body`), and behind it what is in the spool."""
        parts: tuple[Buffer, ...] | None = (copy.body,)
        size, held = len(copy.body), len(copy.body) + CHUNK_MEMORY
        if spool is not None:
            size += spool.size
            parts = (copy.body, *spool.parts) if spool.in_memory else None
        done = partial(_durable, reply, spool)
        item = Append(copy.id, copy.packed, parts, size, done, copy.envelope.recipients)
        item.uid = copy.uid
        item.held = held
        if spool is not None and parts is None:
            item.spooled = SpooledBody(bytes(copy.body), spool)
        self._log.committer.submit(item)


def _durable(reply: Reply, spool: Spool | None, error: RefusedError | None) -> None:
    if spool is not None:
        spool.close()
    reply(() if error is None else Refused(str(error) or "not stored"))
