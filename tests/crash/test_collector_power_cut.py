"""Power cuts while the collector works: the campaign of this directory, with collections in it
and mail that expires.

What kill -9 cannot show: a log freed before its survivors are durable, a deletion dropped before
the header that says "free".
"""

from __future__ import annotations

import random
import shutil

from metad.store.gc.collector import NotCollectableError
from metad.store.gc.expiry import Due, Expiry
from metad.store.ids import time_of
from metad.store.log_table import State
from metad.store.mailbox_locks import MailboxLocks
from tests.support import power_campaign
from tests.support.collector_kit import make_collector
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, FakeClock, Faults, KitOsio, Op
from tests.support.power_kit import MODES
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit


def record(seed: int, turns: int = 2, rounds: int = 4) -> tuple[list[Op], str]:
    """Mail, deletions and collections over some lives of the hub, and the directory."""
    rng = random.Random(seed)
    data = power_campaign.scratch()
    try:
        osio = KitOsio(record=True, clock=FakeClock(), watch=str(data / "logs"))
        with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
            kit.eager = False
            for _ in range(turns):
                kit.start(rng.choice([1, 2]))
                collector = make_collector(kit)
                for _ in range(rounds):
                    power_campaign.work(kit, rng, 10)
                    kit.osio.faults = None
                    empty_one(kit, collector, rng)
                    expire_some(kit, collector, rng)
                rng.choice([kit.crash, collector.close])()
                kit.crash()
        return osio.ops, str(data / "logs")
    finally:
        shutil.rmtree(data)


def empty_one(kit: StoreKit, collector, rng: random.Random) -> None:
    """Collect a sealed log, with deletions between the steps."""
    kit.background()
    sealed = [row.number for row in kit.table.rows() if row.state == State.SEALED]
    for number in rng.sample(sealed, min(2, len(sealed))):
        if rng.random() < 0.2:  # when it is freed, above all
            kit.osio.faults = Faults("sync", rng.choice([1, 1, 2]), only=f"{number:08d}")
        try:
            for _ in collector.collect(number):
                box = rng.randrange(3)
                listing = kit.listing(box)
                if listing and rng.random() < 0.5:
                    kit.delete(box, [rng.choice(listing)[0]])
        except NotCollectableError:
            continue
        finally:
            kit.osio.faults = None


def expire_some(kit: StoreKit, collector, rng: random.Random) -> None:
    """The older part of each mailbox goes, now and then."""
    due: list[Due] = []
    pairs: list[tuple[int, bytes]] = []
    for box in range(3):
        ids = [each for each, _ in kit.listing(box)]
        if ids and rng.random() < 0.4:
            due.append(Due(box, time_of(rng.choice(ids))))
            pairs += [(box, each) for each in ids if time_of(each) < due[-1].before]
    kit._note("deleting", pairs)
    expiry = Expiry(collector._tools, MailboxLocks(kit.osio, kit.store.locks))
    for _ in expiry.steps(due):  # in one group or several: a cut may leave some of the pairs
        pass
    kit._note("deleted", pairs)


def cut(judge: power_campaign.Judge, seed: int, states: int) -> None:
    """Judge about `states` states of the run `seed`."""
    ops, old = record(seed)
    rng = random.Random(seed + 1)
    count = sum(1 for _ in power_campaign.boundaries(ops, {}, Ledger()))
    due = 0.0
    for at, disk, ledger in power_campaign.boundaries(ops, {}, Ledger()):
        due += min(1.0, states / count) if disk.settled else 2 * states / count
        while due >= 1:
            due -= 1
            mode = rng.choice(MODES)
            with power_campaign.blame(f"seed {seed}, boundary {at} ({ops[at].kind}), mode {mode}"):
                judge.judge(disk.state(rng, mode), old, ledger)


def run(seed: int, runs: int, states: int) -> int:
    judge = power_campaign.Judge()
    try:
        for number in range(runs):
            cut(judge, seed + number, states)
        return judge.states
    finally:
        judge.close()


def test_no_power_cut_during_a_collection_loses_or_revives_mail() -> None:
    runs = sized(1, 12)
    states = power_campaign.spread(lambda job: run(SEED + job * 10_000, runs, 150), 2)
    reached("row 1, power cut while collecting: states recovered and judged", states)
    assert states >= 2 * runs * 100


def test_the_runs_collect_and_free_logs() -> None:
    """Or the campaign would prove nothing."""
    freed = 0
    for seed in range(SEED, SEED + 4):
        ops, _ = record(seed)
        freed += sum(op.kind == "write" and op.offset == 0 and op.data[10] == 2 for op in ops)
    assert freed > 8
