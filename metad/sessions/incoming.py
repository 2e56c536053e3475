"""A layer's `Incoming` as used by an SMTP session: a failure is remembered until the end.

A client is told of a failure only after its data (RFC 5321 section 4.1.1.4), so a message refused
by the layer is still read to its end, and discarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from metad.errors import NoSpaceError, RefusedError
from metad.layers.base import Envelope, Incoming
from metad.sessions.context import WorkerContext


class RefusedIncoming(Incoming):
    """Replaces a message that the layer refused, until its end can be answered."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, chunk: bytes) -> None:
        pass

    def commit(self, envelope: Envelope, done: object) -> None:
        raise self.error

    def abort(self) -> None:
        pass


def begin(context: WorkerContext, mailboxes: Sequence[int]) -> Incoming:
    """Begin an incoming message."""
    try:
        return context.layer.begin_for(mailboxes)
    except RefusedError as error:
        return RefusedIncoming(error)
    except OSError as error:
        return RefusedIncoming(NoSpaceError(str(error)))
    except Exception as error:
        return RefusedIncoming(error)


def write(incoming: Incoming, chunk: bytes) -> Incoming:
    """Write a chunk.  Returns the message to continue with, which is a substitute after a
    failure."""
    try:
        incoming.write(chunk)
    except Exception as error:
        abort(incoming)
        return RefusedIncoming(error)
    return incoming


def abort(incoming: Incoming) -> None:
    """Discard a message, whatever the layer raises."""
    with suppress(Exception):
        incoming.abort()
