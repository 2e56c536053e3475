"""What a seed may be run as, a hub alone or a cluster, by the names of `python -m tests.sim`.

Rule of this file: a kind and a seed make one plan for ever, so that a seed that is written down can
be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tests.sim import cluster_plan
from tests.sim.cluster_run import ClusterRun
from tests.sim.plan import Plan, make_plan
from tests.sim.run import Run

MakePlan = Callable[[int], Plan]


def three_or_four(seed: int, more: Mapping[str, float] = cluster_plan.NOTHING_MORE) -> Plan:
    """With etcd: their nodes come and go."""
    return cluster_plan.make_plan(seed, 3 + seed % 2, etcd=True, more=more)


KINDS: Final[dict[str, MakePlan]] = {
    "hub": make_plan,
    "two": cluster_plan.make_plan,
    "three": partial(cluster_plan.make_plan, nodes=3),
    "lives": three_or_four,
    "old": partial(three_or_four, more=cluster_plan.OLD_DISKS),
    "five": partial(cluster_plan.make_plan, nodes=5, etcd=True),
    "seven": partial(cluster_plan.make_plan, nodes=7, etcd=True),
}


def make_run(plan: Plan, *, trace: bool = False) -> Run:
    return ClusterRun(plan, trace=trace) if plan.nodes else Run(plan, trace=trace)


def run_cluster(kind: str, seed: int) -> ClusterRun:
    """Raises AssertionError with the seed and the last notes."""
    made = ClusterRun(KINDS[kind](seed))
    try:
        made.go()
    except Exception as error:
        notes = "\n".join(made.notes[-30:])
        text = f"{kind}, seed {seed}: {type(error).__name__}: {error}\n{notes}"
        raise AssertionError(text) from error
    return made
