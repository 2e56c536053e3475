"""A layer's `Incoming` as an SMTP session uses it: what fails is remembered until the end.

A client learns of a failure only after its data (RFC 5321 section 4.1.1.4), so a message that the
layer refused is still read to its end, and discarded.
"""

from __future__ import annotations

from contextlib import suppress

from metad.errors import NoSpaceError, RefusedError
from metad.layers.base import Envelope, Incoming
from metad.sessions.context import WorkerContext


class RefusedIncoming(Incoming):
    """Takes the place of a message that the layer refused, until its end can be answered."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, chunk: bytes) -> None:
        pass

    def commit(self, envelope: Envelope, done: object) -> None:
        raise self.error

    def abort(self) -> None:
        pass


def begin(context: WorkerContext) -> Incoming:
    """A message begins to arrive."""
    try:
        return context.layer.begin()
    except RefusedError as error:
        return RefusedIncoming(error)
    except OSError as error:
        return RefusedIncoming(NoSpaceError(str(error)))
    except Exception as error:
        return RefusedIncoming(error)


def write(incoming: Incoming, chunk: bytes) -> Incoming:
    """Write a chunk; the message to go on with, which is another one after a failure."""
    try:
        incoming.write(chunk)
    except Exception as error:
        abort(incoming)
        return RefusedIncoming(error)
    return incoming


def abort(incoming: Incoming) -> None:
    """Forget a message, whatever the layer raises."""
    with suppress(Exception):
        incoming.abort()
