"""Old disks and nodes that run twice: judged when two nodes meet, by both.

A HELLO carries what the node tells of itself, and what it remembers of the other.  So both find the
same: that one refuses the other, and the other refuses itself.

Rules of this file:

* A node without marks is a command or an older release, and is not judged.
* What another member remembers of us counts only after the link has found it to be a member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from metad.cluster import marks
from metad.cluster.heard_marks import HeardMarks
from metad.cluster.own_marks import REMEDY, OwnMarks

Report = Callable[[str], None]


class Marks(NamedTuple):
    """The part of a HELLO."""

    told: bytes = b""
    heard: bytes = b""


class OldDisks:
    """What the links of a process ask.  `number`: this node's."""

    def __init__(self, number: int, own: OwnMarks, heard: HeardMarks, report: Report) -> None:
        self._number = number
        self._own = own
        self._heard = heard
        self._report = report

    @property
    def refusal(self) -> str:
        """Why this node no longer takes part; "" if it does."""
        return self._own.refusal

    def tell(self, member: int) -> Marks:
        """For a HELLO to that member; 0: it is not known.  Raises ClusterError, OSError."""
        known = self._heard.mark(member)
        return Marks(self._own.told().pack(), known.pack() if known is not None else b"")

    def fault(self, member: int, theirs: Marks) -> str | None:
        """Why there can be no link with a member that sends this.  Raises ClusterError, OSError."""
        if self._own.refusal:
            return f"node {self._number} takes no part: {self._own.refusal}"
        if theirs.heard and self._own.is_behind(marks.unpack_heard(theirs.heard)):
            reason = f"node {member} knows a later state of its disk, or it runs twice"
            self._own.refuse(f"{reason}; {REMEDY}")
            self._report(f"warning: this node no longer takes part: {self._own.refusal}")
            return f"node {self._number} has an old copy of its disk, or runs twice; {REMEDY}"
        if theirs.told and not self._heard.accept(member, marks.unpack_told(theirs.told)):
            return f"node {member} has an old copy of its disk, or runs twice; {REMEDY}"
        return None
