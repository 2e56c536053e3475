"""What one client network may have of a worker: connections, messages, checks of passwords.

Rules of this file:

* Counts only, with a clock that is given; who is told what is the sessions' business.
* Every table is bounded: a network without an open connection is forgotten, the oldest first.
* The hub's caps are shared evenly by its workers, with some slack, because the kernel spreads
  connections by a hash: no client is refused below the cap, none gets much above it.
* What has no network (a unix socket's peer) has no cap but the one on all connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from metad import limits
from metad.config import Limits
from metad.workers.networks import LOCAL

MINUTE = 60.0


class Caps(NamedTuple):
    """Of one worker."""

    connections: int
    of_network: int


def share(settings: Limits, workers: int) -> Caps:
    """One worker's part of the hub's caps."""
    slack = limits.SHARE_SLACK if workers > 1 else 1.0
    return Caps(
        ceil(settings.connections * slack / workers),
        ceil(settings.network_connections * slack / workers),
    )


@dataclass(slots=True)
class _Past:
    """What is remembered of a network."""

    failures: int = 0
    failed: float = 0.0
    messages: int = 0
    minute: float = -MINUTE
    bare: int = 0


@dataclass(slots=True)
class _Checks:
    """Passwords of a network: how many are being checked, and who waits."""

    running: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)


class Gate:
    """The counts of one worker.  `now` in seconds of a clock that never goes back."""

    def __init__(self, caps: Caps, message_rate: int = 0) -> None:
        self.caps = caps
        self.limits_messages = message_rate > 0
        self._message_rate = message_rate
        self._open: dict[str, int] = {}
        self._past: dict[str, _Past] = {}
        self._checks: dict[str, _Checks] = {}
        self.connections = 0

    # -- connections

    def enter(self, network: str) -> bool:
        """Whether a connection may stay; if so, `leave` must follow."""
        held = self._open.get(network, 0)
        if self.connections >= self.caps.connections:
            return False
        if held >= self.caps.of_network and network != LOCAL:
            return False
        self._open[network] = held + 1
        self.connections += 1
        return True

    def leave(self, network: str) -> None:
        held = self._open[network] - 1
        if held:
            self._open[network] = held
        else:
            del self._open[network]
        self.connections -= 1

    @property
    def is_crowded(self) -> bool:
        """So many connections that slow ones have to make room."""
        return self.connections > self.caps.connections * limits.CROWDED

    def is_too_slow(self, octets: int, seconds: float) -> bool:
        """Whether a transaction of `seconds`, whose message has `octets` so far, takes too long."""
        grace = limits.CROWDED_GRACE if self.is_crowded else limits.TRANSACTION_GRACE
        return seconds > grace + octets / limits.MIN_DATA_RATE

    # -- messages

    def may_send(self, network: str, now: float) -> bool:
        """Count a message; False: more than the network may send in a minute."""
        past = self._remember(network)
        if now - past.minute >= MINUTE:
            past.minute = now
            past.messages = 0
        past.messages += 1
        return past.messages <= self._message_rate or network == LOCAL

    def count_bare(self, network: str) -> int:
        """Count a message refused for its line ends: how many from this network so far."""
        past = self._remember(network)
        past.bare += 1
        return past.bare

    # -- logins

    def failure_delay(self, network: str, now: float) -> float:
        """Count a login that failed: the seconds that its answer waits."""
        past = self._remember(network)
        if now - past.failed > limits.LOGIN_FAILURE_MEMORY:
            past.failures = 0
        past.failed = now
        # Bounded before the power is taken: failures may go into the millions.
        doublings = min(past.failures, 10)
        past.failures += 1
        delay: float = limits.LOGIN_FAILURE_DELAY * 2**doublings
        return min(delay, limits.MAX_LOGIN_FAILURE_DELAY)

    def check(self, network: str, start: Callable[[], None]) -> None:
        """Call `start` now or when it is this network's turn; `checked` must follow it."""
        checks = self._checks.setdefault(network, _Checks())
        if checks.running >= limits.LOGIN_CHECKS:
            checks.waiting.append(start)
            return
        checks.running += 1
        start()

    def checked(self, network: str) -> None:
        """A check is done: the next one of its network begins."""
        checks = self._checks[network]
        if checks.waiting:
            checks.waiting.popleft()()
            return
        checks.running -= 1
        if not checks.running:
            del self._checks[network]

    def _remember(self, network: str) -> _Past:
        past = self._past.get(network)
        if past is None:
            if len(self._past) >= limits.NETWORKS_REMEMBERED:
                del self._past[next(iter(self._past))]
            past = self._past[network] = _Past()
        return past
