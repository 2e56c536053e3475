"""Clusters of two to four nodes with etcd: random plans, and lives that a rule is there for.

The real layer, links, view file, steward, store, index, recovery and collector of each node, and a
simulated etcd: nodes are cut off from each other and from etcd, killed, marked absent, healed, come
back, join; etcd is stopped, slow, wiped, restored from an old snapshot.
"""

from __future__ import annotations

import pytest

from tests.sim.cluster_plan import make_plan
from tests.sim.cluster_run import ClusterRun
from tests.sim.life_mutants import MUTANTS, LifeMutant
from tests.sim.lives import LIVES, Life
from tests.support import power_campaign
from tests.support.children import in_child
from tests.support.sizes import SEED, reached, sized

COUNT = 20  # seeds of CI: 20 s of CPU
FIRST = (SEED - 1999) * 1_000_000
JOBS = 2


def run(seed: int) -> ClusterRun:
    """Three nodes or four.  Raises AssertionError with the seed and the last notes."""
    made = ClusterRun(make_plan(seed, 3 + seed % 2, etcd=True))
    try:
        made.go()
    except Exception as error:
        notes = "\n".join(made.notes[-30:])
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{notes}") from error
    return made


def campaign(seeds: range) -> int:
    """How many answers were judged."""
    return sum(sum(run(seed).counts.values()) for seed in seeds)


def test_no_order_of_steps_loses_or_revives_mail_of_nodes_that_come_and_go() -> None:
    count = sized(6, COUNT)
    seeds = range(FIRST, FIRST + count)
    answers = power_campaign.spread(lambda job: campaign(seeds[job::JOBS]), JOBS)
    reached("cluster with etcd in one process: seeds", count)
    reached("cluster with etcd in one process: answers judged", answers)


def test_a_seed_is_the_same_run_each_time() -> None:
    assert run(5).notes == run(5).notes


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_a_life_is_a_legal_one(life: Life) -> None:
    """Without a bug nothing goes wrong in it."""
    life.run()


def catch(mutant: LifeMutant) -> str:
    """Runs in a child, which has the bug."""
    try:
        mutant.apply()
    except LookupError as error:
        return f"the text is not there: {error}"
    try:
        mutant.its_life.run()
    except AssertionError as error:
        return f"caught: {error}"
    return "the life does not show it"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_cluster_that_lacks_a_rule_is_caught(mutant: LifeMutant) -> None:
    verdict = in_child(lambda: catch(mutant))
    assert verdict.startswith("caught"), verdict
    reached("cluster with etcd, seeded bugs: caught", 1)


def test_every_life_catches_a_bug() -> None:
    assert {mutant.life for mutant in MUTANTS} == set(LIVES)
