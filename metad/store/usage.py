"""The size of a mailbox."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """In octets as POP3 counts them (RFC 1939, STAT)."""

    octets: int = 0
    messages: int = 0
