"""The protocol's rules as a model: no random walk breaks a promise, and without a rule one does."""

from __future__ import annotations

from argparse import Namespace

import pytest

from tests.cluster.cluster_model import MUTANTS, Walk
from tests.support import power_campaign
from tests.support.sizes import SEED, reached, sized

FIRST = (SEED - 1999) * 1_000_000
WALKS = 300  # of CI, and as many with settled homes: 14 s of CPU
JOBS = 2
# The first walk that catches it.
CAUGHT = {
    "no-epoch": 12,
    "answer-epoch": 162,
    "one-copy": 0,
    "entering-unwritten": 309,
    "one-missing-more": 1,
    "unhealed-uncounted": 1,
    "lone-lease": 162,
    "lone-entering": 58,
    "own-tombstones": 0,
    "omit-at-once": 2034,
    "delete-on-one": 1,
    "copy-over-tombstone": 0,
    "absent-unleased": 7,
    "enter-one-step": 12,
    "enter-unadopted": 58,
    "enter-no-tombstones": 36,
    "enter-no-copies": 63,
    "heal-no-walk": 2,
    "heal-no-tombstones": 4,
    "forget-absent": 0,
    "forget-soon": 60,
    "trim-at-once": 113,
    "trim-any": 0,
    "trim-deletes": 0,
    "remove-unhealed": 18,
    "remove-leased": 2,
    "read-raised-early": 73,
    "settled-no-note": 1109,
    "settled-list-around": 181,
    "settled-adopt-bound": 108,
}
# Not by the first 1,500 walks, with settled homes 900.
NOT_CAUGHT = {
    "two-epochs",
    "enter-exchange-first",
    "heal-unadopted",
    "drain-counted",
    "write-lowered-early",
    "settled-forever",
    "settled-no-promise",
    "settled-delete-around",
}


def options(*, settled: bool = False) -> Namespace:
    return Namespace(nodes=0, steps=500, settled=settled)


def walk(seeds: range, *, settled: bool) -> int:
    """Answers that were judged."""
    judged = 0
    for seed in seeds:
        one = Walk(seed, options(settled=settled), "")
        error, world = one.run(one.steps)
        assert not error, f"seed {seed}, settled={settled}: {error}"
        judged += sum(world.counts[what] for what in ("250", "451", "listed", "-ERR", "+OK"))
    return judged


@pytest.mark.slow
@pytest.mark.parametrize("settled", [False, True], ids=["every-member-asked", "settled-homes"])
def test_no_walk_breaks_a_promise(settled: bool) -> None:
    count = sized(20, WALKS)
    seeds = range(FIRST, FIRST + count)
    judged = power_campaign.spread(lambda job: walk(seeds[job::JOBS], settled=settled), JOBS)
    reached("cluster model: walks", count)
    reached("cluster model: answers judged", judged)


@pytest.mark.parametrize("mutant", CAUGHT)
def test_a_protocol_that_lacks_a_rule_is_caught(mutant: str) -> None:
    one = Walk(CAUGHT[mutant], options(), mutant)
    assert one.run(one.steps)[0], MUTANTS[mutant]
    reached("cluster model: mutants caught", 1)


def test_each_mutant_is_caught_or_known_not_to_be() -> None:
    assert CAUGHT.keys() | NOT_CAUGHT == MUTANTS.keys()
    assert not CAUGHT.keys() & NOT_CAUGHT
