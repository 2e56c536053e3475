"""What a hub's memory is bounded by: shown by `metad config show`, kept by everything else.

Rule of this file: every figure is a limit that is enforced, by the name that enforces it.
"""

from __future__ import annotations

from typing import NamedTuple

from metad import limits
from metad.config.model import Config
from metad.layers.spool import PIECE
from metad.store.commit.committer import GROUP_OCTETS
from metad.store.reader import BUFFER


class Bound(NamedTuple):
    """Octets of memory that the workers may have, whatever clients do.  (What is in the page cache,
    index and logs, and in shared memory is not theirs.)

    In a worker: `program` when nobody is there, `clients` of messages and of what waits, `group` of
    one being committed, records made of their parts and the piece of a file; `reading` of messages
    being read, twice; `remembered` of logins and networks.  `connection`: each, whatever it does.
    """

    workers: int
    connections: int
    program: int
    clients: int
    group: int
    reading: int
    remembered: int
    connection: int

    @property
    def worker(self) -> int:
        return self.program + self.clients + self.group + self.reading + self.remembered

    @property
    def total(self) -> int:
        return self.workers * self.worker + self.connections * self.connection


def bound(config: Config) -> Bound:
    """Of a hub of this configuration."""
    wanted = config.limits
    line = max(wanted.command_line, limits.SASL_RESPONSE)
    recipients = limits.FREE_RECIPIENTS * limits.RECIPIENT_MEMORY
    tls = any(one.tls != "none" for one in config.listen)
    return Bound(
        workers=config.store.workers,
        connections=wanted.connections,
        program=limits.PROGRAM_MEMORY,
        clients=wanted.memory,
        # Its last message may bring it above its bound by all of that one's recipients.
        group=2 * (GROUP_OCTETS + wanted.recipients * limits.RECIPIENT_MEMORY) + PIECE,
        reading=2 * limits.WORKER_THREADS * BUFFER,
        remembered=limits.LOGIN_MEMORY_ENTRIES * limits.LOGIN_MEMORY_OCTETS
        + 2 * limits.NETWORKS_REMEMBERED * limits.NETWORK_OCTETS,
        connection=limits.SESSION_MEMORY + line + recipients + tls * limits.TLS_MEMORY,
    )
