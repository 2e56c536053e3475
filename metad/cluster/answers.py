"""What becomes of a request to another node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class Answered:
    body: bytes


@dataclass(slots=True)
class LinkFailed:
    """No answer: it is not known whether the request was carried out."""

    reason: str


@dataclass(slots=True)
class Refused:
    """The other node will not or cannot do it, and tells why."""

    text: str


@dataclass(slots=True)
class EpochChanged:
    """Asked under one view, answered under another: the asker starts again with the new one."""


# Of a LOCK: another session has the mailbox.  Every other refusal of one tells nothing about that.
IN_USE: Final = Refused("the mailbox is in use")
INTERNAL: Final = Refused("internal error")
TOO_MANY: Final = Refused("too many answers wait on this link")

Answer = Answered | LinkFailed | Refused | EpochChanged
Done = Callable[[Answer], None]
