"""The bound of a hub's memory, as `metad config show` prints it.

Rule of this file: every figure is an enforced limit, under the name that enforces it.
"""

from __future__ import annotations

from typing import NamedTuple

from metad import limits
from metad.config.model import Config
from metad.layers.spool import PIECE
from metad.store.commit.group import GROUP_OCTETS
from metad.store.reader import BUFFER


class MemoryBound(NamedTuple):
    """Maximum memory of the workers in octets, whatever clients do.  (It does not include the page
    cache, with index and logs, or shared memory.)

    For each worker: `program` without clients; `clients` for arriving messages and for input and
    output that waits; `group` for the group being committed, its encoded records and a piece of a
    file; `reading` for messages being read, twice; `remembered` for logins and networks;
    `filters` for checks under way.      `connection`: for each connection, whatever it does.
    """

    workers: int
    connections: int
    program: int
    clients: int
    group: int
    reading: int
    remembered: int
    filters: int
    connection: int

    @property
    def worker(self) -> int:
        return (
            self.program + self.clients + self.group + self.reading + self.remembered + self.filters
        )

    @property
    def total(self) -> int:
        return self.workers * self.worker + self.connections * self.connection


def memory_bound(config: Config) -> MemoryBound:
    """For a hub with this configuration."""
    configured = config.limits
    line = max(configured.command_line, limits.SASL_RESPONSE)
    recipients = limits.FREE_RECIPIENTS * limits.RECIPIENT_MEMORY
    tls = any(one.tls != "none" for one in config.listen)
    wanted_checks = config.filter.connections if config.filter.rspamd else 0
    return MemoryBound(
        workers=config.store.workers,
        connections=configured.connections,
        program=limits.PROGRAM_MEMORY,
        clients=configured.memory,
        # The last message of a group may exceed the group's bound by all its recipients.
        group=2 * (GROUP_OCTETS + configured.recipients * limits.RECIPIENT_MEMORY) + PIECE,
        reading=2 * limits.WORKER_THREADS * BUFFER,
        remembered=limits.LOGIN_MEMORY_ENTRIES * limits.LOGIN_MEMORY_OCTETS
        + 2 * limits.NETWORKS_REMEMBERED * limits.NETWORK_OCTETS,
        filters=wanted_checks * limits.FILTER_MEMORY
        + bool(wanted_checks) * limits.FILTER_ANSWER_MEMORY,
        connection=limits.SESSION_MEMORY + line + recipients + tls * limits.TLS_MEMORY,
    )
