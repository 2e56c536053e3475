"""Is the hub well?  What is wrong, since when, and what to do about it.

    serving     nothing is wrong
    degraded    mail is taken and served, but something needs a person
    refusing    new mail is refused or deferred

Rule of this file: a problem is reported in the same words as long as it lasts, so that it keeps the
time of its beginning.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from metad.config.model import Config
from metad.errors import ConfigError, MetadError
from metad.limits import CLUSTER_WORD
from metad.monitor import cluster_problems
from metad.monitor.facts import Facts
from metad.monitor.problem import Problem
from metad.store.log_space import needed_space
from metad.store.log_table import LogState
from metad.system.osio import Osio
from metad.system.shared_memory import Cell
from metad.tls import store as tls_store
from metad.workers.load import space

SERVING, DEGRADED, REFUSING = "serving", "degraded", "refusing"
# Certificates are read from the disk, no more often than this.
CERTIFICATE_SECONDS = 60.0
NO_CERTIFICATE = "there is no certificate any more: a reload or a start fails"
MOST_NAMED = 5  # logs in one problem


class Report(NamedTuple):
    """The state, and each problem with the Unix time of its beginning."""

    state: str
    problems: list[tuple[Problem, int]]

    def facts(self) -> list[dict[str, Any]]:
        return [
            {"problem": one.text, "since": since, "remedy": one.remedy}
            for one, since in self.problems
        ]


class Health:
    """Checks again at each call, and remembers when each problem began."""

    def __init__(
        self,
        config: Callable[[], Config],
        clock: Callable[[], float] = time.time,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`config`: the one in force, which a reload may change."""
        self._config = config
        self._clock = clock
        self._monotonic_ns = monotonic_ns
        self._since: dict[str, int] = {}
        self._certificates: list[str] = []
        self._certificates_at = float("-inf")
        self._started_ns = monotonic_ns()

    def look(self, facts: Facts) -> Report:
        """What is wrong now."""
        now = self._clock()
        found = list(self._problems(facts, now))
        self._since = {one.text: one.since or self._since.get(one.text, int(now)) for one in found}
        state = DEGRADED if found else SERVING
        if any(one.refuses for one in found):
            state = REFUSING
        return Report(state, [(one, self._since[one.text]) for one in found])

    def _problems(self, facts: Facts, now: float) -> Iterator[Problem]:
        config = self._config()
        yield from self._workers(facts, config)
        yield from _disk(facts, config)
        yield from _writing(facts, config)
        if facts.clock_suspect:
            yield Problem(
                "the clock is far ahead of the newest mail, so nothing expires",
                "set the clock; if it is right: metad store time --accept",
            )
        if facts.store_remade:
            yield Problem(
                "store.json could not be read: it was made again from the logs, with another node "
                "number",
                "look for I/O errors (dmesg), run metad fsck; restart the hub to clear this",
                since=facts.store_remade,
            )
        if facts.totals["damaged"] + facts.collector["damaged"]:
            yield _damage(facts)
        for row in facts.logs:
            if row.state == LogState.ACTIVE and not row.owner:
                yield Problem(
                    f"log {row.number} was left out at the start: its mail may be missing",
                    "see the log for the reason; check the disk, then restart",
                )
        for line in self._certificate_lines(config, now):
            what = "install one" if line == NO_CERTIFICATE else "renew it"
            yield Problem(line, f"{what}: metad tls install")
        if facts.standing is not None:
            with_etcd = bool(config.cluster.etcd)
            yield from cluster_problems.problems(facts.standing, with_etcd=with_etcd)
        if config.cluster.etcd:
            yield from self._directory(facts)
        if facts.totals["log_lines_dropped"]:
            yield Problem(
                "log lines were dropped: nothing reads the log quickly enough",
                "check the program that reads standard error, or log to a file",
            )

    def _workers(self, facts: Facts, config: Config) -> Iterator[Problem]:
        limit = max(config.limits.heartbeat, 1) * 1_000_000_000
        now = self._monotonic_ns()
        alive = [row for row in facts.workers if now - row[Cell.HEARTBEAT] <= limit]
        if not alive:
            yield Problem("no worker is running", "see the log for the reason", refuses=True)
        elif len(alive) < config.store.workers:
            missing = config.store.workers - len(alive)
            yield Problem(f"{missing} of {config.store.workers} workers are not running",
                          "see the log for the reason")  # fmt: skip

    def _directory(self, facts: Facts) -> Iterator[Problem]:
        """Mail goes on without etcd, until a member fails."""
        age = facts.word_age
        if age is None:  # a hub that starts has no word yet
            age = (self._monotonic_ns() - self._started_ns) / 1e9
        if facts.untrusted_since:
            yield Problem(
                "the directory in etcd was wiped or rolled back, or this is another etcd",
                "correct cluster.etcd, or on the node with the greatest epoch: metad cluster "
                "restore-directory",
                since=facts.untrusted_since,
            )
        elif facts.etcd_refuses_since:
            yield Problem(
                "etcd refuses requests: the view of the cluster and users cannot be changed",
                "metad cluster status shows why; etcdctl alarm list, whether etcd is out of space",
                since=facts.etcd_refuses_since,
            )
        elif age > CLUSTER_WORD:
            yield Problem(
                "etcd does not answer: the view of the cluster and users cannot be changed",
                "see the log for the reason, and metad cluster status",
            )

    def _certificate_lines(self, config: Config, now: float) -> list[str]:
        if not tls_store.wanted(config):
            return []
        if now - self._certificates_at >= CERTIFICATE_SECONDS:
            self._certificates_at = now
            warnings = tls_store.expiry_warnings(config, datetime.fromtimestamp(now, UTC))
            self._certificates = warnings or _without_certificate(config)
        return self._certificates


def _without_certificate(config: Config) -> list[str]:
    """Workers keep the certificates that they have; those of the next start find none."""
    with suppress(ConfigError):
        if tls_store.load_contexts(config) is None:
            return [NO_CERTIFICATE]
    return []


# What workers report about themselves: the cell, the problem, the remedy, whether it stops new
# mail.
_NOTED = (
    (
        Cell.INDEX_BEHIND,
        "the index is behind the logs",
        "the log has the reason, such as a full disk; it is tried again each second; if it stays, "
        "restart the hub",
        True,
    ),
    (
        Cell.WRITES_FAIL,
        "writes to the logs fail again and again",
        "look for I/O errors (dmesg); replace the disk",
        True,
    ),
    (
        Cell.USERS_LOST,
        "the users database was lost: mail for unknown users is deferred (451)",
        "restore it from a backup, or if the users that are there now are all: "
        "metad user accept-loss",
        True,
    ),
    (
        Cell.LOG_FAILED,
        "a log was given up because a write to it failed",
        "look for I/O errors (dmesg); restart the hub to clear this",
        False,
    ),
)

# In a cluster with etcd, as after a join.
USERS_AWAITED: Final = (
    "not all users of the cluster are here yet: mail for unknown users is deferred (451)",
    "wait a minute: they come from etcd; if this stays, see the log",
)


def _writing(facts: Facts, config: Config) -> Iterator[Problem]:
    """What workers report about their own logs; new mail stops only if all of them report it."""
    for cell, text, remedy, stops in _NOTED:
        begun = [row[cell] for row in facts.workers if row[cell]]
        if begun:
            refuses = stops and len(begun) == len(facts.workers)
            awaited = cell is Cell.USERS_LOST and config.cluster.etcd
            yield Problem(*(USERS_AWAITED if awaited else (text, remedy)), refuses, min(begun))


def _since(facts: Facts, cell: Cell) -> int:
    return min((row[cell] for row in facts.workers if row[cell]), default=0)


def _damage(facts: Facts) -> Problem:
    where = ", ".join(map(str, sorted(facts.damaged_logs)[:MOST_NAMED]))
    named = f", the last in log {where}" if where else ""
    return Problem(f"damaged records were found{named}", "run metad fsck, then see quarantine/")


def _disk(facts: Facts, config: Config) -> Iterator[Problem]:
    if config.store.layer != "log":
        return
    try:
        free = shutil.disk_usage(config.data).free
        needed = needed_space(Osio(), str(config.data / "logs"), config.store.log_size)
        found = space(facts.logs, config.store, config.data / "logs", needed)
    except (OSError, MetadError) as error:
        yield Problem(f"the disk cannot be checked: {error}", "check the file system")
        return
    lacking = sum(bool(row[Cell.NO_SPACE]) for row in facts.workers)
    is_full = not found.free and (free <= needed or config.store.size_limit is not None)
    # The collector's logs below the limit are free, but not for mail: the workers know.
    if is_full or (lacking and lacking == len(facts.workers)):
        elsewhere = facts.standing is not None and facts.standing.suffice
        yield Problem(
            "no space for new mail" + (": other nodes store it" if elsewhere else ""),
            f"free space ({free:,} bytes left, {needed:,} needed), raise store.size_limit, or run "
            "metad gc --full",
            refuses=not elsewhere,
            since=_since(facts, Cell.NO_SPACE),
        )
    elif lacking:
        yield Problem(
            "some workers have no space for new mail",
            "the collector is working; raise store.size_limit, or run metad gc --full",
            since=_since(facts, Cell.NO_SPACE),
        )
    elif found.share * 100 < config.collector.low_space:
        yield Problem(
            f"less than {config.collector.low_space} % of the space for logs is free",
            f"the collector is working; {free:,} bytes are left on the disk",
        )
