"""The null layer: accepts and discards mail (the paper's "nowrite"), to measure everything but the
store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metad.errors import RefusedError
from metad.layers.base import Done, Envelope, Incoming, Layer, LayerContext, Maildrop
from metad.store.commit.group import Loop
from metad.store.ids import HubClock, IdMaker
from metad.system.osio import Buffer, Osio


class NullIncoming(Incoming):
    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def write(self, chunk: bytes) -> None:
        pass

    def commit(self, envelope: Envelope, done: Done) -> None:
        self._loop.call_soon(lambda: done(None))

    def abort(self) -> None:
        pass


class NullMaildrop(Maildrop):
    """An empty mailbox."""

    octets = 0

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        return 0

    def size(self, number: int, /) -> int:
        raise RefusedError(f"no message {number}")

    def uid(self, number: int, /) -> str:
        raise RefusedError(f"no message {number}")

    def fetch(self, number: int, most: int, /) -> Sequence[Buffer] | Iterator[Buffer]:
        raise RefusedError(f"no message {number}")

    def delete(self, numbers: Sequence[int], done: Done) -> None:
        self._loop.call_soon(lambda: done(None))

    def close(self) -> None:
        pass


class NullLayer(Layer):
    """Accepts and discards every message; every mailbox is empty."""

    name = "null"

    def start(self, context: LayerContext) -> None:
        self._ids = IdMaker(HubClock(Osio(), context.area.clock_cell), context.row.index)
        self._loop = context.loop
        self._incoming = NullIncoming(context.loop)
        context.report("warning: layer null: every message is accepted and discarded")

    def stop(self) -> None:
        pass

    def next_id(self) -> bytes:
        return self._ids.next()

    def begin(self) -> Incoming:
        return self._incoming

    def open_mailbox(self, mailbox: int) -> Maildrop:
        return NullMaildrop(self._loop)
