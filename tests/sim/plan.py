"""The plan of a seed: operations, faults, and how the scheduler behaves.

Rules of this file:

* A plan is plain data: an operation or a fault can be left out, and the rest is run again (shrink).
* Each seed has its own mixture: a fault that is always rare hits nothing, and one that is always
  frequent hides the others.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.sim.system import EIO, ENOSPC

BOXES = 3
FOCUSED = 0.25  # the share of seeds about a mishap of the collector
WAIT = -1  # as a gap: until the operation is done
# Named places of the collector, where a kill is worth most.
PLACES = (
    "taken", "copying", "copied", "moved", "freeing", "freed", "dropped", "forgotten", "released",
    "deleting", "expired",
)  # fmt: skip
Kill = tuple[str, str, int]
Stall = tuple[str, int, float]  # role, switch point, seconds
Failure = tuple[str, str, int, int | str]


class Op(NamedTuple):
    """`kind`, on which worker (`slot`) and mailbox; `number` chooses the rest; `gap`: switch points
    until the next operation."""

    kind: str
    slot: int = 0
    box: int = 1
    number: int = 0
    gap: int = 0


class Plan(NamedTuple):
    """`recovery_delay`: seconds before the logs of a dead process are recovered; `stalls`: where a
    process stops for a while; `nodes`, `etcd`: of a cluster."""

    seed: int
    ops: tuple[Op, ...]
    kills: tuple[Kill, ...] = ()
    failures: tuple[Failure, ...] = ()
    clock_step: int = 20_000
    stay: float = 4.0
    moody: float = 0.0
    log_size: int = 16 * 1024
    recovery_weight: float = 1.0
    recovery_delay: float = 0.0
    stalls: tuple[Stall, ...] = ()
    nodes: int = 0
    etcd: bool = False


class Mixture(NamedTuple):
    """Weights of the kinds of operations."""

    put: float = 6
    session: float = 3
    collect: float = 2
    expire: float = 0.4
    backup: float = 0.3
    clock: float = 0.2
    crash: float = 0.1
    cut: float = 0.1
    stop: float = 0.1
    flip: float = 0.0
    scan: float = 0.2
    remove: float = 0.0


def make_plan(seed: int) -> Plan:
    rng = random.Random(f"plan {seed}")
    if rng.random() < FOCUSED:
        return _focused(seed, rng)
    return Plan(
        seed,
        tuple(_ops(rng, _mixture(rng))),
        _kills(rng),
        _failures(rng),
        clock_step=rng.choice((1_000, 20_000, 400_000)),
        stay=rng.choice((1.0, 4.0, 4.0, 15.0)),
        moody=rng.choice((0.0, 0.02, 0.1)),
        log_size=rng.choice((8, 12, 16)) * 1024,
        recovery_weight=rng.choice((1.0, 0.2, 0.02)),
        recovery_delay=rng.choice((0.0, 0.0, 1.0, 5.0, 30.0)),
        stalls=_stalls(rng, ("worker", "collector", "recovery", "backup")),
    )


def _focused(seed: int, rng: random.Random) -> Plan:
    """One mishap of the collector early on, then mail that is deleted and collected for long: what
    an unknown copy needs to outlive its deletion record."""
    mixture = Mixture(
        put=6, session=6, collect=6, expire=0, backup=0, clock=0, crash=0, cut=0, stop=0
    )
    kills: list[Kill] = []
    failures: list[Failure] = []
    stalls: tuple[Stall, ...] = ()
    delay = 0.0
    what = rng.choice(("copied", "freed", "group", "index"))
    often = rng.choice((1, 1, 2, 3))
    if what == "copied":  # and the dead collector's logs wait for long
        kills.append(("collector", "copied", often))
        delay = 60.0
    elif what == "freed":  # and their recovery is overtaken
        kills.append(("collector", rng.choice(("freeing", "freed", "dropped", "forgotten")), often))
        stalls = (("recovery", 1 + rng.randrange(100), rng.choice((5.0, 30.0))),)
    else:
        failures.append(("collector", what, often, EIO if what == "group" else ENOSPC))
    return Plan(
        seed,
        tuple(_ops(rng, mixture, 70)),
        tuple(kills),
        tuple(failures),
        moody=rng.choice((0.0, 0.1)),
        log_size=8 * 1024,
        recovery_delay=delay,
        stalls=stalls,
    )


def _stalls(rng: random.Random, roles: tuple[str, ...]) -> tuple[Stall, ...]:
    """Processes that stop for a while, anywhere, and are overtaken."""
    return tuple(
        (role, 1 + rng.randrange(120 if role == "recovery" else 1500), rng.choice((0.5, 5.0, 30.0)))
        for role in roles
        if rng.random() < 0.5
    )


def _mixture(rng: random.Random) -> Mixture:
    return Mixture(
        collect=rng.choice((0.5, 2, 4)),
        session=rng.choice((1, 3, 5)),
        crash=rng.choice((0, 0, 0.3)),
        cut=rng.choice((0, 0, 0.4)),
        stop=rng.choice((0, 0, 0.3)),
        expire=rng.choice((0, 0.5)),
        backup=rng.choice((0, 0, 0.4)),
        clock=rng.choice((0, 0.3)),
        flip=rng.choice((0, 0, 0, 0.3)),
        scan=rng.choice((0, 0.4)),
        remove=rng.choice((0, 0, 0.2)),
    )


def _ops(rng: random.Random, mixture: Mixture, count: int = 0) -> list[Op]:
    kinds, weights = mixture._fields, tuple(mixture)
    hurry = rng.choice((0.2, 0.6, 0.9))
    return [
        Op(
            rng.choices(kinds, weights)[0],
            rng.randrange(2),
            rng.randrange(1, 1 << BOXES),
            rng.randrange(1 << 30),
            rng.choice((0, 3, 20, 60)) if rng.random() < hurry else WAIT,
        )
        for _ in range(count or rng.choice((25, 50, 90)))
    ]


def _kills(rng: random.Random) -> tuple[Kill, ...]:
    """Kills of workers and recoveries anywhere, of collectors mostly at named places."""
    kills: list[Kill] = []
    for role, most, points in (
        ("worker", rng.choice((0, 0, 1, 3)), 2000),
        ("collector", rng.choice((0, 1, 1, 3)), 1500),
        ("recovery", rng.choice((0, 0, 1, 2)), 120),
        ("first", rng.choice((0, 0, 0, 1)), 200),
        ("backup", rng.choice((0, 0, 1)), 100),
    ):
        for _ in range(most):
            if role == "collector" and rng.random() < 0.7:
                kills.append((role, rng.choice(PLACES), 1 + int(rng.expovariate(0.4))))
            else:
                kills.append((role, "", 1 + int(rng.random() ** 2 * points)))
    return tuple(kills)


def _failures(rng: random.Random) -> tuple[Failure, ...]:
    """Failing syncs and writes, an index that refuses."""
    found: list[Failure] = []
    for role, kind, most, ordinals, error in (
        ("worker", "sync", rng.choice((0, 0, 0, 2)), 60, EIO),
        ("worker", "write", rng.choice((0, 0, 0, 1)), 60, rng.choice((EIO, ENOSPC, "short"))),
        ("worker", "index", rng.choice((0, 0, 1, 3)), 50, ENOSPC),
        ("worker", "group", rng.choice((0, 0, 0, 1)), 30, EIO),
        ("collector", "group", rng.choice((0, 0, 1, 2)), 8, EIO),
        ("collector", "sync", rng.choice((0, 0, 0, 1)), 25, EIO),
        ("collector", "write", rng.choice((0, 0, 0, 1)), 25, rng.choice((EIO, "short"))),
        ("collector", "index", rng.choice((0, 0, 1, 2)), 25, ENOSPC),
        ("collector", "allocate", rng.choice((0, 0, 0, 1)), 4, ENOSPC),
        ("recovery", "sync", rng.choice((0, 0, 0, 1)), 4, EIO),
        ("recovery", "index", rng.choice((0, 0, 1)), 6, ENOSPC),
    ):
        for _ in range(most):
            first = 1 + rng.randrange(ordinals)
            times = rng.choice((1, 1, 1, 4)) if kind == "index" else 1
            found += [(role, kind, first + more, error) for more in range(times)]
    return tuple(found)
