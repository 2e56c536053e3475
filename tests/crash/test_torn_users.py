"""Row 22: the power goes while a user is added, changed or removed."""

from __future__ import annotations

import random
import shutil

import pytest

from metad.errors import DataError
from metad.users import passwords
from metad.users.database import UserDatabase
from tests.support import power_campaign, torn_users
from tests.support.osio_kit import SEED
from tests.support.sizes import reached, sized

JOBS = 2
CHANGES = 12


@pytest.fixture(autouse=True)
def quick_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    make = passwords.make
    monkeypatch.setattr(passwords, "make", lambda password, iterations=0: make(password, 10))


def run(seeds: range) -> int:
    """Returns the number of states checked."""
    states = 0
    for seed in seeds:
        base = power_campaign.scratch()
        rng = random.Random(seed)
        try:
            for number, change in enumerate(torn_users.changes(base / "data", seed, CHANGES)):
                for moment in torn_users.MOMENTS:
                    with power_campaign.blame(f"seed {seed}, change {number}, {moment}"):
                        told = torn_users.judge(change, base, change.file(rng, moment))
                        assert bool(told) is (moment == "meta spoiled"), told
                    states += 1
        finally:
            shutil.rmtree(base)
    return states


@pytest.mark.long
def test_a_change_of_users_is_whole_or_did_not_happen() -> None:
    runs = sized(1, 10)
    states = power_campaign.spread(
        lambda job: run(range(SEED + 1000 * job, SEED + 1000 * job + runs)), JOBS
    )
    reached("row 22, a users database cut off at a change: states", states)
    assert states == JOBS * runs * CHANGES * len(torn_users.MOMENTS)


def test_a_spoiled_meta_page_needs_the_repair() -> None:
    """Otherwise the campaign would prove nothing about it: LMDB opens no file with only one meta
    page."""
    base = power_campaign.scratch()
    try:
        *_, change = torn_users.changes(base / "data", 1, 3)
        path = base / "data" / "users" / "data.mdb"
        path.write_bytes(change.file(random.Random(1), "meta spoiled"))
        with pytest.raises(DataError, match="damaged"):
            UserDatabase(base / "data" / "users")
    finally:
        shutil.rmtree(base)
