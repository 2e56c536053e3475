"""The power-cut campaign: a recorded run of the store, cut at every boundary, recovered and
checked.

`python -m campaign SEED STATES` from this directory (with ../ on the path) runs one by hand.

Rules of this file:

* The index is absent in every state, because that is the rule after a cut.
* In every AGREE-th state, fsck must find nothing, and a second rebuild must change nothing.
* A failing state is reproducible: the error names seed, boundary and mode.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.agreement import assert_agree, assert_rebuild_is_same
from tests.support.oracle import Ledger
from tests.support.osio_kit import FakeClock, Faults, KitOsio, Op, QuietOsio
from tests.support.power_kit import MODES, Disk, lay_out
from tests.support.store_kit import StoreKit

# What a filter makes of a message, if there is one (tests.support.filter_kit).
Shape = Callable[[bytes], list[bytes]] | None
FAST = "/dev/shm"
SIZE = 16 * 1024
AGREE = 20


def scratch() -> Path:
    """A directory on a tmpfs where there is one: real files, and no disk to wait for."""
    return Path(tempfile.mkdtemp(prefix="metad-test-", dir=FAST if os.path.isdir(FAST) else None))


# -- the run that is recorded


def record(seed: int, shape: Shape = None) -> tuple[list[Op], str]:
    """What a store does over some lives of the hub; and the directory it was in.

    Most histories are short: what a state costs grows with what is in it, and a bug that needs a
    long one is met by the few that are.
    """
    rng = random.Random(seed)
    turns, steps = rng.choice([(2, 4), (2, 6), (3, 5), (3, 18)])
    data = scratch()
    try:
        osio = KitOsio(record=True, clock=FakeClock(), watch=str(data / "logs"))
        align = rng.choice([512, 512, 4096])
        with StoreKit(data, osio, size=SIZE * (4 if align == 4096 else 1), align=align) as kit:
            kit.eager = False
            kit.shape = shape
            for _ in range(turns):
                kit.start(rng.choice([1, 2]))
                work(kit, rng, steps)
                if rng.random() < 0.4:
                    leave_unsynced(kit, rng)
                rng.choice([kit.crash, kit.crash, kit.stop])()
                osio.faults = None
        return osio.ops, str(data / "logs")
    finally:
        shutil.rmtree(data)


def work(kit: StoreKit, rng: random.Random, steps: int) -> None:
    """Messages, groups, deletions, background work, now and then a sync that fails."""
    for _ in range(steps):
        what = rng.random()
        slot = rng.randrange(len(kit.writers))
        if what < 0.1:
            kit.writers[slot].background.run()
        elif what < 0.3 and (listing := kit.listing(box := rng.randrange(3))):
            some = rng.sample(listing, min(len(listing), rng.randrange(1, 4)))
            kit.submit_deletion(box, [each for each, _ in some], slot)
        else:
            for _ in range(rng.choice([1, 1, 2, 4])):
                boxes = rng.sample(range(3), rng.randrange(1, 3))
                kit.submit(boxes, rng.randbytes(rng.choice([10, 400, 1500])), slot)
        if rng.random() < 0.05:
            kit.osio.faults = Faults("sync", 1)
        kit.run()


def leave_unsynced(kit: StoreKit, rng: random.Random) -> None:
    """The disk dies with the last group, and nothing can say where its log ends."""
    kind = rng.choice(["sync", "sync", "write"])
    kit.osio.faults = Faults(kind, 1, short=kind == "write", dead=True)
    for _ in range(rng.choice([1, 3])):
        kit.submit([rng.randrange(3)], rng.randbytes(rng.choice([10, 1500])))
    if listing := kit.listing(box := rng.randrange(3)):
        kit.submit_deletion(box, [rng.choice(listing)[0]])
    kit.run()


# -- cuts


class Judge:
    """Recovers states in a directory of its own and asks the oracle."""

    def __init__(self) -> None:
        self.data = scratch()
        self.states = 0
        self.agreed = 0

    def close(self) -> None:
        shutil.rmtree(self.data)

    def lay_out(self, state: dict[str, bytes], old: str, osio: KitOsio) -> StoreKit:
        kit = StoreKit(self.data, osio, size=SIZE)
        lay_out(state, old, kit.store.logs)
        shutil.rmtree(kit.store.index)
        os.mkdir(kit.store.index)
        return kit

    def judge(self, state: dict[str, bytes], old: str, ledger: Ledger) -> None:
        """Raises AssertionError or whatever recovery raises."""
        self.states += 1
        with self.lay_out(state, old, QuietOsio(clock=FakeClock())) as kit:
            kit.recover()
            kit.open_index()
            ledger.check(kit)
            if self.states % AGREE == 0:
                kit.crash()
                assert_agree(kit, damage=True)
                assert_rebuild_is_same(kit)
                self.agreed += 1

    def go_on(
        self, state: dict[str, bytes], old: str, ledger: Ledger, rng: random.Random
    ) -> tuple[list[Op], str]:
        """Recover a state and work on; what that did."""
        osio = KitOsio(record=True, clock=FakeClock(real=1_800_000_000 * 10**9))
        osio.watch = str(self.data / "logs")
        with self.lay_out(state, old, osio) as kit:
            kit.ledger = ledger.copy()
            kit.start(1)
            work(kit, rng, 5)
            kit.stop()
            osio.recording = False
            assert_agree(kit, damage=True)
        return osio.ops, osio.watch


def boundaries(
    ops: list[Op], start: dict[str, bytes], ledger: Ledger
) -> Iterator[tuple[int, Disk, Ledger]]:
    """Disk and ledger at every boundary at which something is under way, or new."""
    disk = Disk(start)
    for at, op in enumerate(ops):
        if op.kind == "note":
            ledger.apply(op.data)
        else:
            disk.apply(op)
        if op.kind != "note" or op.data[0] in ("acked", "deleted"):
            yield at, disk, ledger


def cut(judge: Judge, seed: int, states: int, shape: Shape = None, second: int = 60) -> None:
    """Judge about `states` states of the run `seed`; every `second`-th is worked on and cut again.

    Raises AssertionError that says how to have the state again.
    """
    ops, old = record(seed, shape)
    rng = random.Random(seed + 1)
    count = sum(1 for _ in boundaries(ops, {}, Ledger()))
    each = states / count
    due = 0.0
    for at, disk, ledger in boundaries(ops, {}, Ledger()):
        due += min(each, 2) if disk.settled else each
        while due >= 1:
            due -= 1
            mode = rng.choice(MODES)
            state = disk.state(rng, mode)
            with blame(f"seed {seed}, boundary {at} ({ops[at].kind}), mode {mode}"):
                judge.judge(state, old, ledger)
            if judge.states % second == 0:
                again(judge, state, old, ledger, rng, f"seed {seed}, boundary {at}, then")


def again(
    judge: Judge, state: dict[str, bytes], old: str, ledger: Ledger, rng: random.Random, name: str
) -> None:
    """A second cut, while the first is recovered from and after it."""
    with blame(f"{name} working on"):
        ops, place = judge.go_on(state, old, ledger, rng)
    start = {place + path.removeprefix(old): data for path, data in state.items()}
    for at, disk, now in boundaries(ops, start, ledger.copy()):
        mode = rng.choice(MODES)
        with blame(f"{name} boundary {at} ({ops[at].kind}), mode {mode}"):
            judge.judge(disk.state(rng, mode), place, now)


class blame:
    """Adds to every error how to reproduce it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            raise AssertionError(f"{self.text}: {type(error).__name__}: {error}") from error


# -- many at once


def run(seed: int, runs: int, states: int, shape: Shape = None) -> int:
    """`runs` recorded runs from `seed` on, `states` states each.  The number judged."""
    judge = Judge()
    try:
        for number in range(runs):
            cut(judge, seed + number, states, shape)
        return judge.states
    finally:
        judge.close()


def spread(work: Callable[[int], int], jobs: int) -> int:
    """Do `work(0)` to `work(jobs - 1)` in forked children, two at a time at most; their sum.

    Raises AssertionError with the report of the first that failed.
    """
    total = 0
    running: dict[int, int] = {}
    for job in range(jobs):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reader)
                os.write(writer, json.dumps(attempt(work, job)).encode()[:60000])
            finally:
                os._exit(0)  # also if its result is not read any more
        os.close(writer)
        running[child] = reader
        if len(running) >= min(2, os.cpu_count() or 1) or job == jobs - 1:
            while running:
                total += collect(running)
    return total


def attempt(work: Callable[[int], int], job: int) -> dict[str, object]:
    try:
        return {"sum": work(job)}
    except BaseException as error:
        return {"error": f"{error}\n{traceback.format_exc(limit=-6)}"}


def collect(running: dict[int, int]) -> int:
    child, reader = running.popitem()
    with os.fdopen(reader, "rb") as file:
        said = json.loads(file.read() or b'{"error": "a child died"}')
    os.waitpid(child, 0)
    if "error" in said:
        for other, its in running.items():
            os.close(its)
            os.waitpid(other, 0)
        running.clear()
        raise AssertionError(said["error"])
    return int(said["sum"])


if __name__ == "__main__":
    print(run(int(sys.argv[1]), 1, int(sys.argv[2])))
