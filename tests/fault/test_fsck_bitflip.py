"""Reliability row 8: fsck names whatever a flipped bit changes in the index.

Each try forks, for LMDB may kill a process on a damaged page: so it runs among the campaigns, in
parts and early, while the processes of the tests are small.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import lmdb
import pytest

from tests.support.fsck_kit import assert_clean, flip, fsck, stopped
from tests.support.osio_kit import SEED, FakeClock, KitOsio
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit

PARTS = sized(1, 8)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(clock=FakeClock())) as made:
        yield made


def content(directory: Path) -> object:
    """The contents of an index, read by a child, because LMDB may kill a process on a damaged
    page."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        signal.alarm(10)
        try:
            found = []
            with lmdb.open(str(directory), readonly=True, max_dbs=8, lock=False) as env:
                for name in (b"mailboxes0", b"mailboxes1", b"places", b"logs", b"uids"):
                    table = env.open_db(name, create=False)
                    with env.begin() as txn, txn.cursor(table) as cursor:
                        found.append(list(islice(cursor, 100_000)))
            data = repr(found).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(data)
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    return said if os.waitpid(pid, 0)[1] == 0 else None


def without_free_pages(directory: Path, aside: Path) -> bytes:
    """The file of an index, from now on without pages that are not in use."""
    aside.mkdir()
    with lmdb.open(str(directory), max_dbs=8) as env:
        env.copy(str(aside), compact=True)
    good = (aside / "data.mdb").read_bytes()
    (directory / "data.mdb").write_bytes(good)
    return good


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_every_flipped_bit_that_changes_the_index_is_found(kit: StoreKit, part: int) -> None:
    stopped(kit, count=30)
    directory = Path(kit.store.index)
    good = without_free_pages(directory, kit.data / "compact")
    expected = content(directory)
    assert expected is not None
    used = [at for at in range(len(good)) if good[at]]
    rng = random.Random(SEED * PARTS + part)
    found, tries = 0, min(sized(60, 1000) // PARTS, len(used))
    for at in rng.sample(used, tries):
        bit = rng.randrange(8)
        flip(str(directory / "data.mdb"), at, bit)
        where = f"byte {at}, bit {bit}, seed {SEED}"
        is_changed = content(directory) != expected
        lines, _ = fsck(kit)
        assert bool(lines) or not is_changed, where
        assert all(line.startswith("index: ") for line in lines), where
        found += bool(lines)
        flip(str(directory / "data.mdb"), at, bit)
    assert found > tries // 5
    reached("row 8, bits of the index flipped before an fsck", tries)
    assert_clean(kit)
