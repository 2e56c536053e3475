"""What one client network may have of the hub: connections, messages, checks of passwords.

Rules of this file:

* Counts only, with a clock that is given; who is told what is the sessions' business.
* Every table is bounded: a network without an open connection is forgotten, the oldest first.
* Caps are the hub's, and hold for all workers together (metad.sessions.shared_counts).
  A new connection is counted and shown first and checked then, so that two workers at once never
  pass a cap.
* What has no network (a unix socket's peer) has no cap but the one on all connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from metad import limits
from metad.sessions.networks import LOCAL
from metad.sessions.shared_counts import SharedCounts
from metad.system.shared_memory import Tally

MINUTE = 60.0


class Caps(NamedTuple):
    """Of the hub; `of_worker`: what one worker's descriptors allow."""

    connections: int
    of_network: int
    of_worker: int


@dataclass(slots=True)
class _Past:
    """What is remembered of a network."""

    failures: int = 0
    failed: float = 0.0
    bare: int = 0


@dataclass(slots=True)
class _Checks:
    """Passwords of a network: how many are being checked, and who waits."""

    running: int = 0
    waiting: deque[Callable[[], bool]] = field(default_factory=deque)


class RateLimiter:
    """The counts of one worker.  `now` in seconds of a clock that never goes back, and that all
    workers share."""

    def __init__(self, caps: Caps, crowd: SharedCounts, message_rate: int = 0) -> None:
        self.caps = caps
        self.limits_messages = message_rate > 0
        self._crowd = crowd
        self._message_rate = message_rate
        self._open: dict[str, int] = {}
        self._sent: dict[str, int] = {}  # messages in this minute
        self._minute = -1.0
        self._past: dict[str, _Past] = {}
        self._checks: dict[str, _Checks] = {}
        # Of a network the first few connections of a worker are not shown: most have no more, and
        # would fill the table.  So much above its cap it may come, for each other worker.
        self._unshown = min(limits.UNSHOWN_CONNECTIONS, caps.of_network // 100)
        self.connections = 0
        self._all = 0  # of all workers, when one was last let in or looked for

    # -- connections

    def enter(self, network: str) -> bool:
        """Whether a connection may stay; if so, `leave` must follow."""
        self._count(network, 1)
        caps = self.caps
        every = self.look()
        if every <= caps.connections and self.connections <= caps.of_worker:
            if every <= caps.of_network or network == LOCAL:
                return True
            held = self._open[network]
            if held + self._crowd.of_others(Tally.CONNECTIONS, network) <= caps.of_network:
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
        if max(held, held - change) > self._unshown:
            shown = held if held > self._unshown else 0
            self._crowd.show(Tally.CONNECTIONS, network, shown)
        self.connections += change
        self._crowd.show_connections(self.connections)

    def look(self) -> int:
        """The connections of all workers now."""
        self._all = self._crowd.connections()
        return self._all

    @property
    def is_crowded(self) -> bool:
        """So many connections, when last looked at, that slow ones have to make room."""
        caps = self.caps
        return (
            self._all > caps.connections * limits.CROWDED
            or self.connections > caps.of_worker * limits.CROWDED
        )

    def is_too_slow(self, octets: int, seconds: float) -> bool:
        """Whether a transaction of `seconds`, whose message has `octets` so far, takes too long."""
        grace = limits.CROWDED_GRACE if self.is_crowded else limits.TRANSACTION_GRACE
        return seconds > grace + octets / limits.MIN_DATA_RATE

    # -- messages

    def may_send(self, network: str, now: float) -> bool:
        """Count a message; False: more than the network may send in this minute of the clock."""
        minute = now // MINUTE
        if minute != self._minute:
            self._minute = minute
            self._sent.clear()
            self._crowd.forget(Tally.MESSAGES)
        if network not in self._sent and len(self._sent) >= limits.NETWORKS_REMEMBERED:
            del self._sent[next(iter(self._sent))]
        sent = self._sent[network] = self._sent.get(network, 0) + 1
        # A worker that has had no message since has its figures of an earlier minute still there.
        name = f"{network} {minute}"
        self._crowd.show(Tally.MESSAGES, name, sent)
        others = self._crowd.of_others(Tally.MESSAGES, name)
        return sent + others <= self._message_rate or network == LOCAL

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

    def check(self, network: str, start: Callable[[], bool]) -> None:
        """Call `start` now or when it is this network's turn; `checked` must follow it.

        False from it: nobody wants to know any more, and the turn is the next one's.
        """
        checks = self._checks.setdefault(network, _Checks())
        if checks.running >= limits.LOGIN_CHECKS:
            checks.waiting.append(start)
            return
        checks.running += 1
        if not start():
            self.checked(network)

    def checked(self, network: str) -> None:
        """A check is done: the next one of its network begins."""
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
