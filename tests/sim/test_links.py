"""Links over a network that is cut, stalls and breaks, between nodes that die and stand still.

The real metad.cluster.link and view file.  Each request is carried out at most once, by the node
that was asked and under the epoch that it was asked under; an answer is believed under that epoch
only; each request is answered once; no node goes back to an older epoch, whatever a power cut
leaves; and when all is well again, every node gets answers.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.life_mutants import LINK, OLDER
from tests.sim.mutants import Mutant
from tests.sim.peers import World
from tests.support import power_campaign
from tests.support.sizes import SEED, reached, sized, some

FIRST = (SEED - 1999) * 1_000_000
COUNT = 100  # of CI
JOBS = 2


def run(seed: int) -> World:
    """Two nodes or three.  Raises AssertionError."""
    world = World(seed, 2 + seed % 2)
    try:
        world.go()
    except Exception as error:
        notes = "\n".join(world.sim.notes[-20:])
        raise AssertionError(f"seed {seed}: {error}\n{notes}") from error
    return world


def campaign(seeds: range) -> int:
    found = Counter(type(told[0].answer).__name__ for seed in seeds for told in answers(seed))
    assert len(found) >= 3, found  # answered, failed, another epoch
    return found.total()


def answers(seed: int) -> list:
    return list(run(seed).told.values())


def test_whatever_the_network_does_requests_keep_to_their_epoch() -> None:
    count = sized(10, COUNT)
    seeds = range(FIRST, FIRST + count)
    asked = power_campaign.spread(lambda job: campaign(seeds[job::JOBS]), JOBS)
    reached("cluster: links over a broken network: seeds", count)
    reached("cluster: links over a broken network: requests", asked)


def test_a_seed_is_the_same_run_each_time() -> None:
    one, other = run(3), run(3)
    assert one.sim.notes == other.sim.notes
    assert one.done == other.done


MUTANTS = [
    Mutant("a request of another epoch is served", (
        (LINK + "_take_request", OLDER, "if False:"),
    ), 1),
    Mutant("an answer counts in a later epoch", (
        (LINK + "_finish",
         "waiting.epoch == epoch == self._node.current_view().epoch", "epoch is not None"),
    ), 1),
    Mutant("a late answer is told again", (
        ("metad.cluster.asking:Asking.tell",
         "done, waiting.done = waiting.done, None", "done = waiting.done"),
    )),
    Mutant("requests of a link that is lost are forgotten", (
        (LINK + "_end", "self._asking.fail_all(reason)", "pass"),
    ), 49),
    Mutant("a view is used before it is synced", (
        ("metad.system.osio:write_file", "osio.fsync(fd)", "pass"),
    )),
    Mutant("a view is used before its name is synced", (
        ("metad.system.osio:write_file",
         'osio.fsync_directory(os.path.dirname(path) or ".")', "pass"),
    ), 1),
    Mutant("a link that stood still is read", (
        (LINK + "_has_stood_still", "if still <= limits.CLUSTER_STOOD_STILL:", "if True:"),
    ), 3),
]  # fmt: skip


@pytest.mark.parametrize("mutant", some(MUTANTS), ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_links_that_lack_a_rule_are_caught(mutant: Mutant) -> None:
    verdict = mutant.verdict(range(COUNT), run)
    assert verdict.startswith("caught by seed"), verdict
    reached("cluster: links, seeded bugs: caught", 1)
