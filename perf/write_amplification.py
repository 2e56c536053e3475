"""How often the collector rewrites the same mail: a simulated month, with and without generations.

The collector's own choice of victims (metad.store.gc.policy) works on a model of logs: mail arrives
at a rate that depends on the hour, each message lives as long as the mix says, and the number of
logs makes the given share of their space live on average.  The collector works like the hub's:
while space is short and, if the run says so, in the idle hours of the night.

    write amplification = (octets that came + octets that the collector moved) / octets that came

    python -m perf.write_amplification                  a month at 70 %, about two minutes
    python -m perf.write_amplification --days 5 --logs 120

Nothing is written to a disk but perf/results/write-amplification-DATE.{json,txt}.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metad.limits import ENOUGH_SPACE, GARBAGE, LOW_SPACE
from metad.store.gc.policy import OLDEST, GcPolicy, choose
from metad.store.log_table import LogState, Row
from metad.workers.collector import SCARCE
from perf import harness

RESULTS = Path(__file__).parent / "results"
DAY = 86_400.0
# Share of the mail, mean seconds until its mailbox deletes it (exponential).
MIX = ((0.70, 0.25 * DAY), (0.20, 1.5 * DAY), (0.10, 14 * DAY))
_SHARES, _MEANS = zip(*MIX, strict=True)
MEAN_LIFE = sum(share * mean for share, mean in MIX)
NIGHT = range(1, 5)  # hours in which the hub is idle enough
OLDER = GcPolicy(1).older
PLAIN = 1  # generations of a collector that has only "new" and "survivor"


@dataclass(frozen=True, slots=True)
class Policy:
    """`generations` of survivors; 0: survivors go in with new mail."""

    name: str
    generations: int
    older: float = 1.0
    nights: bool = False
    score: str = "ours"


POLICIES = (
    Policy("no generations, survivors among new mail", 0),
    Policy("no generations, survivors apart", PLAIN),
    Policy("generational", OLDEST, OLDER),
    Policy("no generations, choice of LFS", 0, score="lfs"),
    Policy("generational, choice of LFS", OLDEST, OLDER, score="lfs"),
    Policy("generational, emptiest log first", OLDEST, OLDER, score="greedy"),
    Policy("no generations, survivors among new mail, nights too", 0, nights=True),
    Policy("generational, nights too (as the hub does)", OLDEST, OLDER, nights=True),
)


@dataclass(slots=True)
class Log:
    """A log of the model: each message is the second in which it dies."""

    number: int
    generation: int
    life: int
    deaths: list[float] = field(default_factory=list)
    sealed: bool = False

    def live(self, now: float) -> int:
        return sum(death > now for death in self.deaths)


class Lfs(GcPolicy):
    """As log-structured file systems choose."""

    def score(self, row: Row, now: int) -> float:
        live = self.live_share(row)
        return (1 - live) * max(now - row.life, 1) / (1 + live)


class Greedy(GcPolicy):
    """The emptiest first, whatever its age."""

    def score(self, row: Row, now: int) -> float:
        return 1 - self.live_share(row)


TASTES = {"ours": GcPolicy, "lfs": Lfs, "greedy": Greedy}


class Model:
    """A store of `logs` logs of `size` messages each, under one policy."""

    def __init__(self, policy: Policy, logs: int, size: int, share: float, seed: int) -> None:
        self._policy = policy
        self._logs = logs
        self._size = size
        self._rng = random.Random(seed)
        # So many messages a second that `share` of all space is live on average.
        self._rate = share * logs * size / MEAN_LIFE
        self._all: dict[int, Log] = {}
        self._open: dict[int, Log] = {}
        self._next = 0
        self.now = 0.0
        self.came = self.moved = self.collected = self.refused = 0

    # -- mail

    def run(self, days: float, warm_up: float) -> None:
        """What comes in the first `warm_up` days is not counted."""
        step = self._size / self._rate / 4
        while self.now < (days + warm_up) * DAY:
            hour = self.now / 3600 % 24
            rate = self._rate * (1 + 0.9 * math.sin((hour - 9) / 24 * 2 * math.pi))
            for _ in range(max(int(rate * step + self._rng.random()), 0)):
                self._arrive()
            self.now += step
            self._collect(int(hour) in NIGHT)
            if self.now < warm_up * DAY:
                self.came = self.moved = self.collected = self.refused = 0

    def _arrive(self) -> None:
        (mean,) = self._rng.choices(_MEANS, _SHARES)
        self._put(0, self.now + self._rng.expovariate(1 / mean))
        self.came += 1

    def _put(self, generation: int, death: float) -> None:
        log = self._open.get(generation)
        if log is None or len(log.deaths) == self._size:
            if log is not None:
                log.sealed = True
            log = self._open[generation] = self._new(generation)
        log.deaths.append(death)

    def _new(self, generation: int) -> Log:
        self._next += 1
        self.refused += len(self._all) >= self._logs
        log = self._all[self._next] = Log(self._next, generation, int(self.now))
        return log

    # -- the collector

    @property
    def _free(self) -> float:
        return 1 - len(self._all) / self._logs

    def _collect(self, night: bool) -> None:
        make = TASTES[self._policy.score]
        if self._free * 100 < LOW_SPACE:
            taste = make(self._size, SCARCE, 1.0)
            while self._free * 100 < ENOUGH_SPACE and self._empty_one(taste):
                pass
        if night and self._policy.nights:
            taste = make(self._size, GARBAGE / 100, self._policy.older)
            while self._empty_one(taste):
                pass

    def _empty_one(self, taste: GcPolicy) -> bool:
        row = choose(self._rows(), taste, int(self.now))
        if row is None:
            return False
        log = self._all.pop(row.number)
        alive = [death for death in log.deaths if death > self.now]
        for death in alive:
            self._put(min(log.generation + 1, self._policy.generations), death)
        self.moved += len(alive)
        self.collected += 1
        return True

    def _rows(self) -> Iterator[Row]:
        for log in self._all.values():
            if log.sealed:
                live = log.live(self.now)
                used = len(log.deaths)
                yield Row(
                    log.number, LogState.SEALED, log.life, log.generation, 0, used, live, live
                )

    def live_share(self) -> float:
        return sum(log.live(self.now) for log in self._all.values()) / self._logs / self._size


def measure(policy: Policy, options: argparse.Namespace) -> dict[str, Any]:
    model = Model(policy, options.logs, options.size, options.live / 100, options.seed)
    model.run(options.days, options.warm_up)
    return {
        **asdict(policy),
        "write_amplification": round(1 + model.moved / model.came, 3),
        "came": model.came,
        "moved": model.moved,
        "logs_collected": model.collected,
        "live_at_the_end": round(model.live_share(), 3),
        "beyond_the_space": model.refused,
    }


def text(found: dict[str, Any]) -> str:
    """The table, and what it means only together with."""
    machine, options = found["machine"], found["options"]
    lines = [
        f"{' '.join(machine['command'])}   {machine['date']}   {machine['cpu']}",
        f"{options['days']} days, {options['logs']} logs of {options['size']} messages, "
        f"{options['live']} % live, seed {options['seed']}",
        "mix: " + ", ".join(f"{s:.0%} live {m / DAY:g} days on average" for s, m in MIX),
        "",
        f"{'writes':>7}  {'moved':>9}  {'logs':>6}  policy",
    ]
    lines += [
        f"{one['write_amplification']:7.3f}  {one['moved']:9,}  {one['logs_collected']:6,}  "
        f"{one['name']}"
        for one in found["policies"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write amplification of the collector.")
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=20, help="days before those that count")
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--size", type=int, default=200, help="messages in a log")
    parser.add_argument("--live", type=float, default=70, help="per cent of the space")
    parser.add_argument("--seed", type=int, default=1999)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": harness.machine(options.results.parent),
        "options": {k: v for k, v in vars(options).items() if k != "results"},
        "policies": [measure(policy, options) for policy in POLICIES],
    }
    print(text(found), end="")
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"write-amplification-{found['machine']['date'][:10]}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text(found))


if __name__ == "__main__":
    main()
