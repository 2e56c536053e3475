"""An incoming message of a layer that cannot read it back: a copy is kept for filters.

Rule of this file: the layer sees the same calls as without this class.
"""

from __future__ import annotations

from metad.budget import Budget
from metad.errors import NoSpaceError
from metad.layers.base import Done, Envelope, Incoming
from metad.layers.spool import Spool
from metad.system.osio import Osio


class KeptIncoming(Spool, Incoming):
    """`inner`: the layer's own message.  `directory`: where a large copy gets its unlinked file."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Incoming, directory: str, budget: Budget) -> None:
        super().__init__(Osio(), directory, budget)
        self._inner = inner

    def write(self, chunk: bytes) -> None:
        self._inner.write(chunk)
        try:
            super().write(chunk)
        except OSError as error:
            raise NoSpaceError(f"spool: {error}") from error

    def commit(self, envelope: Envelope, done: Done) -> None:
        self.close()
        self._inner.commit(envelope, done)

    def abort(self) -> None:
        self.close()
        self._inner.abort()
