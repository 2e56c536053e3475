"""What the links of a process share, and what they ask of a transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from metad.cluster.old_disks import OldDisks
from metad.cluster.serving import Asker, Reply
from metad.cluster.view import View

Handler = Callable[[int, bytes, Reply], None]


class Wire(Protocol):
    """The transport of a link."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Send what was written, then close."""

    def abort(self) -> None: ...


@dataclass(slots=True)
class Node:
    """What all links of a process share.

    `clock` counts on while the machine sleeps (CLOCK_BOOTTIME), in seconds.  `adopt` makes a view
    durable and current, or raises ClusterError or OSError.  `handler` takes a request: kind, body,
    reply.  `report` takes lines for the log.  `ended` is told of
    each link that is closed, as `Reply.link` had it.  `disks` judges the disks of two nodes that
    meet; commands have none.  The links of a command (`is_command`) are not in the other's log.
    `etcd`: the one that this node trusts; 0: none.
    `refusals`: of which node and why, as the log has them already (metad.cluster.greeting).
    """

    number: int
    start: bytes
    release: str
    current_view: Callable[[], View]
    adopt: Callable[[View], None]
    handler: Handler
    report: Callable[[str], None]
    clock: Callable[[], float]
    hub_time_us: Callable[[], int]
    ended: Callable[[Asker], None] = lambda link: None
    disks: OldDisks | None = None
    is_command: bool = False
    etcd: Callable[[], int] = lambda: 0
    refusals: set[tuple[int, str]] = field(default_factory=set)


class Phase(IntEnum):
    CONNECTING = 0
    HELLO = 1  # the other's HELLO is awaited
    VIEW = 2  # its newer view is awaited
    ACCEPTED = 3  # by us; its word is awaited
    READY = 4
    CLOSED = 5
