"""The view on the disk: durable when `keep` returns, never an older one, whatever fails."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from metad.cluster.view import Membership, View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError
from metad.system.osio import Osio
from tests.cluster.views import make_member, make_view
from tests.support.osio_kit import SEED, Faults, KitOsio
from tests.support.power_kit import MODES, Disk, lay_out
from tests.support.sizes import reached, scaled

ONE = make_view(make_member(1), make_member(2), epoch=5)
NEXT = ONE.changed(members=ONE.with_member(2, state=Membership.ABSENT))
OTHER = ONE.changed(members=ONE.with_member(1, state=Membership.ABSENT))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "view")


def test_a_node_that_was_in_no_cluster_has_no_view(path: str) -> None:
    assert ViewFile(Osio(), path).load() is None


def test_a_view_is_loaded_as_it_was_kept(path: str) -> None:
    ViewFile(Osio(), path).keep(ONE)
    assert ViewFile(Osio(), path).load() == ONE
    ViewFile(Osio(), path).keep(NEXT)
    assert ViewFile(Osio(), path).load() == NEXT


def test_no_view_is_replaced_by_an_older_one(path: str) -> None:
    file = ViewFile(Osio(), path)
    file.keep(NEXT)
    with pytest.raises(ClusterError, match="has epoch 6, not replaced by 5"):
        file.keep(ONE)
    assert file.load() == NEXT


def test_not_by_one_that_this_object_kept_before(path: str) -> None:
    file = ViewFile(Osio(), path)
    file.keep(ONE)
    ViewFile(Osio(), path).keep(NEXT)  # another process
    with pytest.raises(ClusterError, match="has epoch 6"):
        file.keep(ONE)


def test_an_epoch_has_one_view(path: str) -> None:
    file = ViewFile(Osio(), path)
    file.keep(NEXT)
    with pytest.raises(ClusterError, match="another view of epoch 6"):
        file.keep(OTHER)
    assert file.load() == NEXT


def test_a_view_of_another_cluster_is_refused(path: str) -> None:
    ViewFile(Osio(), path).keep(ONE)
    with pytest.raises(ClusterError, match="is in the cluster"):
        ViewFile(Osio(), path).keep(ONE.changed(cluster="ab" * 16))


def test_a_view_that_is_there_is_written_once_by_each_process(path: str, tmp_path: Path) -> None:
    osio = KitOsio(str(tmp_path), record=True)
    ViewFile(Osio(), path).keep(ONE)
    file = ViewFile(osio, path)
    file.keep(ONE)  # the other process may have been killed before its last sync
    written = len(osio.ops)
    assert written
    file.keep(ONE)
    assert len(osio.ops) == written


@pytest.mark.parametrize("data", [b"", b"{}", ONE.encode()[:-1], ONE.encode() + b" " * 70_000])
def test_a_damaged_file_is_an_error_and_stays(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)
    with pytest.raises(ClusterError, match=path):
        ViewFile(Osio(), path).load()
    with pytest.raises(ClusterError, match=path):
        ViewFile(Osio(), path).keep(NEXT)
    assert Path(path).read_bytes() == data


def test_whatever_call_fails_the_old_view_or_the_new_one_is_there(path: str) -> None:
    ViewFile(Osio(), path).keep(ONE)
    failed = 0
    for kind in ("open", "pread", "write", "sync", "rename", "dir-sync"):
        for ordinal in range(1, 9):
            for short in (False, True) if kind == "write" else (False,):
                Path(path).write_bytes(ONE.encode())
                faults = Faults(kind, ordinal, short=short)
                osio = KitOsio(path.rpartition("/")[0], faults=faults)
                file = ViewFile(osio, path)
                if not faults_hit(file, faults):
                    continue
                failed += 1
                left = View.decode(Path(path).read_bytes())
                assert left in (ONE, NEXT)
                assert osio.names == {}
                file.keep(NEXT)  # and the next attempt succeeds
                assert View.decode(Path(path).read_bytes()) == NEXT
    assert failed >= 6


def faults_hit(file: ViewFile, faults: Faults) -> bool:
    try:
        file.keep(NEXT)
    except OSError:
        assert faults.hits
        return True
    assert not faults.hits
    return False


def test_a_view_that_could_not_be_made_durable_is_written_again(path: str, tmp_path: Path) -> None:
    """Its name is there already, but perhaps not on the disk."""
    ViewFile(Osio(), path).keep(ONE)
    faults = Faults("dir-sync", 1)
    osio = KitOsio(str(tmp_path), record=True, faults=faults)
    file = ViewFile(osio, path)
    with pytest.raises(OSError, match="Input/output error"):
        file.keep(NEXT)
    assert View.decode(Path(path).read_bytes()) == NEXT
    osio.ops.clear()
    file.keep(NEXT)
    assert [op.kind for op in osio.ops][-2:] == ["rename", "dir-sync"]


@pytest.mark.slow
def test_no_power_cut_loses_a_view_that_was_kept_or_loaded(path: str, tmp_path: Path) -> None:
    """After each recorded change: whatever the disk has is at least what was durable by then."""
    rng = random.Random(f"{SEED} view file")
    osio = KitOsio(str(tmp_path), record=True)
    views = [ONE, NEXT, NEXT.changed(), NEXT.changed().changed()]
    for number, view in enumerate(views):
        file = ViewFile(osio, path)  # another process each time
        file.keep(view)
        osio.note(number)
        assert ViewFile(osio, path).load() == view
    disk, least, tried = Disk(), -1, 0
    target = tmp_path / "after"
    target.mkdir()
    for op in osio.ops:
        if op.kind == "note":
            least = op.data
        disk.apply(op)
        for mode in MODES:
            for _ in range(scaled(1)):
                lay_out(disk.state(rng, mode), str(tmp_path), str(target))
                found = ViewFile(Osio(), str(target / "view")).load()
                assert (views.index(found) if found else -1) >= least
                tried += 1
    reached("power cut: states of a view file", tried)


def test_a_view_of_a_process_that_was_killed_is_durable_once_loaded(
    path: str, tmp_path: Path
) -> None:
    """It renamed the file and was killed before it made the name durable."""
    ViewFile(Osio(), path).keep(ONE)
    os.link(path, tmp_path / "old")
    osio = KitOsio(str(tmp_path), record=True)
    ViewFile(osio, path).load()
    assert [op.kind for op in osio.ops][-2:] == ["rename", "dir-sync"]


def test_processes_take_turns(path: str) -> None:
    """A process that holds the lock reads and writes without another one in between."""

    class Watched(KitOsio):
        held = 0

        def lock(self, fd: int) -> None:
            super().lock(fd)
            assert not Osio().try_lock(Osio().open(f"{path}.lock", os.O_RDWR))
            self.held += 1

    osio = Watched()
    ViewFile(osio, path).keep(ONE)
    ViewFile(osio, path).load()
    assert osio.held == 2
