"""Row 22: the page cache is lost, by a boot, a mount or without notice, and the disk has the index
in pieces."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.support import power_campaign, torn_index
from tests.support.lmdb_disk import MODES
from tests.support.osio_kit import SEED
from tests.support.sizes import reached, sized

JOBS = 2
INSTANCES = {
    "nothing tells": torn_index.BOOT,
    "another boot": "boot-2 3",
    "another mount": "boot-1 7",
}


def run(seeds: range) -> int:
    """Returns the number of states checked."""
    states = 0
    for seed in seeds:
        base = power_campaign.scratch()
        try:
            torn = torn_index.record(base, seed)
            rng = random.Random(seed)
            for mode in MODES:
                name, boot = rng.choice([*INSTANCES.items()])
                with power_campaign.blame(f"seed {seed}, mode {mode}, {name}"):
                    torn.judge(rng, mode, boot)
                states += 1
        finally:
            shutil.rmtree(base)
    return states


@pytest.mark.long
def test_an_index_in_pieces_heals() -> None:
    runs = sized(2, 40)
    states = power_campaign.spread(
        lambda job: run(range(SEED + 1000 * job, SEED + 1000 * job + runs)), JOBS
    )
    reached("row 22, an index that the disk has in pieces: states", states)
    assert states == JOBS * runs * len(MODES)


# Seeds of which a state was believed and served with mail missing: the list of free pages, then
# the tables against each other.
BELIEVED = (3009, 3070, 3028, 3037)


@pytest.mark.long
def test_states_that_were_believed_are_noticed() -> None:
    """Nothing tells that the page cache was lost: only the pages themselves."""
    for seed in BELIEVED:
        base = power_campaign.scratch()
        try:
            torn = torn_index.record(base, seed)
            rng = random.Random(seed)
            for mode in MODES:
                with power_campaign.blame(f"seed {seed}, mode {mode}"):
                    torn.judge(rng, mode, torn_index.BOOT)
        finally:
            shutil.rmtree(base)
