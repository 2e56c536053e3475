"""Power cuts while the collector works: the campaign of this directory, with collections and
expiring mail.

It covers what kill -9 cannot show: a log freed before its survivors are durable, a deletion dropped
before the header that says "free".
"""

from __future__ import annotations

import dataclasses
import errno
import random
import shutil
from pathlib import Path

import pytest

from metad.store.gc.collector import Collector, NotCollectableError
from metad.store.gc.expiry import Due, Expiry
from metad.store.ids import time_of
from metad.store.log.header import log_path
from metad.store.log_table import LogState
from metad.store.mailbox_locks import MailboxLocks
from metad.store.recovery.hub import Recovery
from tests.support import power_campaign
from tests.support.agreement import assert_agree, assert_rebuild_is_same
from tests.support.collector_kit import ROW, collect, fill_log, make_collector, sealed
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, FakeClock, Faults, KitOsio, Op
from tests.support.power_kit import MODES, Disk
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit


def record(seed: int, turns: int = 2, rounds: int = 4) -> tuple[list[Op], str]:
    """Mail, deletions and collections over several lives of the hub.  Returns the directory too."""
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


def live_and_agree(seed: int) -> int:
    """Lives of a hub with collections and expiry; after each, logs, index and fsck agree."""
    rng = random.Random(seed)
    data = power_campaign.scratch()
    try:
        with StoreKit(data, KitOsio(clock=FakeClock()), size=power_campaign.SIZE) as kit:
            kit.eager = False
            for turn in range(3):
                kit.start(rng.choice([1, 2]))
                collector = make_collector(kit)
                for _ in range(4):
                    power_campaign.work(kit, rng, 10)
                    kit.osio.faults = None
                    empty_one(kit, collector, rng)
                    expire_some(kit, collector, rng)
                rng.choice([kit.crash, collector.close])()
                kit.crash()
                with power_campaign.blame(f"seed {seed}, life {turn}"):
                    kit.recover()
                    assert_agree(kit)
                    assert_rebuild_is_same(kit)
        return 3
    finally:
        shutil.rmtree(data)


def empty_one(kit: StoreKit, collector, rng: random.Random) -> None:
    """Collect a sealed log, with deletions between the steps."""
    kit.background()
    sealed = [row.number for row in kit.table.rows() if row.state == LogState.SEALED]
    for number in rng.sample(sealed, min(2, len(sealed))):
        if rng.random() < 0.2:  # especially when it is freed
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
    """The older part of each mailbox is deleted now and then."""
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
    """Check about `states` states of the run `seed`."""
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


@pytest.mark.long
def test_no_power_cut_during_a_collection_loses_or_revives_mail() -> None:
    runs = sized(1, 12)
    states = power_campaign.spread(lambda job: run(SEED + job * 10_000, runs, 150), 2)
    reached("row 1, power cut while collecting: states recovered and judged", states)
    assert states >= 2 * runs * 100


@pytest.mark.long
def test_after_every_life_logs_index_and_fsck_agree() -> None:
    """No copy in a log is unknown to the index, and a rebuild finds what there was."""
    count = sized(6, 60)
    lives = sum(live_and_agree(SEED + number) for number in range(count))
    reached("row 1, lives after which logs, index and fsck agree", lives)
    assert lives == 3 * count


def test_the_runs_collect_and_free_logs() -> None:
    """Otherwise the campaign would prove nothing."""
    freed = 0
    for seed in range(SEED, SEED + 4):
        ops, _ = record(seed)
        freed += sum(op.kind == "write" and op.offset == 0 and op.data[10] == 2 for op in ops)
    assert freed > 8


def leave_survivors_unsynced(kit: StoreKit) -> int:
    """A collector died when the sync of survivors had failed, and no log can say where they end.
    The log that has their mail."""
    kit.delete(1, fill_log(kit)[1:])
    first = sealed(kit)
    kit.delete(1, fill_log(kit)[1:])
    (second,) = set(sealed(kit)) - set(first)
    collector = make_collector(kit)
    collect(collector, first)
    collector = make_dying(kit, collector)
    with pytest.raises(OSError, match="error"):
        collect(collector, [second])
    return second


def recover_without_a_log(kit: StoreKit, dead: int | None = None) -> None:
    """A recovery on a full disk: of the whole store, or of what one process had."""
    kit.osio.faults = Faults("allocate", 1, errno.ENOSPC, persistent=True)
    try:
        if dead is None:
            kit.recover()
        else:
            Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, dead)
    finally:
        kit.osio.faults = None


def make_dying(kit: StoreKit, collector: Collector) -> Collector:
    """The same collector; the disk dies with its next copies."""

    def failpoint(name: str) -> None:
        if name == "copying":
            kit.osio.faults = Faults("sync", 1, dead=True)

    return Collector(dataclasses.replace(collector._tools, failpoint=failpoint))


def test_survivors_that_may_be_unsynced_free_no_log() -> None:
    """Regression: their copies were readable in the page cache; a collection took them for live
    ones and freed the log with the mail, and a power cut destroyed the copies."""
    data = power_campaign.scratch()
    judge = power_campaign.Judge()
    try:
        osio = KitOsio(record=True, clock=FakeClock(), watch=str(data / "logs"))
        with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
            kit.start()
            number = leave_survivors_unsynced(kit)
            kit.crash()
            recover_without_a_log(kit)
            kit.open()
            collect(make_collector(kit), [number])
            kit.check()
        disk, ledger = Disk(), Ledger()
        for op in osio.ops:
            if op.kind == "note":
                ledger.apply(op.data)
            else:
                disk.apply(op)
        for mode in ("none", "all"):
            judge.judge(disk.state(random.Random(1), mode), osio.watch, ledger)
    finally:
        judge.close()
        shutil.rmtree(data)


@pytest.mark.parametrize("when", ["start", "beside a living hub"])
def test_survivors_whose_log_cannot_be_ended_are_left_to_the_next_recovery(
    tmp_path: Path, when: str
) -> None:
    """Nothing of them is entered, no deletion record is dropped, and the rest is served."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.osio.watch = kit.store.logs
        kit.start()
        number = leave_survivors_unsynced(kit)
        (survivors,) = owned(kit)
        places = {each: kit.index.places(each) for each, _ in kit.listing(1)}
        kit.crash()
        kit.osio.unwritable.add(log_path(kit.store.logs, survivors))
        if when == "start":
            recover_without_a_log(kit)
            assert kit.table.row(survivors).state == LogState.ACTIVE
        else:
            with pytest.raises(OSError, match="error"):
                recover_without_a_log(kit, ROW)
            assert owned(kit) == [survivors]
        kit.osio.unwritable.clear()
        kit.open()
        assert {each: kit.index.places(each) for each, _ in kit.listing(1)} == places
        if when == "start":
            collect(make_collector(kit), [number])
        kit.check()
        kit.crash()
        kit.start()
        kit.check()
        assert kit.table.row(survivors).state == LogState.SEALED


def owned(kit: StoreKit) -> list[int]:
    """The dead collector's logs of survivors."""
    rows = kit.table.owned_by(ROW)
    return [row.number for row in rows if row.generation and row.state == LogState.ACTIVE]
