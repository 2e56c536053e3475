"""The amount of incomplete messages that a worker keeps, in memory and on disk.

A client may send a message as slowly as it likes, so unfinished messages are bounded: for a worker,
and by the free space of the disk (half of what is free).  A client network gets half of what the
others leave, so that two or three of them cannot take everything.  A size that MAIL announces
counts from MAIL on.

Rule of this file: only octets are counted here; the layer decides where to keep them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from metad import limits
from metad.errors import NoSpaceError
from metad.sessions.networks import LOCAL


class Unfinished:
    """The octets of a worker's unfinished messages by client network."""

    __slots__ = ("_floor", "_limit", "_of_network", "limit", "used")

    def __init__(self, limit: int = limits.UNFINISHED, floor: int = 0) -> None:
        """`floor`: what is kept however full the disk is: in memory, while other nodes store it."""
        self._limit = limit
        self._floor = floor
        self.limit = limit
        self.used = 0
        self._of_network: dict[str, int] = {}

    def refresh(self, directory: str) -> None:
        """Check the free space of the disk with this directory."""
        with suppress(OSError):
            found = os.statvfs(directory)
            free = found.f_bavail * found.f_frsize
            self.limit = max(min(self._limit, self.used + free // 2), self._floor)

    def take(self, network: str, octets: int) -> bool:
        """Count more octets, unless that exceeds the bound."""
        before = self._of_network.get(network, 0)
        held = before + octets
        left = self.limit - (self.used - before)  # by the others
        if held > (left if network == LOCAL else left // 2):
            return False
        self._of_network[network] = held
        self.used += octets
        return True

    def give_back(self, network: str, octets: int) -> None:
        self.used -= octets
        held = self._of_network.get(network, 0) - octets
        if held:
            self._of_network[network] = held
        else:
            self._of_network.pop(network, None)


class Room:
    """The share of one session's message: `held` octets."""

    __slots__ = ("_unfinished", "held", "network")

    def __init__(self, unfinished: Unfinished) -> None:
        self._unfinished = unfinished
        self.held = 0
        self.network = LOCAL

    def hold(self, octets: int) -> None:
        """The message has this number of octets, or will have it.  Raises NoSpaceError."""
        more = octets - self.held
        if more > 0:
            if not self._unfinished.take(self.network, more):
                raise NoSpaceError("too much of unfinished messages")
            self.held = octets

    def release(self) -> None:
        """The message is complete, or discarded."""
        if self.held:
            self._unfinished.give_back(self.network, self.held)
            self.held = 0
