"""Many seeds, for hours: in shards, resumable, each failure shrunk.

    python -m tests.sim.soak FIRST COUNT --state FILE [--kind lives] [--shard 0/2] [--minutes M]

Rules of this file:

* The state file records progress after each batch, with the commit that ran: the same command
  continues where it was stopped.  Each shard has its own state file.
* A batch runs in a child: a seed that ends the interpreter is a failure of that seed only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.sim.kinds import KINDS, make_run
from tests.sim.shrink import MOST_TRIES, show, shrink, why

BATCH = 100
GARBAGE = 50_000  # objects made until the collector looks: at the usual 700, a tenth of the time
MOST_OF_CLUSTER = 60  # tries to make a plan smaller, which take seconds
ROOT = Path(__file__).parents[2]


@dataclass
class Progress:
    """Which seeds of a shard ran, and their results.  `place`: the next one, from 0."""

    first: int
    count: int
    shard: str
    place: int = 0
    steps: int = 0
    cpu_seconds: float = 0.0
    commits: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    kind: str = "hub"

    @property
    def of(self) -> str:
        return f"{self.kind}, {self.count} seeds from {self.first}, {self.shard}"

    def seeds(self) -> range:
        number, _, of = self.shard.partition("/")
        return range(self.first, self.first + self.count)[int(number) :: int(of)]

    def save(self, path: Path) -> None:
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        aside.replace(path)


def load(path: Path, wanted: Progress) -> Progress:
    """The progress in `path`, or a new one.  Raises SystemExit if it is that of other seeds."""
    if not path.exists():
        return wanted
    found = Progress(**json.loads(path.read_text()))
    if found.of != wanted.of:
        raise SystemExit(f"{path} is about {found.of}")
    return found


def run_batch(kind: str, seeds: range) -> Iterator[tuple[int, str | None, int]]:
    """Run these seeds in children.  Returns the failure of each, and its switch points."""
    while seeds:
        done = 0
        for seed, reason, steps in _in_child(kind, seeds):
            done += 1
            yield seed, reason, steps
        if done < len(seeds):
            yield seeds[done], "the process ended", 0
            done += 1
        seeds = seeds[done:]


def _in_child(kind: str, seeds: range) -> Iterator[tuple[int, str | None, int]]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        gc.freeze()  # what the parent has made is no garbage
        gc.set_threshold(GARBAGE)
        with os.fdopen(writer, "w") as out:
            for seed in seeds:
                print(json.dumps([seed, *_outcome(kind, seed)]), file=out, flush=True)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for line in lines:
            seed, reason, steps = json.loads(line)
            yield seed, reason, steps
    os.waitpid(child, 0)


def _outcome(kind: str, seed: int) -> tuple[str | None, int]:
    run = make_run(KINDS[kind](seed))
    try:
        run.go()
    except Exception as error:
        return f"{type(error).__name__}: {error}", run.steps
    return None, run.steps


def commit() -> str:
    """The commit whose code runs; "+" if the tree differs from it."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        ask = ("git", "-C", str(ROOT), *command)
        return subprocess.run(ask, capture_output=True, text=True, check=False)

    name = git("rev-parse", "--short", "HEAD").stdout.strip()
    dirty = git("diff", "--quiet", "HEAD", "--", "metad", "tests/sim").returncode
    return (name or "unknown") + ("+" if dirty else "")


def go_on(progress: Progress, path: Path, until: float) -> None:
    seeds, code = progress.seeds(), commit()
    while progress.place < len(seeds) and time.monotonic() < until:
        batch, failed = seeds[progress.place : progress.place + BATCH], list[int]()
        before = os.times()
        for seed, reason, steps in run_batch(progress.kind, batch):
            progress.steps += steps
            if reason is not None:
                progress.failed[str(seed)] = reason
                failed.append(seed)
                print(f"seed {seed}: {reason}", flush=True)
        after = os.times()
        progress.cpu_seconds += after.children_user - before.children_user
        progress.cpu_seconds += after.children_system - before.children_system
        progress.place += len(batch)
        progress.commits[code] = progress.commits.get(code, 0) + len(batch)
        progress.save(path)
        for seed in failed:
            tell(progress.kind, seed)


def tell(kind: str, seed: int) -> None:
    """Print the smallest plan that fails too.  In a child: runs at the same time would share the
    memory that their hubs share."""
    child = os.fork()
    if not child:
        plan = KINDS[kind](seed)
        small = shrink(plan, most=MOST_OF_CLUSTER if plan.nodes else MOST_TRIES)
        print(show(small), why(small) or "it does not fail again", sep="\n", flush=True)
        os._exit(0)
    os.waitpid(child, 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.soak", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--state", type=Path, required=True, help="where the progress is kept")
    parser.add_argument("--kind", choices=KINDS, default="hub", help="a hub, or which cluster")
    parser.add_argument("--shard", default="0/1", help="this shard, and how many there are")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    options = parser.parse_args(arguments)
    wanted = Progress(options.first, options.count, options.shard, kind=options.kind)
    progress = load(options.state, wanted)
    go_on(progress, options.state, time.monotonic() + options.minutes * 60)
    print(
        f"{progress.kind}: {progress.place:,} of {len(progress.seeds()):,} seeds, "
        f"{len(progress.failed)} failed, "
        f"{progress.steps:,} switch points, {progress.cpu_seconds:,.0f} s of CPU"
    )
    return bool(progress.failed)


if __name__ == "__main__":
    sys.exit(main())
