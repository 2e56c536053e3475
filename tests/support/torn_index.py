"""An index that is partly on the disk, and a hub's reaction to it.

    run = Torn.record(seed)                 a store worked on, its index watched page by page
    run.judge(mode, instance)               one state of it: started, served, checked

Rules of this file:

* Each life is a process of its own, because a torn map may end it: as in a hub, SIGBUS and its like
  make the index suspect, and a suspect index is rebuilt by the next life.
* What a life serves is right, or the index is suspect afterwards.  The life after that is right.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from metad.master.index_watch import CRASHES
from metad.store.index import state as index_state
from metad.system.osio import Osio
from tests.support import power_campaign
from tests.support.agreement import assert_agree, assert_rebuild_is_same
from tests.support.lmdb_disk import PageHistory
from tests.support.oracle import Ledger
from tests.support.osio_kit import FakeClock, KitOsio, QuietOsio
from tests.support.store_kit import StoreKit

LIVES = 3
BOOT = "boot-1 3"  # boot and mount, as `index_state.instance` names them


class Torn:
    """A store at the moment at which its page cache was lost."""

    def __init__(self, base: Path, ledger: Ledger, pages: PageHistory) -> None:
        self.data = base / "data"
        self.ledger = ledger
        self.pages = pages
        self._copy = base / "copy"

    def lay_out(self, index: bytes) -> None:
        """The store with that index, as if its file were the one that the state names."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self.data, self._copy)
        (self._copy / "index" / "data.mdb").write_bytes(index)
        state = self._copy / "index" / "state"
        fields = json.loads(state.read_text())
        stat = os.stat(self._copy / "index" / "data.mdb")
        state.write_text(json.dumps(fields | {"file": [stat.st_dev, stat.st_ino]}))

    def judge(self, rng: random.Random, mode: str, boot: str) -> int:
        """Lives of a hub on one state until the index is believed; how many.  Raises
        AssertionError."""
        self.lay_out(self.pages.state(rng, mode))
        index = str(self._copy / "index")
        for life in range(1, LIVES + 1):
            code, told = in_child(lambda: self._live(boot))
            if -code in CRASHES:
                index_state.mark_suspect(Osio(), index, "a process was killed")
            elif code == 0:
                return life
            assert index_state.suspicion(Osio(), index), f"served and not noticed: {told}"
        raise AssertionError(f"the index does not heal in {LIVES} lives: {told}")

    def _live(self, boot: str) -> None:
        with StoreKit(self._copy, QuietOsio(clock=FakeClock()), size=power_campaign.SIZE) as kit:
            kit.boot = boot
            kit.recover()
            kit.open_index()
            self.ledger.check(kit)
            kit.crash()
            assert_agree(kit)
            assert_rebuild_is_same(kit)


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Do it in a forked process: its exit code, and what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(
                writer,
                f"{type(error).__name__}: {error} {traceback.format_exc(limit=-4)}".encode()[:4000],
            )
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def record(base: Path, seed: int) -> Torn:
    """What a store does in some lives, its index looked at in between and synced now and then."""
    rng = random.Random(seed)
    data = base / "data"
    with StoreKit(data, KitOsio(clock=FakeClock()), size=power_campaign.SIZE) as kit:
        kit.boot = BOOT
        kit.start()
        pages = PageHistory(data / "index" / "data.mdb")
        for _ in range(rng.randrange(1, 6)):
            power_campaign.work(kit, rng, rng.randrange(1, 12))
            kit.osio.faults = None
            kit.listing(0)
            if rng.random() < 0.15:
                kit.index.sync()
                pages.synced()
            pages.look()
        kit.crash()
        return Torn(base, kit.ledger, pages)
