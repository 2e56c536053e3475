"""The filter stage: between a complete message and the store.  Today's filter accepts.

A filter sees the envelope and may refuse a message (a Reply of class 4 or 5) or have header
fields put in front of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from metad.errors import Reply
from metad.layers.base import Envelope


class FilterResult(NamedTuple):
    """`refusal` None: accepted.  `header`: complete fields, CR LF, put in front of the message."""

    refusal: Reply | None = None
    header: bytes = b""


Filter = Callable[[Envelope], FilterResult]

ACCEPTED = FilterResult()


def accept(envelope: Envelope) -> FilterResult:
    """The filter that accepts everything."""
    return ACCEPTED
