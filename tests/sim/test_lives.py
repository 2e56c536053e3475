"""Clusters of two to seven nodes with etcd: random plans, and lives that a rule is there for.

The real layer, links, view file, steward, store, index, recovery and collector of each node, and a
simulated etcd: nodes are cut off from each other and from etcd, killed, marked absent, healed, come
back, join; etcd is stopped, slow, wiped, restored from an old snapshot.
"""

from __future__ import annotations

import pytest

from tests.sim.kinds import run_cluster
from tests.sim.life_mutants import MUTANTS, LifeMutant
from tests.sim.lives import LIVES
from tests.sim.mutants import Mutant
from tests.support import power_campaign
from tests.support.children import in_child
from tests.support.sizes import SEED, reached, sized, some

# Seeds of a developer and of CI: there 43, 26, 17 and 17 s of CPU.
COUNTS = {"lives": (3, 66), "old": (1, 20), "five": (1, 10), "seven": (1, 4)}
NODES = {
    "lives": "three or four",
    "old": "three or four with old disks",
    "five": "five",
    "seven": "seven",
}
FIRST = (SEED - 1999) * 1_000_000
OLD_MUTANT_SEEDS = 40  # four of them catch it
JOBS = 2
# What seeds beyond CI's have found, by a soak: of three or four nodes.
FOUND = {
    1857: "a reader handed out the copy of a message that another mailbox has",
    2319: "a machine of the plan joined twice whose disk was lost while it started",
    2374: "a lock was not given back, because the request came to a node of a newer epoch",
    4515: "the judge: etcd and the one node with its last view were lost; its epoch is given again",
    2953: "as 1857, so that a walk did not send it to the node that lacked it",
    6635: "the operator: a node had seen a restoration that the one restored from later had not",
    10226: "a machine of the plan was to join by a member whose view had it already",
    13855: "a refusal was told under an old view; then the only disk that knew of it was lost",
    22128: "a node that entered waited for tombstones of an index that had been rebuilt",
    59878: "a log that was half free, and empty, stayed so: fsck told of a damaged header",
    32096: "the judge: only a lost disk knew what its node had refused while it was cut off",
}


def campaign(kind: str, seeds: range) -> int:
    """How many answers were judged."""
    return sum(sum(run_cluster(kind, seed).counts.values()) for seed in seeds)


@pytest.mark.long
@pytest.mark.parametrize("kind", some(list(COUNTS)))
def test_no_order_of_steps_loses_or_revives_mail_of_nodes_that_come_and_go(kind: str) -> None:
    count = sized(*COUNTS[kind])
    seeds = range(FIRST, FIRST + count)
    answers = power_campaign.spread(lambda job: campaign(kind, seeds[job::JOBS]), JOBS)
    reached(f"cluster with etcd in one process, nodes: {NODES[kind]}: seeds", count)
    reached(f"cluster with etcd in one process, nodes: {NODES[kind]}: answers judged", answers)


@pytest.mark.long
@pytest.mark.parametrize("seed", some(list(FOUND)))
def test_what_a_soak_found_stays_mended(seed: int) -> None:
    run_cluster("lives", seed)


@pytest.mark.long
def test_a_seed_is_the_same_run_each_time() -> None:
    assert run_cluster("lives", 5).notes == run_cluster("lives", 5).notes


@pytest.mark.long
@pytest.mark.parametrize("name", some(list(LIVES)))
def test_a_life_is_a_legal_one(name: str) -> None:
    """Without a bug nothing goes wrong in it."""
    LIVES[name].run()


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


@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name)
def test_a_cluster_that_lacks_a_rule_is_caught(mutant: LifeMutant) -> None:
    verdict = in_child(lambda: catch(mutant))
    assert verdict.startswith("caught"), verdict
    reached("cluster with etcd, seeded bugs: caught", 1)


def test_a_cluster_that_believes_an_old_disk_is_caught_by_a_plan_too() -> None:
    edits = next(one.edits for one in MUTANTS if one.name == "old-disk-serves")
    verdict = Mutant("old-disk-serves", edits, seed=1).verdict(
        range(OLD_MUTANT_SEEDS), lambda seed: run_cluster("old", seed)
    )
    assert verdict.startswith("caught by seed"), verdict


def test_every_life_catches_a_bug() -> None:
    assert {mutant.life for mutant in MUTANTS} == set(LIVES)
