"""One thing that is wrong with a hub, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """`refuses`: new mail is refused because of it; `since`: Unix time, 0 if unknown."""

    text: str
    remedy: str
    refuses: bool = False
    since: int = 0
