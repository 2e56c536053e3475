"""Two nodes or three, two copies: whole hubs over a network that is cut, stalls and breaks.

The real layer, links, view file, store, index, recovery and collector.  Nodes are killed, lose
their power and stand still, disks fail, indexes refuse, epochs change on either node first.
"""

from __future__ import annotations

import pytest

from tests.sim.cluster_mutants import MUTANTS
from tests.sim.kinds import run_cluster
from tests.sim.mutants import Mutant
from tests.support import power_campaign
from tests.support.sizes import SEED, reached, sized, some

COUNT = 170  # seeds of CI, with those of tests.sim.test_lives 300: 150 s of CPU
OF_THREE = 50
MUTANT_SEEDS = 100
FIRST = (SEED - 1999) * 1_000_000
JOBS = 2


def campaign(seeds: range, kind: str = "two") -> tuple[int, ...]:
    """How often each kind of answer was given."""
    runs = [run_cluster(kind, seed) for seed in seeds]
    counts = [sum(one.counts[kind] for one in runs) for kind in runs[0].counts]
    return tuple(counts)


@pytest.mark.long
def test_no_order_of_steps_loses_or_revives_mail_of_two_nodes() -> None:
    count = sized(4, COUNT)
    seeds = range(FIRST, FIRST + count)
    answers = power_campaign.spread(lambda job: sum(campaign(seeds[job::JOBS])), JOBS)
    reached("cluster of two nodes in one process: seeds", count)
    reached("cluster of two nodes in one process: answers judged", answers)


@pytest.mark.long
def test_no_order_of_steps_loses_or_revives_mail_of_three_nodes() -> None:
    count = sized(2, OF_THREE)
    seeds = range(FIRST, FIRST + count)
    answers = power_campaign.spread(lambda job: sum(campaign(seeds[job::JOBS], "three")), JOBS)
    reached("cluster of three nodes in one process: seeds", count)
    reached("cluster of three nodes in one process: answers judged", answers)


@pytest.mark.long
def test_every_kind_of_answer_is_met() -> None:
    assert all(campaign(range(4)))


def test_a_seed_is_the_same_run_each_time() -> None:
    assert run_cluster("two", 3).notes == run_cluster("two", 3).notes


@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_cluster_that_lacks_a_rule_is_caught(mutant: Mutant) -> None:
    verdict = mutant.verdict(range(MUTANT_SEEDS), lambda seed: run_cluster("two", seed))
    assert verdict.startswith("caught by seed"), verdict
    reached("cluster of two nodes, seeded bugs: caught", 1)
