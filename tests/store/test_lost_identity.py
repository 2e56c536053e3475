"""A store.json that cannot be read is made again from the headers of the logs, or refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metad.errors import DataError
from metad.store.backup.backup import Backup, restore
from metad.store.identity import APART, UnreadableStoreError, open_store
from metad.store.ids import ID_SIZE
from metad.store.lost_identity import open_at_start, open_to_check
from tests.support.osio_kit import BLOCK, Faults, KitOsio
from tests.support.store_kit import StoreKit

Spoil = Callable[[KitOsio, Path], None]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(), size=8 * BLOCK, align=BLOCK) as made:
        made.start()
        for _ in range(12):
            made.put([1], b"x" * 3000)
        made.stop()
        assert len(list(made.log_files())) > 1
        yield made


def unreadable(osio: KitOsio, path: Path) -> None:
    osio.spoil(str(path), 0)


def unopenable(osio: KitOsio, path: Path) -> None:
    osio.make_unopenable(str(path))


def empty(osio: KitOsio, path: Path) -> None:
    path.write_bytes(b"")


def torn(osio: KitOsio, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def without_a_field(osio: KitOsio, path: Path) -> None:
    path.write_text(json.dumps({"format": 1, "store_id": "00" * 16, "node": 7}))


def begin(kit: StoreKit) -> str:
    kit.store, warning = open_at_start(kit.osio, kit.data)
    kit.start()
    return warning


@pytest.mark.parametrize("spoil", [unreadable, unopenable, empty, torn, without_a_field])
def test_a_hub_starts_and_serves_all_mail(kit: StoreKit, spoil: Spoil) -> None:
    was, path = kit.store, kit.data / "store.json"
    spoil(kit.osio, path)
    octets = path.read_bytes()
    with pytest.raises(UnreadableStoreError) as raised:
        open_store(kit.osio, kit.data)
    assert "start the hub" in raised.value.line
    warning = begin(kit)
    assert (kit.store.store_id, kit.store.secret) == (was.store_id, was.secret)
    assert f"the new node number {kit.store.node}" in warning
    (kept,) = Path(kit.store.quarantine).iterdir()
    assert kept.name in warning
    assert kept.read_bytes() == octets
    assert kit.put([1], b"new").acked
    kit.check()
    assert len(kit.listing(1)) == 13
    kit.stop()
    node = kit.store.node
    assert begin(kit) == ""
    assert kit.store.node == node
    assert kit.put([1], b"newer").acked
    kit.check()


def nodes_of(kit: StoreKit) -> set[int]:
    return {int.from_bytes(message_id[8:10], "big") for message_id, _ in kit.listing(1)}


def test_the_number_is_none_that_was_there_before(kit: StoreKit, tmp_path: Path) -> None:
    """The headers of a restored store may have the number of the hub that still runs."""
    Backup(KitOsio(), kit.store, tmp_path / "backup").run()
    restore(KitOsio(), tmp_path / "backup", tmp_path / "again")
    with StoreKit(tmp_path / "again", KitOsio(), size=8 * BLOCK, align=BLOCK) as copy:
        lost = open_store(copy.osio, copy.data).node
        empty(copy.osio, copy.data / "store.json")
        begin(copy)
        assert abs(copy.store.node - kit.store.node) > APART
        assert copy.store.node != lost  # by chance, of 65,000
        first = copy.store.node
        assert len(copy.put([1], b"x").id) == ID_SIZE
        assert nodes_of(copy) == {kit.store.node, first}
        copy.stop()
        empty(copy.osio, copy.data / "store.json")
        begin(copy)
        copy.put([1], b"y")
        assert abs(copy.store.node - first) > APART
        assert nodes_of(copy) == {kit.store.node, first, copy.store.node}


def test_logs_that_cannot_be_read_leave_it_to_the_others(kit: StoreKit) -> None:
    was = kit.store
    bad, torn_one, *_ = kit.log_files()
    kit.osio.make_unopenable(str(bad))
    size = torn_one.stat().st_size
    for at in (0, size - BLOCK):
        kit.osio.spoil(str(torn_one), at)
    empty(kit.osio, kit.data / "store.json")
    store, _ = open_at_start(kit.osio, kit.data)
    assert (store.store_id, store.secret) == (was.store_id, was.secret)


def of_another_store(kit: StoreKit) -> None:
    log = next(kit.log_files())
    fields = json.loads((kit.data / "store.json").read_text())
    secret = bytes.fromhex(fields["secret"])
    other = kit.data.parent / "other"
    with StoreKit(other, size=8 * BLOCK, align=BLOCK) as made:
        fields["secret"] = bytes(reversed(secret + b"!"))[:32].hex()
        (other / "store.json").write_text(json.dumps(fields))
        made.store = open_store(KitOsio(), other)
        made.start()
        made.put([1], b"x")
        made.stop()
        shutil.copy(next(made.log_files()), log)


def in_a_cluster(kit: StoreKit) -> None:
    (kit.data / "cluster").mkdir()


def without_logs(kit: StoreKit) -> None:
    for log in kit.log_files():
        log.unlink()


def without_headers(kit: StoreKit) -> None:
    for log in kit.log_files():
        log.write_bytes(bytes(log.stat().st_size))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (of_another_store, "the logs' headers do not agree: restore it from a backup"),
        (in_a_cluster, "number of a node in a cluster is nowhere else: restore the file"),
        (without_logs, "no log has a good header: restore it"),
        (without_headers, "no log has a good header: restore it"),
    ],
)
def test_it_is_refused(kit: StoreKit, how: Callable[[StoreKit], None], reason: str) -> None:
    how(kit)
    empty(kit.osio, kit.data / "store.json")
    for look in (open_at_start, open_to_check):
        with pytest.raises(DataError, match=reason):
            look(kit.osio, kit.data)
    assert (kit.data / "store.json").read_bytes() == b""


def test_a_file_that_is_missing_is_not_made_again(kit: StoreKit) -> None:
    """The directory may be a copy or a restore that did not end."""
    (kit.data / "store.json").unlink()
    with pytest.raises(DataError, match="there are logs but no"):
        open_at_start(kit.osio, kit.data)


def test_a_newer_format_and_a_file_of_another_user_are_not_damage(kit: StoreKit) -> None:
    path = kit.data / "store.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    octets = path.read_bytes()
    with pytest.raises(DataError, match="newer than this program"):
        open_at_start(kit.osio, kit.data)
    kit.osio.faults = Faults("open", 1, errno.EACCES, only="store.json")
    with pytest.raises(PermissionError):
        open_at_start(kit.osio, kit.data)
    assert path.read_bytes() == octets


@pytest.mark.parametrize("kind", ["open", "write", "sync", "rename"])
def test_a_start_that_cannot_write_it_leaves_it_as_it_is(kit: StoreKit, kind: str) -> None:
    path = kit.data / "store.json"
    empty(kit.osio, path)
    kit.osio.faults = Faults(kind, 1, errno.ENOSPC, persistent=True, only="store.json")
    if kind == "open":
        kit.osio.faults.only = "store.json.new"
    elif kind == "rename":
        kit.osio.faults.only = "store.json"
    with pytest.raises(OSError, match="No space"):
        open_at_start(kit.osio, kit.data)
    assert path.read_bytes() == b""
    kit.osio.faults = None
    assert begin(kit) != ""  # the damaged file has its second name already
    assert len(os.listdir(kit.store.quarantine)) == 1
    kit.check()


def test_a_damaged_file_that_cannot_be_kept_is_named(
    kit: StoreKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(old: str, new: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(kit.osio, "link", refuse)
    empty(kit.osio, kit.data / "store.json")
    assert "could not be kept" in begin(kit)
    kit.check()


def test_a_check_names_it_and_writes_nothing(kit: StoreKit) -> None:
    was = kit.store
    torn(kit.osio, kit.data / "store.json")
    octets = (kit.data / "store.json").read_bytes()
    store, fault = open_to_check(kit.osio, kit.data)
    assert (store.store_id, store.secret) == (was.store_id, was.secret)
    assert "store.json: damaged" in fault
    assert "the next start makes it again" in fault
    assert (kit.data / "store.json").read_bytes() == octets
    assert not os.listdir(store.quarantine)
