"""What the cluster's directory has in etcd, below /metad/CLUSTER/.

identity   {"generation": 1, "id": ...}    which directory this is (metad.cluster.seen)
view       the view, as `View.encode` makes it
alive/N    a start token, under the lease of node N: while it is there, N may have etcd's word
pulse/N    a counter that node N raises every 30 s
set-back   the generation that a node has found to be wiped or rolled back: no node trusts it
users/...  the users
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from metad.cluster import etcd_json
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import Json, Row
from metad.cluster.view import View
from metad.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Keys:
    """Of one cluster."""

    cluster: str

    @property
    def root(self) -> str:
        return f"/metad/{self.cluster}/"

    @property
    def identity(self) -> str:
        return f"{self.root}identity"

    @property
    def view(self) -> str:
        return f"{self.root}view"

    @property
    def users(self) -> str:
        return f"{self.root}users/"

    @property
    def all_alive(self) -> str:
        return f"{self.root}alive/"

    def alive(self, number: int) -> str:
        return f"{self.all_alive}{number}"

    def pulse(self, number: int) -> str:
        return f"{self.root}pulse/{number}"

    @property
    def set_back(self) -> str:
        return f"{self.root}set-back"


class Identity(NamedTuple):
    """Which directory this is.  `generation`: 1, and one more after each restoration."""

    id: str
    generation: int

    def encode(self) -> bytes:
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":")).encode("ascii")


def decode_identity(data: bytes) -> Identity:
    """Raises ClusterError."""
    try:
        found = json.loads(data)
        id_, generation = found["id"], found["generation"]
    except (ValueError, TypeError, KeyError):
        id_, generation = None, None
    if not isinstance(id_, str) or type(generation) is not int:
        raise ClusterError("the identity in etcd cannot be read")
    return Identity(id_, generation)


@dataclass(frozen=True, slots=True)
class Found:
    """The directory at one revision; None for what is not there.  `alive`: by node; `set_back`: a
    generation, or 0; `etcd`: which one it is (`Outcome`)."""

    revision: int
    identity: Identity | None
    identity_row: Row | None
    view: View | None
    view_row: Row | None
    alive: Mapping[int, Row]
    pulse: int | None
    set_back: int = 0
    etcd: int = 0

    @property
    def epoch(self) -> int:
        return self.view.epoch if self.view is not None else 0


async def read_directory(etcd: Etcd, keys: Keys, number: int) -> Found:
    """`number`: this node, whose pulse is read.  Raises EtcdError, ClusterError."""
    outcome = await etcd.read(
        etcd_json.reads(keys.identity),
        etcd_json.reads(keys.view),
        etcd_json.reads_prefix(keys.all_alive),
        etcd_json.reads(keys.pulse(number)),
        etcd_json.reads(keys.set_back),
    )
    if len(outcome.found) != 5:
        raise etcd_json.EtcdError("an answer of etcd is incomplete")
    identity, view, alive, pulse, set_back = outcome.found
    return Found(
        outcome.revision,
        decode_identity(identity[0].value) if identity else None,
        identity[0] if identity else None,
        View.decode(view[0].value) if view else None,
        view[0] if view else None,
        {_number(row.key): row for row in alive},
        _count(pulse[0]) if pulse else None,
        _count(set_back[0]) if set_back else 0,
        outcome.etcd,
    )


def _number(key: str) -> int:
    """The node of alive/N; 0 if it is none."""
    text = key.rpartition("/")[2]
    return int(text) if text.isascii() and text.isdigit() else 0


def _count(row: Row) -> int:
    return int(row.value) if row.value.isdigit() else 0


def as_found(keys: Keys, found: Found) -> list[Json]:
    """Compare: the identity and the view are those that were read."""
    mods = ((keys.identity, found.identity_row), (keys.view, found.view_row))
    return [etcd_json.unchanged(key, row.mod if row else 0) for key, row in mods]
