"""Reliability row 1: no power cut loses acknowledged mail or brings deleted mail back.

METAD_TEST_SEED selects other states, METAD_TEST_SCALE more of them.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.support import power_campaign
from tests.support.filter_kit import FilterWorld
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, FakeClock, Faults, KitOsio, Op
from tests.support.power_kit import MODES, Disk, lay_out
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit


@pytest.mark.long
def test_no_power_cut_loses_or_revives_mail() -> None:
    jobs = 2
    runs = sized(1, 28)
    states = power_campaign.spread(
        lambda job: power_campaign.run(SEED + job * 10_000, runs, 150), jobs
    )
    reached("row 1, power cut: states recovered and judged", states)
    assert states >= jobs * runs * 140


@pytest.mark.long
def test_no_power_cut_loses_what_a_filter_has_changed() -> None:
    """The same, with messages whose header was changed by a filter."""
    jobs = 2
    runs = sized(1, 12)

    def work(job: int) -> int:
        with FilterWorld() as filtered:
            seed = SEED + 500_000 + job * 10_000
            return power_campaign.run(seed, runs, 100, filtered.shape)

    states = power_campaign.spread(work, jobs)
    reached("row 1, power cut with a filter: states recovered and judged", states)
    assert states >= jobs * runs * 90


def test_a_recorded_run_is_the_same_each_time() -> None:
    one, two = power_campaign.record(7)[0], power_campaign.record(7)[0]
    assert [op[0::2] for op in one if op.kind != "note"] == [
        op[0::2] for op in two if op.kind != "note"
    ]
    kinds = {op.kind for op in one}
    assert kinds >= {"create", "write", "sync", "dir-sync", "rename", "size", "note"}


def test_the_runs_go_through_all_that_the_store_does() -> None:
    """Otherwise the campaign would prove little: seals, new lives, deletions, failed syncs."""
    kinds: set[str] = set()
    notes: set[str] = set()
    reused = 0
    for seed in range(SEED, SEED + 8):
        ops, _ = power_campaign.record(seed)
        kinds |= {op.kind for op in ops}
        notes |= {op.data[0] for op in ops if op.kind == "note"}
        created = {op.path for op in ops if op.kind == "rename"}
        firsts = [op for op in ops if op.kind == "write" and op.offset == 0]
        reused += len([op for op in firsts if op.path in created])
    assert "bad-sync" in kinds
    assert notes == {"sent", "acked", "deleting", "deleted"}
    assert reused > 8


def test_a_refused_message_that_recovery_keeps_is_durable() -> None:
    """After a failed sync the kernel considers the pages clean, and the sync in recovery succeeds
    without writing them.  Recovery must rewrite what it keeps of such a tail."""
    data = power_campaign.scratch()
    judge = power_campaign.Judge()
    try:
        osio = KitOsio(record=True, clock=FakeClock(), watch=str(data / "logs"))
        with StoreKit(data, osio, size=power_campaign.SIZE) as kit:
            kit.start()
            assert kit.put([1], b"good").acked
            osio.faults = Faults("sync", 1, dead=True)
            assert kit.put([1], b"refused").error is not None
            kit.crash()  # no other log could record where that one ends
            osio.faults = None
            kit.recover()
            kit.open_index()
            assert len(kit.listing(1)) == 2
        disk, ledger = Disk(), Ledger()
        for op in osio.ops:
            if op.kind == "note":
                ledger.apply(op.data)
            else:
                disk.apply(op)
        judge.judge(disk.state(random.Random(1), "none"), osio.watch, ledger)
    finally:
        judge.close()
        shutil.rmtree(data)


# -- the model of the disk itself


def ops(*kinds: tuple[object, ...]) -> list[Op]:
    made = []
    for kind, *rest in kinds:
        if kind == "write":
            offset, data = rest
            made.append(Op("write", "f", offset, data))  # type: ignore[arg-type]
        elif kind in ("rename",):
            made.append(Op("rename", "g", 0, "f"))
        elif kind == "dir-sync":
            made.append(Op("dir-sync", ""))
        else:
            made.append(Op(str(kind), "f", *rest))  # type: ignore[arg-type]
    return made


def states(changes: list[Op], count: int = 300) -> list[dict[str, bytes]]:
    disk = Disk({})
    for op in changes:
        disk.apply(op)
    rng = random.Random(1)
    return [disk.state(rng, mode) for _ in range(count // len(MODES)) for mode in MODES]


MADE = [("create",), ("dir-sync",)]
A, B = b"a" * 512, b"b" * 512


def test_what_was_synced_is_there() -> None:
    for state in states(ops(*MADE, ("write", 0, A + B), ("sync",))):
        assert state == {"f": A + B}


def test_what_was_not_synced_may_be_there_in_any_part() -> None:
    seen = {state["f"] for state in states(ops(*MADE, ("write", 0, A + B)))}
    assert {b"", A, A + B, bytes(512) + B} <= seen
    assert any(data[:512] not in (A, bytes(512)) for data in seen if data)  # trash


def test_a_sync_covers_only_what_came_before_it() -> None:
    changes = ops(*MADE, ("write", 0, A), ("sync",), ("write", 512, B))
    seen = {state["f"] for state in states(changes)}
    assert all(data[:512] == A for data in seen)
    assert {A, A + B} <= seen


def test_a_name_is_there_only_after_its_directory_was_synced() -> None:
    changes = ops(("create",), ("write", 0, A), ("sync",))
    seen = [state.get("f") for state in states(changes)]
    assert None in seen
    assert A in seen
    assert set(seen) == {None, A}


def test_a_rename_is_whole_or_not_at_all() -> None:
    changes = ops(*MADE, ("write", 0, A), ("sync",), ("rename",))
    seen = [tuple(sorted(state)) for state in states(changes)]
    assert set(seen) == {("f",), ("g",)}
    after = ops(*MADE, ("write", 0, A), ("sync",), ("rename",), ("dir-sync",))
    assert all(state == {"g": A} for state in states(after))


def test_a_removed_name_may_come_back_until_its_directory_was_synced() -> None:
    changes = ops(*MADE, ("write", 0, A), ("sync",), ("unlink",))
    assert {tuple(state) for state in states(changes)} == {("f",), ()}


def test_what_a_failed_sync_left_is_undecided_for_ever() -> None:
    changes = ops(*MADE, ("write", 0, A), ("sync",), ("write", 0, B), ("bad-sync",), ("sync",))
    seen = {state["f"] for state in states(changes)}
    assert {A, B} <= seen


def test_what_is_written_again_after_a_failed_sync_is_decided() -> None:
    changes = ops(*MADE, ("write", 0, A), ("bad-sync",), ("write", 0, B), ("sync",))
    assert {state["f"] for state in states(changes)} == {B}


def test_a_state_is_laid_out_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    lay_out({"/somewhere/1.log": A, "/somewhere/2.log": b""}, "/somewhere", str(tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"1.log": A, "2.log": b""}
