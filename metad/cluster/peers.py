"""The other members, as one process of this node reaches them.  The simulator has its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from metad.cluster.answers import Answer
from metad.cluster.frames import Kind
from metad.cluster.view import View
from metad.system.osio import Buffer

Answered = Callable[[Answer], None]
# By then a member that is back has been dialed again (CLUSTER_LONGEST_REDIAL).
AGAIN_S = 0.6
VIEW_CHANGES = "the cluster's view changes"  # so that answers of two epochs would be counted


class Peers(Protocol):
    """`number`: this member's."""

    number: int

    def view(self) -> View:
        """The view that is in force here: the same object until another one is."""

    def has_word(self) -> bool:
        """Whether a lone reader may trust the view in force (rule Lone reader).

        Without etcd always: then only the operator makes a view in which a member is absent.
        """

    def request(
        self,
        member: int,
        kind: Kind,
        parts: Sequence[Buffer],
        answered: Answered,
        patience_s: float,
    ) -> None:
        """Ask a member under today's epoch.  `answered` is called once: within this call if it
        cannot be sent, so that a message goes to another member in time."""

    def now(self) -> float:
        """Seconds of a clock that never runs back."""
