"""Backup and restore: every message by its digest, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metad.errors import CannotCreateError, DamagedError, DataError, UnavailableError
from metad.store.backup import manifest
from metad.store.backup.backup import Backup, Done, restore
from metad.store.gc.copy import Step
from metad.store.identity import NODES, open_store, write_identity
from metad.store.log import header
from metad.store.log.header import log_path
from metad.store.log_table import LogState
from metad.system.osio import Osio
from tests.support.collector_kit import collect_all, fill_log, make_collector, sealed
from tests.support.oracle import Ledger
from tests.support.osio_kit import SEED, Faults, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    """A running store with sealed logs, an active one, shared mail and deletions."""
    rng = random.Random(SEED)
    with StoreKit(tmp_path / "data") as kit:
        kit.start(2)
        fill_log(kit, 1)
        fill_log(kit, 2, writer=1)
        for _ in range(10):
            kit.put(rng.sample([1, 2, 3], 2), rng.randbytes(800), rng.randrange(2))
        for box in (1, 2, 3):
            ids = [each for each, _ in kit.listing(box)]
            kit.delete(box, rng.sample(ids, len(ids) // 3))
        yield kit


def restored(source: Path, data: Path, ledger: Ledger) -> None:
    """Restore a backup and check every message."""
    restore(Osio(), source, data)
    with StoreKit(data) as copy:
        copy.ledger = ledger.copy()
        copy.start()
        assert copy.check() > 10
        assert copy.put([1], b"goes on").acked
        copy.check()


@pytest.mark.slow
def test_a_running_store_is_backed_up_and_restored(kit: StoreKit, tmp_path: Path) -> None:
    made = Backup(Osio(), kit.store, tmp_path / "backup")
    made.run()
    before = kit.ledger.copy()
    kit.put([1], b"after the backup")
    restored(tmp_path / "backup", tmp_path / "new", before)
    assert made.done.files >= 4
    kit.check()


def test_a_stopped_store_is_backed_up_and_restored(kit: StoreKit, tmp_path: Path) -> None:
    kit.stop()
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


def test_a_backup_has_no_index_and_shares_no_file_with_the_hub(
    kit: StoreKit, tmp_path: Path
) -> None:
    """A log's next life must not overwrite the backup."""
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    assert not (tmp_path / "backup" / "index").exists()
    files = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert all(path.stat().st_nlink == 1 for path in [*files, *kit.log_files()])


def test_free_logs_are_left_out(kit: StoreKit, tmp_path: Path) -> None:
    victim = sealed(kit)[0]
    collector = make_collector(kit)
    list(collector.collect(victim))
    found = Backup(Osio(), kit.store, tmp_path / "backup").run()
    assert f"logs/{victim:08d}.log" not in found.files
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


@pytest.mark.parametrize("number", [1, 300, (1 << 16) - 1])
def test_a_restored_store_is_no_member_and_has_no_member_s_number(
    kit: StoreKit, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster numbers its members one after the other, from the first one's number."""
    store = replace(kit.store, node=number, clustered=True)
    write_identity(Osio(), store)
    kit.store = open_store(Osio(), kit.data)
    taken = tmp_path / "backup"
    given: list[int] = []
    monkeypatch.setattr(
        "metad.store.identity.secrets.choice", lambda free: given.extend(free) or free[0]
    )
    Backup(Osio(), kit.store, taken).run()
    restore(Osio(), taken, tmp_path / "again")
    assert not set(range(number - 255, number + 256)) & set(given)
    assert max(given) + 255 < 1 << 16
    assert len(given) > 60_000
    again = open_store(Osio(), tmp_path / "again")
    assert (again.node, again.clustered) == (given[0], False)


def test_a_restored_store_is_another_node(kit: StoreKit, tmp_path: Path) -> None:
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    nodes = set()
    for name in ("one", "two"):
        restore(Osio(), tmp_path / "backup", tmp_path / name)
        new = open_store(Osio(), tmp_path / name)
        assert (new.store_id, new.secret) == (kit.store.store_id, kit.store.secret)
        assert 0 < new.node < 1 << 16
        nodes.add(new.node)
    assert kit.store.node not in nodes


def test_mail_that_comes_meanwhile_does_no_harm(kit: StoreKit, tmp_path: Path) -> None:
    before = kit.ledger.copy()

    def meanwhile(_: str) -> None:
        kit.put([1, 3], b"meanwhile" * 50)
        kit.delete(3, [kit.listing(3)[0][0]])

    Backup(Osio(), kit.store, tmp_path / "backup", report=meanwhile).run()
    before.sent = kit.ledger.sent
    before.deleting = kit.ledger.deleting
    restored(tmp_path / "backup", tmp_path / "new", before)
    kit.check()


@pytest.mark.slow
def test_no_log_is_freed_meanwhile(kit: StoreKit, tmp_path: Path) -> None:
    """The collector may copy, and waits before freeing."""
    victim = sealed(kit)[0]
    collection = make_collector(kit).collect(victim)
    steps: list[Step] = []

    def meanwhile(_: str) -> None:
        steps.extend(next(collection) for _ in range(30))

    Backup(Osio(), kit.store, tmp_path / "backup", report=meanwhile).run()
    assert steps[-1] == Step.WAITS
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)
    list(collection)
    assert kit.table.row(victim).state == LogState.FREE
    kit.check()


def test_a_torn_tail_is_recovered_like_a_crash(kit: StoreKit, tmp_path: Path) -> None:
    """The writer is in the middle of a group while its log is copied."""
    writer = kit.writers[0].committer.writer
    assert writer is not None
    os.pwrite(writer.fd, b"mRec" + os.urandom(700), writer.end)
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


def test_a_log_that_is_sealed_while_it_is_copied(kit: StoreKit, tmp_path: Path) -> None:
    class Sealing(Osio):
        """Seals the active log between its examination and the copy."""

        def truncate(self, fd: int, size: int) -> None:
            super().truncate(fd, size)
            for writer in kit.writers:
                log = writer.committer.writer
                if log is not None and not log.poisoned and log.sequence:
                    log.seal()

    Backup(Sealing(), kit.store, tmp_path / "backup").run()
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


# -- incremental


@pytest.mark.slow
def test_an_incremental_backup_takes_unchanged_logs_from_the_earlier_one(
    kit: StoreKit, tmp_path: Path
) -> None:
    Backup(Osio(), kit.store, tmp_path / "one").run()
    old = sealed(kit)
    fill_log(kit, 1)
    collect_all(kit, make_collector(kit)) if not old else None
    second = Backup(Osio(), kit.store, tmp_path / "two", tmp_path / "one")
    second.run()
    assert second.done.linked == len(old)
    for number in old:
        name = os.path.basename(header.log_path("", number))
        assert os.path.samefile(tmp_path / "one/logs" / name, tmp_path / "two/logs" / name)
    shutil.rmtree(tmp_path / "one")
    restored(tmp_path / "two", tmp_path / "new", kit.ledger)


@pytest.mark.slow
def test_a_log_in_its_next_life_is_not_taken_from_the_earlier_backup(
    kit: StoreKit, tmp_path: Path
) -> None:
    Backup(Osio(), kit.store, tmp_path / "one").run()
    victim = sealed(kit)[0]
    list(make_collector(kit).collect(victim))
    while kit.table.row(victim).state != LogState.SEALED:
        fill_log(kit, 1)
    second = Backup(Osio(), kit.store, tmp_path / "two", tmp_path / "one")
    second.run()
    name = os.path.basename(header.log_path("", victim))
    assert not os.path.samefile(tmp_path / "one/logs" / name, tmp_path / "two/logs" / name)
    restored(tmp_path / "two", tmp_path / "new", kit.ledger)


def test_across_file_systems_everything_is_copied(
    kit: StoreKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Backup(Osio(), kit.store, tmp_path / "one").run()
    monkeypatch.setattr(Osio, "link", raising(errno.EXDEV))
    second = Backup(Osio(), kit.store, tmp_path / "two", tmp_path / "one")
    second.run()
    assert second.done.linked == 0
    restored(tmp_path / "two", tmp_path / "new", kit.ledger)


def test_a_backup_of_another_store_is_no_base(kit: StoreKit, tmp_path: Path) -> None:
    Backup(Osio(), kit.store, tmp_path / "one").run()
    path = tmp_path / "one" / manifest.NAME
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"store_id": "00" * 15 + "01"}))
    with pytest.raises(DataError, match="another store"):
        Backup(Osio(), kit.store, tmp_path / "two", tmp_path / "one")


# -- how octets are copied


def raising(number: int):
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.slow
@pytest.mark.parametrize("clone", [errno.EOPNOTSUPP, None], ids=["no clone", "clone"])
@pytest.mark.parametrize("copy", [errno.EXDEV, None], ids=["no copy_range", "copy_range"])
def test_every_way_of_copying_gives_the_same(
    kit: StoreKit, tmp_path: Path, monkeypatch, clone, copy
) -> None:
    def like_clone(self: Osio, source: int, target: int) -> None:
        os.truncate(target, 0)
        os.pwrite(target, os.pread(source, 1 << 30, 0), 0)

    monkeypatch.setattr(Osio, "clone", raising(clone) if clone else like_clone)
    if copy:
        monkeypatch.setattr(Osio, "copy_range", raising(copy))
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


def test_unused_bytes_are_not_copied(kit: StoreKit, tmp_path: Path) -> None:
    made = Backup(Osio(), kit.store, tmp_path / "backup")
    found = made.run()
    logs = [entry for entry in found.files.values() if entry.life]
    assert made.done.octets < sum(entry.size for entry in logs)
    assert all((tmp_path / "backup" / entry.name).stat().st_size == entry.size for entry in logs)


@pytest.mark.parametrize("kind", ["open", "write", "sync", "dir-sync", "rename"])
def test_a_backup_that_fails_has_no_manifest(kit: StoreKit, tmp_path: Path, kind: str) -> None:
    osio = KitOsio(faults=Faults(kind, 2, only=str(tmp_path / "backup")))
    osio.clone = osio.copy_range = raising(errno.EXDEV)  # type: ignore[method-assign]
    made = Backup(osio, kit.store, tmp_path / "backup")
    if kind == "rename":
        osio.faults = Faults(kind, 1)
    with pytest.raises(OSError, match="error"):
        made.run()
    with pytest.raises(UnavailableError, match="no complete backup"):
        restore(Osio(), tmp_path / "backup", tmp_path / "new")
    kit.check()


# -- refused


def test_a_backup_is_not_made_over_something(kit: StoreKit, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "x").write_text("somebody's")
    with pytest.raises(CannotCreateError, match="not an empty directory"):
        Backup(Osio(), kit.store, tmp_path / "backup")
    with pytest.raises(CannotCreateError):
        Backup(Osio(), kit.store, tmp_path / "nowhere" / "backup")


def test_a_restore_is_not_made_over_something(kit: StoreKit, tmp_path: Path) -> None:
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    with pytest.raises(CannotCreateError, match="not an empty directory"):
        restore(Osio(), tmp_path / "backup", kit.data)
    kit.check()


@pytest.fixture
def made(kit: StoreKit, tmp_path: Path) -> Path:
    kit.put([1], b"damaged?")
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    return tmp_path / "backup"


def refused(made: Path, match: str) -> None:
    """A restore is refused, and leaves nothing that a hub would start on."""
    new = made.parent / "new"
    with pytest.raises(DataError, match=match):
        restore(Osio(), made, new)
    assert not (new / "store.json").exists()


def test_a_flipped_bit_is_found(made: Path) -> None:
    entry = next(entry for entry in manifest.read(Osio(), str(made)).files.values() if entry.life)
    path = made / entry.name
    data = bytearray(path.read_bytes())
    data[entry.end // 2] ^= 4
    path.write_bytes(data)
    refused(made, "not what was copied")


def test_a_missing_file_is_found(made: Path) -> None:
    next((made / "logs").iterdir()).unlink()
    refused(made, "missing")


def test_a_truncated_file_is_found(made: Path) -> None:
    path = next((made / "logs").iterdir())
    os.truncate(path, path.stat().st_size - 1)
    refused(made, "not the size")


def test_a_changed_identity_is_found(made: Path) -> None:
    path = made / "store.json"
    path.write_text(path.read_text().replace('"node": 1', '"node": 2'))
    refused(made, "not what was copied")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 1, "files": [{}]}', b"\xff"])
def test_a_damaged_manifest_is_refused(made: Path, content: bytes) -> None:
    (made / manifest.NAME).write_bytes(content)
    refused(made, "damaged")


def test_a_newer_manifest_is_refused(made: Path) -> None:
    fields = json.loads((made / manifest.NAME).read_text())
    (made / manifest.NAME).write_text(json.dumps(fields | {"format": 2}))
    refused(made, "newer")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "logs/../../outside", "a\nb"])
def test_a_manifest_does_not_lead_out_of_its_directory(made: Path, name: str) -> None:
    fields = json.loads((made / manifest.NAME).read_text())
    fields["files"][0]["name"] = name
    (made / manifest.NAME).write_text(json.dumps(fields))
    refused(made, "damaged")
    assert not (made.parent / "outside").exists()


def test_a_manifest_without_an_identity_is_refused(made: Path) -> None:
    fields = json.loads((made / manifest.NAME).read_text())
    fields["files"] = [one for one in fields["files"] if one["name"] != "store.json"]
    (made / manifest.NAME).write_text(json.dumps(fields))
    refused(made, r"no store\.json")


def test_a_log_without_a_header_is_copied_as_it_is(kit: StoreKit, tmp_path: Path) -> None:
    (number, *_) = sealed(kit)
    path = header.log_path(kit.store.logs, number)
    with open(path, "r+b") as file:
        file.write(bytes(512))
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    reports: list[str] = []
    Backup(Osio(), kit.store, tmp_path / "backup", report=reports.append).run()
    assert any("no good header" in text for text in reports)
    restored(tmp_path / "backup", tmp_path / "new", kit.ledger)


def test_what_is_set_aside_is_backed_up(kit: StoreKit, tmp_path: Path) -> None:
    Path(kit.store.quarantine, "0.damaged").write_bytes(b"octets")
    Backup(Osio(), kit.store, tmp_path / "backup").run()
    restore(Osio(), tmp_path / "backup", tmp_path / "new")
    assert (tmp_path / "new" / "quarantine" / "0.damaged").read_bytes() == b"octets"
    assert NODES == 65536


# -- places that cannot be read


@pytest.fixture
def unreadable(kit: StoreKit, tmp_path: Path) -> tuple[Path, Done]:
    """A backup of a store with a record that cannot be read."""
    ids = fill_log(kit)
    place = kit.index.places(ids[3])[0]
    kit.osio.spoil(log_path(kit.store.logs, place.log), place.offset)
    kit.osio.clone = kit.osio.copy_range = raising(errno.EXDEV)  # type: ignore[method-assign]
    made = Backup(kit.osio, kit.store, tmp_path / "backup")
    made.run()
    return tmp_path / "backup", made.done


def test_a_backup_goes_on_past_a_place_that_cannot_be_read(
    kit: StoreKit, unreadable: tuple[Path, Done], tmp_path: Path
) -> None:
    """Regression: it ended at the first, without any backup."""
    backup, done = unreadable
    assert len(done.bad) == 1
    assert done.bad[0].startswith("logs/")
    expected = dict(kit.listing(1))
    kit.crash()
    restore(Osio(), backup, tmp_path / "restored")
    with StoreKit(tmp_path / "restored") as other:
        other.start()
        listed = [each for each, _ in other.listing(1)]
        assert set(listed) == set(expected)  # the footer names it still
        damaged = 0
        for each in listed:
            try:
                other.stored(each)
            except DamagedError:
                damaged += 1
        assert 0 < damaged <= 8  # records in one block


def test_a_restore_takes_what_is_good_of_a_damaged_backup(made: Path, tmp_path: Path) -> None:
    log = next((made / "logs").iterdir())
    os.truncate(log, log.stat().st_size // 2)
    with pytest.raises(DataError) as raised:
        restore(Osio(), made, tmp_path / "first")
    assert "--partial" in raised.value.line
    assert not (tmp_path / "first" / "store.json").exists()
    done = restore(Osio(), made, tmp_path / "second", partial=True)
    assert len(done.bad) == 1
    with StoreKit(tmp_path / "second") as kit:
        kit.start()
        assert sum(len(kit.listing(mailbox)) for mailbox in range(4)) > 0
