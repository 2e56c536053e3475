"""kill -9 of the collector while mail expires: before and after each step, and at each write.

Afterwards, with the index that it left and without one: mail that was not due is there, counts and
usage are right, and the next scan deletes the rest.
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

from metad.store.gc.expiry import Due, Expiry
from metad.store.ids import time_of
from metad.store.log_table import LogState
from metad.store.mailbox_locks import MailboxLocks
from tests.support.collector_kit import collect, fill_log, make_collector, sealed
from tests.support.kill_kit import Killed, killed, scratch_directory
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, scaled
from tests.support.store_kit import StoreKit

pytestmark = pytest.mark.slow

FAILPOINTS = ("deleting", "copying", "copied", "moved", "expired")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with scratch_directory() as made:
        yield made


Template = tuple[Path, Ledger, list[Due]]


@pytest.fixture(scope="module")
def template(scratch: Path) -> Template:
    """Two mailboxes whose older half is due, and one without an expiry."""
    rng = random.Random(SEED)
    data = scratch / "template"
    with StoreKit(data) as kit:
        kit.start()
        for box in (1, 2):
            fill_log(kit, box, size=100)
            for _ in range(20):
                kit.put(rng.sample([1, 2, 3], 2), rng.randbytes(rng.choice([10, 900])))
            kit.delete(box, [each for each, _ in kit.listing(box)][::3])
        due: list[Due] = []
        for box in (1, 2):
            ids = [each for each, _ in kit.listing(box)]
            due.append(Due(box, time_of(ids[len(ids) // 2])))
            kit.ledger.apply(("deleting", [(box, each) for each in to_go(kit, due[-1])]))
        assert kit.check() > 100
        return data, kit.ledger, due


def to_go(kit: StoreKit, due: Due) -> list[bytes]:
    return [each for each, _ in kit.listing(due.mailbox) if time_of(each) < due.before]


def expire(kit: StoreKit, due: list[Due], failpoint: Callable[[str], None] = lambda _: None) -> int:
    """What a collector's process does: it finishes what its predecessor began, scans and collects.

    Returns the number of deleted messages.
    """
    collector = make_collector(kit, failpoint)
    list(collector.tidy())
    assert LogState.COLLECTING not in [row.state for row in kit.table.rows()]
    locks = MailboxLocks(kit.osio, kit.store.locks)
    expiry = Expiry(collector._tools, locks)
    list(expiry.steps(due))
    collect(collector, sealed(kit))
    collector.close()
    return expiry.figures.messages


def run(
    data: Path, due: list[Due], osio: Killed, failpoint: Callable[[str], None] = lambda name: None
) -> None:
    kit = StoreKit(data, osio)
    kit.recover()
    kit.open_index()
    osio.armed = True
    expire(kit, due, failpoint)
    osio.armed = False


def kill_at(name: str, ordinal: int, due: list[Due]) -> Callable[[Path], None]:
    seen: Counter[str] = Counter()

    def failpoint(at: str) -> None:
        seen[at] += 1
        if at == name and seen[at] == ordinal:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda data: run(data, due, Killed(), failpoint)


def judge(data: Path, ledger: Ledger, due: list[Due], *, rebuilt: bool) -> None:
    with StoreKit(data) as kit:
        kit.ledger = ledger.copy()
        if rebuilt:
            kit.drop_index()
        kit.start()
        kit.check()
        expire(kit, due)
        assert not any(to_go(kit, one) for one in due)
        kit.ledger.apply(("deleted", kit.ledger.deleting))
        kit.check()
        kit.put([1, 2], b"a new life")
        kit.crash()
        kit.drop_index()
        kit.start()
        kit.check()


def try_kill(template: Template, scratch: Path, work: Callable[[Path], None]) -> bool:
    """False if the work was done before the moment of the kill."""
    origin, ledger, due = template
    data, kept = scratch / "data", scratch / "kept"
    shutil.copytree(origin, data)
    try:
        struck = killed(data, work)
        shutil.copytree(data, kept)
        judge(data, ledger, due, rebuilt=False)
        judge(kept, ledger, due, rebuilt=True)
        return struck
    finally:
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)


@pytest.mark.parametrize("name", FAILPOINTS)
def test_killed_at_a_failpoint(name: str, template: Template, scratch: Path) -> None:
    due = template[2]
    assert try_kill(template, scratch, kill_at(name, 1, due)), f"{name} was never reached"
    for ordinal in range(2, 2 + scaled(3)):
        if not try_kill(template, scratch, kill_at(name, ordinal, due)):
            return


@pytest.mark.long
def test_killed_at_any_write(template: Template, scratch: Path) -> None:
    """A few ordinals here, all at a larger scale."""
    rng = random.Random(SEED)
    due = template[2]
    data = scratch / "counted"
    shutil.copytree(template[0], data)
    osio = Killed()
    run(data, due, osio)
    osio.close_all()
    shutil.rmtree(data)
    assert osio.count > 10
    picked = rng.sample(range(1, osio.count + 1), min(osio.count, scaled(12)))
    for ordinal in sorted({1, 2, 3, *picked}):
        assert try_kill(template, scratch, lambda data, at=ordinal: run(data, due, Killed(at)))  # type: ignore[misc]
