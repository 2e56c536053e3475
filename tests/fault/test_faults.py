"""Reliability rows 4 to 7: every call to the operating system fails once, or permanently.

Whatever fails, and whenever: each message gets one answer, all acknowledged mail exists (now, after
a restart, after a power cut), and no file whose sync failed is synced or trusted again.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.errors import MetadError
from tests.support import power_campaign
from tests.support.filter_kit import FilterWorld
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, FakeClock, Faults, KitOsio
from tests.support.power_kit import Disk
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit

KINDS = ("open", "pread", "write", "sync", "dir-sync", "allocate", "rename", "unlink")


def run(kit: StoreKit, seed: int) -> None:
    """Two lives with log changes, deletions, group commits.  A life that cannot start is
    skipped."""
    rng = random.Random(seed)
    for end in (kit.crash, kit.stop):
        try:
            kit.start(2)
        except (OSError, MetadError):
            kit.crash()
            continue
        kit.eager = rng.random() < 0.5
        for _ in range(12):
            mixed(kit, rng)
        end()


def mixed(kit: StoreKit, rng: random.Random) -> None:
    sent = []
    slot = rng.randrange(2)
    if rng.random() < 0.3 and (listing := kit.listing(1)):
        ids = [each for each, _ in rng.sample(listing, min(len(listing), 2))]
        sent.append(kit.submit_deletion(1, ids, slot))
    else:
        for boxes in [[1, rng.randrange(2, 4)] for _ in range(rng.choice([1, 1, 3]))]:
            sent += [kit.submit(boxes, rng.randbytes(1800), slot)]
    kit.run()
    assert all(each.answered for each in sent)


@pytest.fixture
def data() -> Iterator[Path]:
    made = power_campaign.scratch()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def judge() -> Iterator[power_campaign.Judge]:
    made = power_campaign.Judge()
    yield made
    made.close()


def attempt(
    data: Path,
    faults: Faults,
    judge: power_campaign.Judge,
    name: str,
    shape: power_campaign.Shape = None,
) -> KitOsio:
    """One run with its faults, then the checks."""
    shutil.rmtree(data, ignore_errors=True)
    osio = KitOsio(str(data / "logs"), record=True, faults=faults, clock=FakeClock())
    with power_campaign.blame(name), StoreKit(data, osio, size=power_campaign.SIZE) as kit:
        kit.shape = shape
        run(kit, SEED)
        assert not osio.retried, f"synced again after a failure: {osio.retried}"
        osio.faults = None
        for removed in (False, True):
            kit.crash()
            if removed:
                kit.drop_index()
            kit.start(1)
            kit.check()
            assert kit.put([1], b"and on it goes").acked
            kit.check()
    with power_campaign.blame(f"{name}, then a power cut"):
        cut(osio, str(data / "logs"), judge)
    return osio


def cut(osio: KitOsio, place: str, judge: power_campaign.Judge) -> None:
    """The power fails at the end of the run: pending writes reach the disk not at all, completely,
    or partly."""
    disk, ledger = Disk(), Ledger()
    for op in osio.ops:
        if op.kind == "note":
            ledger.apply(op.data)
        else:
            disk.apply(op)
    rng = random.Random(SEED)
    for mode in ("none", "half"):
        judge.judge(disk.state(rng, mode), place, ledger)


def ordinals(data: Path, kind: str, shape: power_campaign.Shape = None, few: int = 8) -> range:
    """All ordinals of a kind of call in this run; at a small scale only `few` of them."""
    faults = Faults()
    shutil.rmtree(data, ignore_errors=True)
    osio = KitOsio(str(data / "logs"), faults=faults, clock=FakeClock())
    with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
        kit.shape = shape
        run(kit, SEED)
    count = faults.counts[kind]
    step = max(1, count // sized(few, count))
    return range(1 + SEED % step, count + 1, step)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("kind", ["write", "sync", "allocate"])
def test_calls_fail_under_messages_that_a_filter_changed(
    data: Path, judge: power_campaign.Judge, kind: str, persistent: bool
) -> None:
    code = errno.ENOSPC if kind == "allocate" else errno.EIO
    hits = 0
    with FilterWorld() as filtered:
        for ordinal in ordinals(data, kind, filtered.shape, few=3):
            faults = Faults(kind, ordinal, code, persistent)
            attempt(data, faults, judge, f"{kind} {ordinal} filtered", filtered.shape)
            hits += faults.hits
    reached(f"row 5, faults with a filter by ordinal: {kind}", hits)
    assert hits


@pytest.mark.long
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_fails(
    data: Path, judge: power_campaign.Judge, kind: str, persistent: bool
) -> None:
    code = errno.ENOSPC if kind in ("allocate", "dir-sync") else errno.EIO
    hits = 0
    for ordinal in ordinals(data, kind):
        faults = Faults(kind, ordinal, code, persistent)
        attempt(data, faults, judge, f"{kind} {ordinal} seed {SEED}")
        hits += faults.hits
    reached(f"row 5, faults by ordinal: {kind}", hits)
    assert hits or kind == "unlink"  # nothing is unlinked in a run without faults


@pytest.mark.long
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("error", [0, errno.ENOSPC, errno.EDQUOT])
def test_every_write_is_short_or_finds_no_space(
    data: Path, judge: power_campaign.Judge, error: int, persistent: bool
) -> None:
    for ordinal in ordinals(data, "write"):
        faults = Faults("write", ordinal, error, persistent, short=not error)
        attempt(data, faults, judge, f"write {ordinal} error {error} seed {SEED}")
        assert faults.hits
        reached("row 5, faults by ordinal: short writes and no space", 1)


def test_a_failed_sync_is_the_last_of_its_file(data: Path) -> None:
    """Row 6, seen from the kernel: no acknowledgement, no second sync, no octet more."""
    for ordinal in range(1, 40, max(1, 4 // sized(1, 4))):
        shutil.rmtree(data, ignore_errors=True)
        osio = KitOsio(str(data / "logs"), record=True, clock=FakeClock())
        with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
            kit.start(1)
            osio.faults = Faults("sync", ordinal)
            rng = random.Random(ordinal)
            for _ in range(25):
                mixed_one(kit, rng)
            assert osio.faults.hits == 1
            path = osio.faults.hit_paths[0]
            at = next(n for n, op in enumerate(osio.ops) if op.kind == "bad-sync")
            later = [op.kind for op in osio.ops[at + 1 :] if op.path == path]
            # A log that could not be made is removed; the next with its name is a different file.
            assert later[:1] in ([], ["unlink"])
            kit.check()


def mixed_one(kit: StoreKit, rng: random.Random) -> None:
    sent = kit.submit([1, 2], rng.randbytes(1500))
    kit.run()
    assert sent.answered


def test_with_a_full_disk_the_mail_is_served_and_refused(data: Path) -> None:
    """Row 7: no space for a new log, but later there is."""
    osio = KitOsio(str(data / "logs"), clock=FakeClock())
    with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
        kit.start(1)
        sent = [kit.put([1], b"x" * 1500) for _ in range(5)]
        osio.faults = Faults("allocate", 1, errno.ENOSPC, persistent=True)
        sent += [kit.put([1], b"y" * 1500) for _ in range(30)]
        refused = [each for each in sent if each.error is not None]
        assert refused
        assert all(each.error.smtp.code == 452 for each in refused)  # type: ignore[union-attr]
        assert kit.check() == len(sent) - len(refused)
        osio.faults = None
        assert kit.put([1], b"z").acked
        kit.check()
        kit.crash()
        kit.drop_index()
        recovery = kit.recover()
        assert recovery.damaged == 0
        kit.open_index()
        kit.check()


def test_a_disk_that_is_full_now_and_then(data: Path) -> None:
    osio = KitOsio(str(data / "logs"), clock=FakeClock())
    rng = random.Random(SEED)
    with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
        kit.start(2)
        for round_ in range(20):
            osio.faults = (
                Faults(rng.choice(["allocate", "write"]), 1, errno.ENOSPC, persistent=True)
                if round_ % 2
                else None
            )
            for _ in range(5):
                mixed(kit, rng)
        osio.faults = None
        assert kit.put([1], b"z").acked
        kit.check()
        assert len(list(kit.log_files())) < 60
