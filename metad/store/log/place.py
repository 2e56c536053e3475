"""Where a record lies, and what an index needs to know about a message.

Writers and readers of a log create both; other modules enter them in the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Place(NamedTuple):
    """Where a record lies."""

    log: int
    offset: int
    size: int


class Message(NamedTuple):
    """One message to be entered.  `entries` are its footer entries, packed."""

    id: bytes
    place: Place
    entries: bytes
    uid: str = ""


def joined_entries(messages: Iterable[Message]) -> bytes:
    """The footer entries of messages."""
    return b"".join([one.entries for one in messages])
