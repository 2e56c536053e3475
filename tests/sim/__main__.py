"""Runs seeds by hand: see the package's docstring."""

from __future__ import annotations

import argparse
import sys

from tests.sim.kinds import KINDS, make_run
from tests.sim.mutants import MUTANTS
from tests.sim.plan import Plan
from tests.sim.shrink import show, shrink, why


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--kind", choices=KINDS, default="hub", help="a hub, or which cluster")
    parser.add_argument("--count", type=int, default=1, help="so many seeds from there on")
    parser.add_argument("--shrink", action="store_true", help="make the plan as small as it fails")
    parser.add_argument("--trace", action="store_true", help="print every switch point")
    parser.add_argument("--mutant", default="", help="with this bug (a part of its name)")
    options = parser.parse_args()
    for mutant in MUTANTS:
        if options.mutant and options.mutant in mutant.name:
            print(f"mutant: {mutant.name}")
            mutant.apply()
    bad, make_plan = 0, KINDS[options.kind]
    for seed in range(options.seed, options.seed + options.count):
        reason = why(make_plan(seed))
        if reason is None:
            continue
        bad += 1
        print(f"seed {seed}: {reason}")
        if options.shrink:
            plan = shrink(make_plan(seed))
            print(show(plan), f"{why(plan)}", sep="\n")
            show_run(plan, trace=options.trace)
        elif options.count == 1:
            show_run(make_plan(seed), trace=options.trace)
    print(f"{options.count} seeds, {bad} failed")
    return bool(bad)


def show_run(plan: Plan, *, trace: bool) -> None:
    """What happened, in order."""
    run = make_run(plan, trace=trace)
    try:
        run.go()
    except Exception:
        pass
    print("\n".join(run.trace if run.trace is not None else run.notes))


if __name__ == "__main__":
    sys.exit(main())
