"""Small files that the disk cannot read, write or sync, over restarts.

Each life does what a hub does at a start, in the same order, with everything but LMDB through one
`Osio`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from metad import limits
from metad.errors import OsError
from metad.store import identity, machine
from metad.store.backup.backup import Backup, restore
from metad.store.ballast import Ballast
from metad.store.fsck.fsck import Fsck, Plan
from metad.store.gc.copy import Step
from metad.store.ids import HubClock
from metad.store.index import state as index_state
from metad.store.log_table import LogState, LogTable
from metad.store.lost_identity import open_at_start
from metad.users import passwords
from metad.users.database import UserDatabase
from metad.workers.recovery import RecoverySetup, recover_hub
from tests.support import power_campaign
from tests.support.agreement import assert_rebuild_is_same
from tests.support.collector_kit import fill_log, make_collector, sealed
from tests.support.osio_kit import BLOCK, FakeClock, Faults, KitOsio
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit, fresh_area

FILES = (
    "store.json", "index/state", "index/suspect", "numbers", "quarantine/old.damaged", "run/backup",
    "spool/ballast", "machine.json",
)  # fmt: skip
FAULTS = ("unreadable", "unopenable", "unwritable", "unsyncable", "gone")
# Who makes an `Osio` of its own.
DOORS = ("metad.workers.recovery", "metad.users.id_allocator", "metad.users.lmdb_env",
         "metad.store.index.index")  # fmt: skip


@pytest.fixture
def kit() -> Iterator[StoreKit]:
    make = passwords.make
    with ExitStack() as stack:
        osio = KitOsio()
        for module in DOORS:
            stack.enter_context(mock.patch(f"{module}.Osio", lambda: osio))
        cheap = mock.patch.object(passwords, "make", lambda word, iterations=0: make(word, 10))
        stack.enter_context(cheap)
        base = power_campaign.scratch()
        stack.callback(shutil.rmtree, base)
        data = base / "data"
        yield stack.enter_context(StoreKit(data, osio, align=BLOCK, size=128 * 1024))


def start(kit: StoreKit) -> None:
    """Of a hub with one worker, in the order of metad.master.start."""
    osio = kit.osio
    kit.store, _ = open_at_start(osio, kit.data)
    store = kit.store
    Ballast(osio, store, kit.size).release_at_start()
    machine.note(osio, store, machine.this_machine(store))
    kit.area, kit.semaphore = fresh_area()
    row = kit.area.process(7)
    assert recover_hub(RecoverySetup(kit.data, kit.area, kit.semaphore, kit.boot), row) == 0
    kit.table = LogTable(kit.area, kit.semaphore, row)
    kit.clock = HubClock(osio, kit.area.clock_cell)
    kit.open()


def serve(kit: StoreKit) -> None:
    """Mail in and out, old and new; and the collector's check of the disk."""
    assert kit.put([1], b"more").acked
    kit.check()
    if listing := kit.listing(1):
        assert kit.delete(1, [listing[0][0]]).acked
    kit.check()
    Ballast(kit.osio, kit.store, kit.size).look()


def spoil(kit: StoreKit, name: str, fault: str) -> None:
    path = kit.data / name
    if not path.exists():
        path.write_bytes(b"x" * 100)
    if fault == "unreadable":
        kit.osio.spoil(str(path), 0)
    elif fault == "unopenable":
        kit.osio.make_unopenable(str(path))
    elif fault == "gone":
        path.unlink()
    else:
        names = {str(path), f"{path}.new"}
        (kit.osio.unwritable if fault == "unwritable" else kit.osio.unsyncable).update(names)


@pytest.fixture
def filled(kit: StoreKit) -> StoreKit:
    """A store with a full log, a user, and everything that a hub makes beside them."""
    start(kit)
    fill_log(kit, size=5000)
    with UserDatabase(kit.data / "users") as users:
        users.add("alice@x.test", b"secret")
    return kit


@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_a_hub_starts_and_serves(filled: StoreKit, name: str, fault: str, end: str) -> None:
    kit = filled
    if (name, fault) == ("store.json", "gone"):
        return  # perhaps an unfinished copy: tests/store/test_lost_identity.py
    (kit.stop if end == "stopped" else kit.crash)()
    spoil(kit, name, fault)
    for _ in range(2):
        start(kit)
        serve(kit)
        with UserDatabase(kit.data / "users") as users:
            assert users.verify("alice@x.test", b"secret") is not None
        kit.crash()
        reached("row 23, small files with a fault: started and served", 1)
    start(kit)  # what a stop leaves, if it can record it
    kit.crash()
    lines: list[str] = []
    Fsck(kit.osio, kit.store, Plan(kit.boot), lines.append).run()
    assert not [line for line in lines if not line.startswith("index: it")], lines
    assert_rebuild_is_same(kit)


def test_an_index_that_cannot_be_noted_as_dirty_is_rebuilt_by_the_next_start(
    filled: StoreKit,
) -> None:
    """Regression: it stopped the start; with the note "clean" left there, a later boot would have
    trusted it."""
    kit = filled
    kit.stop()
    spoil(kit, "index/state", "unwritable")
    start(kit)
    assert not (kit.data / "index" / "state").exists()
    serve(kit)
    kit.crash()
    kit.boot = "another boot"
    assert index_state.why_unusable(kit.osio, kit.store.index, kit.boot) == "there is none"
    kit.osio.unwritable.clear()
    start(kit)
    serve(kit)


@pytest.mark.parametrize("fault", ["unreadable", "unopenable"])
def test_numbers_that_cannot_be_read_are_written_again_and_given_once(
    filled: StoreKit, fault: str
) -> None:
    """Regression: it stopped every start."""
    kit = filled
    with UserDatabase(kit.data / "users") as users:
        first = users.add("bob@x.test").id
        users.remove("bob@x.test")
    kit.crash()
    spoil(kit, "numbers", fault)
    with UserDatabase(kit.data / "users") as users, pytest.raises(OsError, match="numbers: Input"):
        users.add("carol@x.test")  # not before the free ones are known
    start(kit)
    with UserDatabase(kit.data / "users") as users:
        assert users.add("carol@x.test").id > first


@pytest.mark.parametrize("fault", ["unreadable", "unopenable"])
@pytest.mark.parametrize("name", ["quarantine/old.damaged", "store.json"])
def test_a_backup_goes_on_past_small_files(
    filled: StoreKit, tmp_path: Path, name: str, fault: str
) -> None:
    kit = filled
    spoil(kit, name, fault)
    made = Backup(kit.osio, kit.store, tmp_path / "backup")
    made.run()
    assert [bad.partition(":")[0] for bad in made.done.bad] == [name] * (name != "store.json")
    done = restore(KitOsio(), tmp_path / "backup", tmp_path / "again", partial=True)
    assert not done.bad
    assert identity.open_store(KitOsio(), tmp_path / "again").store_id == kit.store.store_id


@pytest.mark.parametrize("fault", ["unreadable", "unopenable"])
def test_a_restore_goes_on_past_bad_files_of_the_backup(
    filled: StoreKit, tmp_path: Path, fault: str
) -> None:
    """Regression: a file that could not be opened ended it, even with --partial."""
    kit = filled
    found = Backup(kit.osio, kit.store, tmp_path / "backup").run()
    (name,) = [name for name, entry in found.files.items() if entry.sealed]
    osio = KitOsio()
    if fault == "unreadable":
        osio.spoil(str(tmp_path / "backup" / name), 2 * BLOCK)
    else:
        osio.make_unopenable(str(tmp_path / "backup" / name))
    done = restore(osio, tmp_path / "backup", tmp_path / "again", partial=True)
    assert [name in bad for bad in done.bad] == [True]
    assert done.files == len(found.files) - 2  # store.json is written last, and not counted


@pytest.mark.parametrize("kind", ["write", "allocate", "sync", "rename", "open"])
def test_no_space_anywhere_at_a_start_and_in_service(filled: StoreKit, kind: str) -> None:
    """ENOSPC at calls of a start, from one on: the life ends or continues, and the next one
    serves."""
    kit = filled
    kit.crash()
    kit.osio.faults = Faults(only=str(kit.data))
    start(kit)
    kit.crash()
    calls = kit.osio.faults.counts[kind]
    step = max(1, calls // sized(4, 30))
    for ordinal in range(1, calls + 1, step):
        kit.osio.faults = Faults(kind, ordinal, errno.ENOSPC, persistent=True, only=str(kit.data))
        try:
            start(kit)
            kit.check()
        except (OSError, OsError) as error:
            assert error.args  # a start that finds no block for its note ends with a reason
        kit.osio.faults = None
        kit.crash()
        start(kit)
        serve(kit)
        kit.crash()
        reached("row 23, no space at a call of a start: the next one serves", 1)
    assert os.listdir(kit.data)


def test_a_lock_that_cannot_be_opened_holds_up_collections_and_backups_for_the_lease(
    filled: StoreKit, tmp_path: Path
) -> None:
    """Regression: nothing was freed for ever.  Mail is served all the time."""
    kit = filled
    kit.osio.clock = clock = FakeClock()
    spoil(kit, "run/backup", "unopenable")
    with pytest.raises(OSError, match="run/backup"):
        Backup(kit.osio, kit.store, tmp_path / "backup").run()
    steps = make_collector(kit).collect(sealed(kit)[0])
    while next(steps) is not Step.WAITS:
        pass
    for _ in range(3):
        assert next(steps) is Step.WAITS
    serve(kit)
    assert any("run/backup cannot be opened" in text for text in kit.reports)
    clock.monotonic += limits.BACKUP_LEASE * 10**9
    assert Step.WAITS not in list(steps)
    assert any("run/backup could not be opened" in text for text in kit.reports)
    assert LogState.FREE in [row.state for row in kit.table.rows()]
    Backup(kit.osio, kit.store, tmp_path / "again").run()
    serve(kit)
