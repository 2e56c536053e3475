"""kill -9 of the collector before and after each of its steps, and at each of its writes.

Afterwards, with the index that it left and without one: nothing is lost, nothing returns, counts
are right; and the next collector finishes the work with the same result.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metad.store.index import relocation
from metad.store.index.rows import unpack_row
from metad.store.log_table import LogState
from metad.store.recovery.hub import Recovery
from tests.support.agreement import assert_agree
from tests.support.collector_kit import (
    ROW,
    collect,
    collect_all,
    fill_log,
    make_collector,
    sealed,
)
from tests.support.kill_kit import Killed, killed, scratch_directory
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, KitOsio, scaled
from tests.support.sizes import reached
from tests.support.store_kit import StoreKit

pytestmark = pytest.mark.slow

FAILPOINTS = (
    "taken",
    "copying",
    "copied",
    "moved",
    "confirming",
    "confirmed",
    "freeing",
    "freed",
    "dropped",
    "forgotten",
    "released",
)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with scratch_directory() as made:
        yield made


@pytest.fixture(scope="module")
def template(scratch: Path) -> tuple[Path, Ledger]:
    """A store with everything: copies, shared mail, deletions near and far."""
    rng = random.Random(SEED)
    data = scratch / "template"
    with StoreKit(data) as kit:
        kit.start(2)
        for slot in (0, 1, 0):
            fill_log(kit, 1 + slot, writer=slot)
            for _ in range(6):
                kit.put(rng.sample([1, 2, 3], 2), rng.randbytes(rng.choice([10, 900])), slot)
            for box in (1, 2, 3):
                ids = [each for each, _ in kit.listing(box)]
                kit.delete(box, rng.sample(ids, len(ids) // 2), slot)
        assert kit.check() > 10
        return data, kit.ledger


def run(data: Path, osio: Killed, failpoint: Callable[[str], None] = lambda name: None) -> None:
    """A whole life of a hub that only collects: twice, so that survivors are collected too.

    The youngest first: the messages of their deletion records are in older logs.
    """
    kit = StoreKit(data, osio)
    kit.recover()
    kit.open_index()
    osio.armed = True
    for _ in range(2):
        collector = make_collector(kit, failpoint)
        list(collector.tidy())
        collect_all(kit, collector, youngest_first=True)
        collector.close()
    osio.armed = False


def kill_at(name: str, ordinal: int) -> Callable[[Path], None]:
    seen: Counter[str] = Counter()

    def failpoint(at: str) -> None:
        seen[at] += 1
        if at == name and seen[at] == ordinal:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda data: run(data, Killed(), failpoint)


def judge(data: Path, ledger: Ledger, *, rebuilt: bool) -> None:
    """Recover what is in `data`; then collect to the end and look again."""
    with StoreKit(data) as kit:
        kit.ledger = ledger.copy()
        if rebuilt:
            kit.drop_index()
        kit.start()
        assert kit.check() > 10
        collector = make_collector(kit)
        list(collector.tidy())
        assert LogState.COLLECTING not in [row.state for row in kit.table.rows()]
        collect_all(kit, collector)
        kit.check()
        collector.close()
        if not rebuilt:
            kit.put([1, 2], b"a new life")
        kit.crash()
        kit.drop_index()
        kit.start()
        kit.check()


def try_kill(template: tuple[Path, Ledger], scratch: Path, work: Callable[[Path], None]) -> bool:
    """False if the work was done before the moment of the kill."""
    origin, ledger = template
    data = scratch / "data"
    kept = scratch / "kept"
    shutil.copytree(origin, data)
    try:
        struck = killed(data, work)
        shutil.copytree(data, kept)
        judge(data, ledger, rebuilt=False)
        judge(kept, ledger, rebuilt=True)
        return struck
    finally:
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)


@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_at_a_failpoint(name, template, scratch) -> None:
    ordinal = 1
    assert try_kill(template, scratch, kill_at(name, ordinal)), f"{name} was never reached"
    rng = random.Random(SEED)
    for _ in range(scaled(3)):
        reached(f"row 4, killed at a failpoint of the collector: {name}", 1)
        ordinal += rng.randrange(1, 4)
        if not try_kill(template, scratch, kill_at(name, ordinal)):
            return


@pytest.mark.long
def test_killed_at_any_write(template, scratch) -> None:
    """A few ordinals here, all at a larger scale."""
    rng = random.Random(SEED)
    most = count_writes(template, scratch)
    assert most > 20
    for ordinal in sorted(rng.sample(range(1, most + 1), min(most, scaled(20)))):
        assert try_kill(template, scratch, lambda data, at=ordinal: run(data, Killed(at)))  # type: ignore[misc]
        reached("row 4, killed at a write of the collector", 1)


def count_writes(template: tuple[Path, Ledger], scratch: Path) -> int:
    data = scratch / "counted"
    shutil.copytree(template[0], data)
    osio = Killed()
    run(data, osio)
    osio.close_all()
    shutil.rmtree(data)
    return osio.count


def test_the_template_has_something_of_everything(template, scratch) -> None:
    """Otherwise the kills prove nothing: survivors, kept deletions, mail in two generations."""
    data = scratch / "looked at"
    shutil.copytree(template[0], data)
    with StoreKit(data) as kit:
        kit.ledger = template[1].copy()
        kit.start()
        assert len(sealed(kit)) >= 4
        collector = make_collector(kit)
        collect_all(kit, collector, youngest_first=True)
        assert collector.figures.moved > 10
        assert collector.figures.deletions > 1
        assert collector.figures.logs >= 4
    shutil.rmtree(data)


@pytest.mark.parametrize("who", ["recovery of the hub", "recovery of the process", "tidying"])
def test_what_a_killed_collector_left_is_forgotten_without_reading_all_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Regression: a start read every row of the index for it, 170 seconds for 100 million."""
    with StoreKit(tmp_path, KitOsio()) as kit:
        kit.start()
        ids = fill_log(kit)
        kit.delete(1, ids[::2])
        fill_log(kit, mailbox=2)
        (victim, *_) = sealed(kit)

        def stop(name: str) -> None:
            if name == "freed":
                raise InterruptedError

        collector = make_collector(kit, stop)
        with pytest.raises(InterruptedError):
            collect(collector, [victim])
        monkeypatch.setattr(relocation, "ids_in", None)
        if who == "tidying":
            for _ in make_collector(kit).tidy():
                pass
        else:
            kit.crash()
            if who == "recovery of the hub":
                kit.recover()
            else:
                Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, ROW)
            kit.open_index()
        assert kit.table.row(victim).state == LogState.FREE
        with kit.index.reading() as txn:
            rows = [bytes(row) for _, row in txn.cursor(kit.index.tables.places)]
        assert rows and not any(relocation.Row(*unpack_row(row)).is_in(victim) for row in rows)
        kit.check()
        kit.crash()
        kit.recover()
        assert_agree(kit)
