"""What a reload may change, and what needs a restart.

    request -> plan -> bind new addresses -> fork successors -> all ready -> they take the slots
                                                |-> one fails or is too slow -> nothing changes

Rules of this file:

* The old workers serve until the successors are ready; if they never are, nothing has changed and
  the client is told why.
* A setting that needs a restart keeps its old value, and the reply names it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metad.config.model import Config, Listener
from metad.control import Connection
from metad.errors import EX_TEMPFAIL, MetadError
from metad.listeners import Bound, close_all
from metad.master.options import Snapshot
from metad.master.worker_pool import Generation

BOOT_SECONDS = 60.0
# Key -> why it cannot change while the hub runs.
FIXED = {
    "data": "the hub runs on it",
    "user": "the hub runs as this user",
    "chroot": "its processes run in it",
    "landlock": "its processes run confined, or not",
    "cluster.address": "other nodes reach it there",
    "cluster.peers": "the view has its address",
    "metrics.address": "its socket is opened at a start",
    "store.workers": "each worker has its own sockets",
    "store.layer": "mail is in the old layer",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """`config`: the result; `changed`: keys; `kept`: key -> why it needs a restart."""

    config: Config
    changed: list[str]
    kept: dict[str, str]


@dataclass(slots=True)
class Change:
    """A reload under way."""

    plan: Plan
    generation: Generation
    snapshot: Snapshot
    fresh: list[Bound]
    rest: list[Bound]
    connection: Connection | None
    deadline: float

    def fail(self, error: MetadError) -> None:
        """Close what was bound and tell the client; nothing has changed."""
        close_all(self.fresh)
        if self.connection is not None:
            self.connection.reply_error(error)

    def answer(self) -> None:
        if self.connection is not None:
            changed, kept = self.plan.changed, self.plan.kept
            number = self.generation.number
            self.connection.reply({"generation": number, "changed": changed, "kept": kept})


class NotNowError(MetadError):
    """The hub is starting, stopping or reloading (exit 75)."""

    exit_code = EX_TEMPFAIL
    remedy = "try again in a moment"


def plan(old: Config, new: Config, bound: Sequence[Bound], may_bind: Callable[[int], bool]) -> Plan:
    """What will be in force.  `may_bind(port)`: whether this process can bind that port now."""
    kept: dict[str, str] = {}
    wanted = _keep_etcd(old, _keep_fixed(old, new, kept), kept)
    wanted = replace(wanted, listen=_listen(old, new, bound, may_bind, kept))
    return Plan(wanted, sorted(_differences(old, wanted)), kept)


def deadline() -> float:
    return time.monotonic() + BOOT_SECONDS


def _keep_fixed(old: Config, new: Config, kept: dict[str, str]) -> Config:
    for key in _differences(old, new) & FIXED.keys():
        kept[key] = FIXED[key]
        table, _, name = key.rpartition(".")
        if table:
            part = replace(getattr(new, table), **{name: getattr(getattr(old, table), name)})
            new = replace(new, **{table: part})
        else:
            new = replace(new, **{name: getattr(old, name)})
    return new


def _keep_etcd(old: Config, new: Config, kept: dict[str, str]) -> Config:
    """etcd may move; a cluster of two without it does not begin to use it while it runs."""
    if bool(old.cluster.etcd) == bool(new.cluster.etcd):
        return new
    kept["cluster.etcd"] = "the view is kept without it, or in it"
    return replace(new, cluster=old.cluster)


def _listen(
    old: Config,
    new: Config,
    bound: Sequence[Bound],
    may_bind: Callable[[int], bool],
    kept: dict[str, str],
) -> tuple[Listener, ...]:
    """The listeners that are possible: passed sockets stay, privileged ports cannot be added."""
    before = {one.address for one in old.listen}
    wanted: list[Listener] = []
    for listener in new.listen:
        if listener.address in before or _possible(listener, may_bind):
            wanted.append(listener)
        else:
            kept[f"listen {listener.address}"] = "this port or socket can only be opened at a start"
    addresses = {one.address for one in wanted}
    for one in bound:
        if one.listener.protocol == "peer":
            continue
        if not one.ours and one.listener.address not in addresses:
            kept[f"listen {one.listener.address}"] = "this socket can only be closed at a stop"
            wanted.append(one.listener)
    return tuple(wanted)


def _possible(listener: Listener, may_bind: Callable[[int], bool]) -> bool:
    if listener.path is not None or listener.port == 0:
        return True
    return listener.port is not None and may_bind(listener.port)


def _differences(old: Config, new: Config) -> set[str]:
    """The keys whose values differ, with their table."""
    found: set[str] = set()
    for field in dataclasses.fields(old):
        found |= _different(field.name, getattr(old, field.name), getattr(new, field.name))
    return found - {"source"}


def _different(name: str, old: Any, new: Any) -> set[str]:
    if not dataclasses.is_dataclass(old):
        return set() if old == new else {name}
    return {
        f"{name}.{field.name}"
        for field in dataclasses.fields(old)
        if getattr(old, field.name) != getattr(new, field.name)
    }


def may_bind(port: int) -> bool:
    """Whether an unprivileged process may bind it; the master is one by now."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "rb") as file:
            return port >= int(file.read())
    except (OSError, ValueError):
        return port >= 1024
