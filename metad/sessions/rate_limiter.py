"""Limits per client network: connections, messages per minute, password checks.

Rules of this file:

* Only counts are kept here, with a clock that is passed in; sessions decide on replies.
* Every table is bounded: networks without an open connection are forgotten, the oldest first.
* Caps are the hub's and hold for all workers together (metad.sessions.shared_counts).  A new
  connection is published first and then checked, so two workers together can never exceed a cap.
* A client without a network (the peer of a Unix socket) is subject only to the cap on all
  connections.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from metad import limits
from metad.sessions.networks import LOCAL
from metad.sessions.shared_counts import SharedCounts
from metad.system.shared_memory import Cell, Tally

MINUTE = 60.0


class Caps(NamedTuple):
    """The hub's caps; `of_worker`: how many connections one worker's descriptors allow."""

    connections: int
    of_network: int
    of_worker: int


@dataclass(slots=True)
class _Past:
    """What is remembered about a network."""

    failures: int = 0
    failed: float = 0.0
    bare: int = 0


@dataclass(slots=True)
class _Checks:
    """The logins of a network: the number being checked, and those waiting for a turn."""

    running: int = 0
    waiting: deque[Callable[[], bool]] = field(default_factory=deque)


class RateLimiter:
    """The counts of one worker.  `now`: seconds of a monotonic clock that all workers share."""

    def __init__(self, caps: Caps, shared: SharedCounts, message_rate: int = 0) -> None:
        self.caps = caps
        self.limits_messages = message_rate > 0
        self._shared = shared
        self._message_rate = message_rate
        self._open: dict[str, int] = {}
        self._sent: dict[str, int] = {}  # messages in this minute
        self._minute = -1.0
        self._past: dict[str, _Past] = {}
        self._checks: dict[str, _Checks] = {}
        # A network's first few connections to a worker are not published: most have no more, and
        # would fill the table.  A network may exceed its cap by this many connections per other
        # worker.
        self._unpublished = min(limits.UNPUBLISHED_CONNECTIONS, caps.of_network // 100)
        self.connections = 0
        self._all = 0  # of all workers, as of the last admission or refresh
        self._slowest = 0.0  # CPU seconds of the slowest password check so far

    # -- connections

    def enter(self, network: str) -> bool:
        """Whether a connection may stay; if so, call `leave` at its end."""
        self._count(network, 1)
        caps = self.caps
        every = self.refresh()
        if every <= caps.connections and self.connections <= caps.of_worker:
            if every <= caps.of_network or network == LOCAL:
                return True
            held = self._open[network]
            if held + self._shared.of_others(Tally.CONNECTIONS, network) <= caps.of_network:
                return True
        self.leave(network)
        return False

    def leave(self, network: str) -> None:
        self._count(network, -1)

    def _count(self, network: str, change: int) -> None:
        held = self._open.get(network, 0) + change
        if held:
            self._open[network] = held
        else:
            del self._open[network]
        if max(held, held - change) > self._unpublished:
            published = held if held > self._unpublished else 0
            self._shared.publish(Tally.CONNECTIONS, network, published)
        self.connections += change
        self._shared.publish_connections(self.connections)

    def refresh(self) -> int:
        """Count the connections of all workers."""
        self._all = self._shared.connections()
        return self._all

    @property
    def is_crowded(self) -> bool:
        """Whether there were so many connections at the last refresh that slow clients must make
        room."""
        caps = self.caps
        return (
            self._all > caps.connections * limits.CROWDED
            or self.connections > caps.of_worker * limits.CROWDED
        )

    @property
    def share_above(self) -> float:
        """The share of all connections, at the last refresh, above the number that may be idle."""
        caps = self.caps
        of_hub = 1 - caps.connections * limits.CROWDED / self._all if self._all else 0.0
        own = self.connections
        of_worker = 1 - caps.of_worker * limits.CROWDED / own if own else 0.0
        return max(of_hub, of_worker, 0.0)

    def has_room(self, protocol: Cell) -> bool:
        """Whether a protocol (its cell of open connections) may have one more connection."""
        if not self.is_crowded:
            return True
        return self._shared.total(protocol) < self.caps.connections * limits.PROTOCOL_SHARE

    def is_too_slow(self, octets: int, seconds: float) -> bool:
        """Whether a transaction of `seconds`, with `octets` of its message so far, takes too
        long."""
        grace = limits.CROWDED_GRACE if self.is_crowded else limits.TRANSACTION_GRACE
        return seconds > grace + octets / limits.MIN_DATA_RATE

    # -- messages

    def may_send(self, network: str, now: float) -> bool:
        """Count a message.  False: the network exceeds its rate in this minute of the clock."""
        minute = now // MINUTE
        if minute != self._minute:
            self._minute = minute
            self._sent.clear()
            self._shared.forget(Tally.MESSAGES)
        if network not in self._sent and len(self._sent) >= limits.NETWORKS_REMEMBERED:
            del self._sent[next(iter(self._sent))]
        sent = self._sent[network] = self._sent.get(network, 0) + 1
        # A worker without messages in this minute still publishes its counts for an earlier one.
        name = f"{network} {minute}"
        self._shared.publish(Tally.MESSAGES, name, sent)
        others = self._shared.of_others(Tally.MESSAGES, name)
        return sent + others <= self._message_rate or network == LOCAL

    def count_bare(self, network: str) -> int:
        """Count a message refused for its line ends: how many from this network so far."""
        past = self._remember(network)
        past.bare += 1
        return past.bare

    # -- logins

    def login_failed(self, network: str, now: float) -> None:
        """Count a failed login."""
        past = self._remember(network)
        if now - past.failed > limits.LOGIN_FAILURE_MEMORY:
            past.failures = 0
        past.failed = now
        past.failures += 1
        self._shared.publish_failures(network, past.failures, now)

    def login_delay(self, network: str, now: float) -> float:
        """Seconds before the network's next password may be checked, from all workers' failures."""
        failures = self._shared.failures_of_others(network, now)
        past = self._past.get(network)
        if past is not None and now - past.failed <= limits.LOGIN_FAILURE_MEMORY:
            failures += past.failures
        if not failures:
            return 0.0
        # Bounded before the exponentiation: there may be millions of failures.
        delay: float = limits.LOGIN_FAILURE_DELAY * 2 ** min(failures - 1, 10)
        return min(delay, limits.MAX_LOGIN_FAILURE_DELAY)

    def note_check(self, seconds: float) -> None:
        """Record the CPU time of a password check."""
        self._slowest = max(self._slowest, seconds)

    @property
    def answer_after(self) -> float:
        """Seconds from the start of a check to the answer if it fails: longer than any check.

        Whole seconds, so that the answer does not reveal which kind of hash was checked.
        """
        seconds = max(limits.LOGIN_FAILURE_DELAY, float(math.ceil(self._slowest)))
        return min(seconds, limits.MAX_LOGIN_FAILURE_DELAY)

    def check(self, network: str, start: Callable[[], bool]) -> None:
        """Call `start` now or when the network's turn comes; `checked` must follow.

        `start` returns False if the login is over: then the next one gets the turn.
        """
        checks = self._checks.setdefault(network, _Checks())
        if checks.running >= limits.LOGIN_CHECKS:
            checks.waiting.append(start)
            return
        checks.running += 1
        if not start():
            self.checked(network)

    def checked(self, network: str) -> None:
        """A check is done: begin the network's next one."""
        checks = self._checks[network]
        while checks.waiting:
            if checks.waiting.popleft()():
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
