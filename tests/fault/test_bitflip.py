"""Reliability row 8: any bit flipped, any truncation, in logs and index.

Of the logs: a flipped bit loses at most its record, and a wrong body is never returned.  Of the
index: never a wrong body, and nothing is lost after a rebuild.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from metad.errors import DamagedError
from metad.store.index.index import Index
from metad.store.log import header, record
from metad.store.log.scan import Found, Scanner
from metad.store.reader import Reader
from tests.support import power_campaign
from tests.support.oracle import Ledger, digest
from tests.support.osio_kit import SEED, FakeClock, KitOsio
from tests.support.sizes import reached, sized
from tests.support.store_kit import StoreKit

SIZE = 8 * 1024
EVERY = 1 << 30  # more than exist


class Piece(NamedTuple):
    """A record of the good store, and where it lies."""

    path: str
    start: int
    end: int
    kind: int
    ids: frozenset[bytes]


class Small:
    """A small store with sealed, unsealed and free logs, as files; and its contents."""

    def __init__(self, data: Path) -> None:
        rng = random.Random(SEED)
        self.data = data
        osio = KitOsio(clock=FakeClock())
        with StoreKit(data, osio, size=SIZE) as kit:
            kit.start(1)
            self.fill(kit, rng, 12)
            kit.stop()
            kit.start(2)
            self.fill(kit, rng, 12)
            kit.check()
            self.index_files = {
                path.name: path.read_bytes() for path in Path(kit.store.index).iterdir()
            }
            kit.crash()
            self.ledger = kit.ledger
            self.store = kit.store
            self.logs = {str(path): path.read_bytes() for path in kit.log_files()}
        self.pieces = list(self.scan())
        assert len(self.pieces) == 24

    @staticmethod
    def fill(kit: StoreKit, rng: random.Random, count: int) -> None:
        for number in range(count):
            slot = rng.randrange(len(kit.writers))
            if number % 5 == 4:
                kit.delete(1, [kit.listing(1)[0][0]], slot)
            else:
                kit.put([1, rng.randrange(2, 4)], rng.randbytes(rng.randrange(600)), slot)

    def scan(self) -> Iterator[Piece]:
        osio = KitOsio()
        for path in self.logs:
            fd = osio.open(path, os.O_RDONLY)
            log = header.read(osio, fd, self.store.secret)
            assert log is not None
            for found in Scanner(osio, fd, log):
                assert isinstance(found, Found)
                if found.header.kind == record.MESSAGE:
                    ids = [found.header.id]
                else:
                    ids = record.unpack_deletion(found.envelope, found.body).each()
                end = found.offset + found.header.size
                yield Piece(path, found.offset, end, found.header.kind, frozenset(ids))
            osio.close(fd)

    def judge(self, changed: dict[str, bytes], touched: frozenset[bytes]) -> set[bytes]:
        """Recover without an index.  Returns what is lost or damaged; raises if it is more than
        `touched`."""
        power_campaign.lay_out({**self.logs, **changed}, self.store.logs, self.store.logs)
        with StoreKit(self.data, KitOsio(clock=FakeClock()), size=SIZE) as kit:
            kit.drop_index()
            kit.recover()
            kit.open_index()
            lost = set()
            for mailbox in (1, 2, 3):
                listed = {each for each, _ in kit.listing(mailbox)}
                bad = {each for each in listed if not self.good(kit, each)}
                lost |= (self.ledger.must_have(mailbox) - listed) | bad
                back = {each for each in listed if (mailbox, each) in self.ledger.deleted}
                assert back <= touched, "deleted mail came back"
            assert lost <= touched, f"lost {len(lost)} messages"
            return lost

    def good(self, kit: StoreKit, message_id: bytes) -> bool:
        """False: damaged, and detected as such.  A wrong body raises."""
        try:
            stored = kit.stored(message_id)
        except DamagedError:
            return False
        assert digest(bytes(stored.body)) == self.ledger.sent[message_id][0], "a wrong body"
        return True


@pytest.fixture(scope="module")
def small() -> Iterator[Small]:
    data = power_campaign.scratch()
    try:
        yield Small(data)
    finally:
        shutil.rmtree(data)


def touched(small: Small, path: str, at: int) -> frozenset[bytes]:
    hit = [p.ids for p in small.pieces if p.path == path and p.start <= at < p.end]
    return hit[0] if hit else frozenset()


def positions(small: Small, count: int) -> list[tuple[str, int]]:
    """Octets to damage: in each structure in turn, and anywhere."""
    rng = random.Random(SEED)
    every = [(path, at) for path in small.logs for at in range(len(small.logs[path]))]
    if count >= len(every):
        return every
    dense = [
        (path, at)
        for path, data in small.logs.items()
        for at in range(len(data))
        if any(data[at : at + 16])
    ]
    return rng.sample(dense, min(len(dense), count * 3 // 4)) + rng.sample(every, count // 4)


@pytest.mark.long
def test_a_flipped_bit_of_a_log_costs_at_most_its_record(small: Small) -> None:
    rng = random.Random(SEED)
    losses = 0
    for path, at in positions(small, sized(240, EVERY)):
        data = bytearray(small.logs[path])
        data[at] ^= 1 << rng.randrange(8)
        with power_campaign.blame(f"{os.path.basename(path)} octet {at} seed {SEED}"):
            losses += bool(small.judge({path: bytes(data)}, touched(small, path, at)))
        reached("row 8, bytes of logs flipped", 1)
    assert losses > 100


def test_a_spoiled_sector_of_a_log_costs_at_most_what_lay_in_it(small: Small) -> None:
    rng = random.Random(SEED)
    every = [(path, at) for path in small.logs for at in range(512, SIZE - 512, 512)]
    for path, at in rng.sample(every, min(len(every), sized(25, EVERY))):
        data = bytearray(small.logs[path])
        data[at : at + 512] = rng.randbytes(512)
        hit = [p.ids for p in small.pieces if p.path == path and p.start < at + 512 and p.end > at]
        with power_campaign.blame(f"{os.path.basename(path)} sector at {at} seed {SEED}"):
            small.judge({path: bytes(data)}, frozenset().union(*hit))


def test_a_truncated_log_keeps_what_lies_before_the_cut(small: Small) -> None:
    rng = random.Random(SEED)
    every = [(path, at) for path in small.logs for at in range(512, SIZE)]
    for path, at in rng.sample(every, min(len(every), sized(60, 1500))):
        gone = [p.ids for p in small.pieces if p.path == path and p.end > at]
        with power_campaign.blame(f"{os.path.basename(path)} cut to {at} seed {SEED}"):
            small.judge({path: small.logs[path][:at]}, frozenset().union(*gone))


def test_the_good_store_is_whole(small: Small) -> None:
    assert small.judge({}, frozenset()) == set()


# -- the index


def read_all(small: Small, directory: Path) -> None:
    """In a child: read everything that a damaged index leads to.  Wrong mail is exit code 3."""
    index = Index(str(directory))
    reader = Reader(KitOsio(), small.store, index)
    for mailbox in (1, 2, 3):
        listing = index.listing(mailbox)
        for at in range(0, len(listing), 20):
            message_id = listing[at : at + 16]
            try:
                stored = reader.read(message_id)
            except DamagedError:
                continue
            assert stored is not None
            known = small.ledger.sent.get(message_id)
            if known is None or digest(bytes(stored.body)) != known[0]:
                os._exit(3)


@pytest.mark.long
def test_a_flipped_bit_of_the_index_never_hands_out_a_wrong_body(small: Small) -> None:
    """The index may be unreadable, or may lose entries until it is rebuilt; LMDB may even end the
    process on a damaged page.  It must not return a wrong body."""
    rng = random.Random(SEED)
    power_campaign.lay_out(small.logs, small.store.logs, small.store.logs)
    directory = power_campaign.scratch()
    data = small.index_files["data.mdb"]
    used = [at for at in range(len(data)) if data[at]]
    outcomes: dict[int, int] = {}
    try:
        for at in rng.sample(used, min(len(used), sized(100, 2500))):
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << rng.randrange(8)
            power_campaign.lay_out({"/data.mdb": bytes(spoiled)}, "", str(directory))
            child = os.fork()
            if not child:
                signal.alarm(10)
                faulthandler.disable()
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                try:
                    read_all(small, directory)
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code != 3, f"octet {at} of the index handed out a wrong body, seed {SEED}"
            outcomes[code] = outcomes.get(code, 0) + 1
    finally:
        shutil.rmtree(directory)
    reached("row 8, bytes of the index flipped", sum(outcomes.values()))
    assert outcomes.get(0, 0) > 0


def test_whatever_the_index_was_a_rebuild_has_everything(small: Small) -> None:
    power_campaign.lay_out(small.logs, small.store.logs, small.store.logs)
    with StoreKit(small.data, KitOsio(clock=FakeClock()), size=SIZE) as kit:
        index = Path(kit.store.index)
        for content in (b"", os.urandom(4096), small.index_files["data.mdb"][:5000]):
            kit.drop_index()
            (index / "data.mdb").write_bytes(content)
            kit.recover()
            kit.open_index()
            kit.ledger = small.ledger
            assert kit.check() > 0
            kit.crash()


def test_the_ledger_of_the_small_store_is_not_empty(small: Small) -> None:
    assert isinstance(small.ledger, Ledger)
    assert len(small.ledger.acked) > 10
    assert small.ledger.deleted
