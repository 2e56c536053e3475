"""What a seed makes of a cluster: mail and sessions at any node, and what breaks meanwhile."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tests.sim.plan import BOXES, WAIT, Kill, Op, Plan, Stall
from tests.sim.system import EIO, ENOSPC


class Mixture(NamedTuple):
    """Weights of the kinds of operations; see tests.sim.cluster_clients."""

    put: float = 8
    session: float = 6
    part: float = 0.6  # links are cut, both ways or one
    mend: float = 0.8
    hold: float = 0.3  # what is under way is late
    freeze: float = 0.3  # a process stands still
    view: float = 0.3  # a node has a newer view than the other
    crash: float = 0.2
    power: float = 0.2
    stop: float = 0.1
    down: float = 0.2  # a node is away for some seconds
    collect: float = 0.5
    alone: float = 0.15  # a node is off, and the operator tells the other to go on


class EtcdMixture(NamedTuple):
    """The same of a cluster with etcd, whose nodes mark each other absent."""

    put: float = 8
    session: float = 6
    part: float = 0.5
    mend: float = 0.8
    hold: float = 0.2
    freeze: float = 0.3
    view: float = 0.2
    crash: float = 0.2
    power: float = 0.2
    stop: float = 0.1
    down: float = 0.4
    collect: float = 0.3
    isolate: float = 0.5  # a node reaches neither the others nor etcd
    blind: float = 0.3  # a node does not reach etcd
    away: float = 0.2  # etcd is stopped, or slow
    back: float = 0.1  # etcd is wiped, or restored from an old snapshot, until it is set right
    settle: float = 0.4  # nothing fails for some seconds
    join: float = 0.3  # a new machine
    lose: float = 0.2  # a disk is lost, and the node removed


NOTHING_MORE: Mapping[str, float] = MappingProxyType({})
# A machine's disk is copied, and it runs with that copy later.
OLD_DISKS: Mapping[str, float] = MappingProxyType({"old": 1.0})


def make_plan(
    seed: int, nodes: int = 2, *, etcd: bool = False, more: Mapping[str, float] = NOTHING_MORE
) -> Plan:
    """`more`: weights of other kinds of operations."""
    name = "cluster plan" if nodes == 2 else f"{'etcd' if etcd else 'cluster'} of {nodes}"
    rng = random.Random(f"{name} {seed}")
    mixture = EtcdMixture() if etcd else Mixture()
    if nodes > 2 and not etcd:  # without etcd, two nodes alone have the command
        mixture = Mixture(alone=0)
    return Plan(
        seed,
        tuple(_ops(rng, _swarm(rng, {**mixture._asdict(), **more}), nodes)),
        _kills(rng),
        _failures(rng),
        clock_step=rng.choice((1_000, 20_000)),
        stay=rng.choice((1.0, 4.0, 15.0)),
        moody=rng.choice((0.0, 0.02)),
        log_size=16 * 1024,
        recovery_delay=rng.choice((0.0, 0.0, 1.0)),
        stalls=_stalls(rng),
        nodes=nodes,
        etcd=etcd,
    )


def _swarm(rng: random.Random, calm: Mapping[str, float]) -> dict[str, float]:
    """Each seed does without something."""
    return {
        kind: weight if kind in ("put", "session") else weight * rng.choice((0, 1, 1, 3))
        for kind, weight in calm.items()
    }


def _ops(rng: random.Random, mixture: dict[str, float], nodes: int) -> list[Op]:
    kinds, weights = list(mixture), list(mixture.values())
    hurry = rng.choice((0.2, 0.6, 0.9))
    return [
        Op(
            rng.choices(kinds, weights)[0],
            rng.randrange(nodes),
            rng.randrange(1, 1 << BOXES),
            rng.randrange(1 << 30),
            rng.choice((0, 3, 20, 60)) if rng.random() < hurry else WAIT,
        )
        for _ in range(rng.choice((20, 40, 70)))
    ]


def _kills(rng: random.Random) -> tuple[Kill, ...]:
    most = rng.choice((0, 0, 1, 3))
    return tuple(("worker", "", 1 + int(rng.random() ** 2 * 4000)) for _ in range(most))


def _stalls(rng: random.Random) -> tuple[Stall, ...]:
    if rng.random() < 0.7:
        return ()
    return (("worker", 1 + rng.randrange(3000), rng.choice((0.5, 2.0, 8.0))),)


def _failures(rng: random.Random) -> tuple[tuple[str, str, int, int | str], ...]:
    """Of all nodes' workers together: each node's own disk fails now and then."""
    found: list[tuple[str, str, int, int | str]] = []
    for kind, most, ordinals, error in (
        ("group", rng.choice((0, 0, 0, 2)), 60, EIO),
        ("write", rng.choice((0, 0, 0, 1)), 60, rng.choice((EIO, ENOSPC, "short"))),
        ("index", rng.choice((0, 0, 0, 2)), 80, ENOSPC),
    ):
        found += [("worker", kind, 1 + rng.randrange(ordinals), error) for _ in range(most)]
    return tuple(found)
