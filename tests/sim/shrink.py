"""Reduces a failing plan as far as it still fails: operations, kills, failures.

Leaving something out changes the scheduler's later decisions, so this is a search: first whole
ranges are left out, then single items, until nothing more can be or enough has been tried.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.kinds import make_run
from tests.sim.plan import Plan

MOST_TRIES = 400
PARTS = ("kills", "failures", "stalls", "ops")
Fails = Callable[[Plan], bool]


def fails(plan: Plan) -> bool:
    return why(plan) is not None


def why(plan: Plan) -> str | None:
    """The failure of a run of the plan; None: it passes."""
    try:
        make_run(plan).go()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def shrink(plan: Plan, is_bad: Fails = fails, most: int = MOST_TRIES) -> Plan:
    """The smallest failing plan found."""
    left = [most]

    def tried(smaller: Plan) -> bool:
        left[0] -= 1
        return left[0] >= 0 and is_bad(smaller)

    while left[0] > 0:
        before = plan
        for part in PARTS:
            plan = _without(plan, part, tried)
        if plan == before:
            break
    return plan


def _without(plan: Plan, part: str, is_bad: Fails) -> Plan:
    """Leave out ranges of one part, the longest first."""
    size = max(len(getattr(plan, part)), 1)
    while size:
        at = 0
        while at < len(getattr(plan, part)):
            items = getattr(plan, part)
            smaller = plan._replace(**{part: items[:at] + items[at + size :]})
            if is_bad(smaller):
                plan = smaller
            else:
                at += size
        size //= 2
    return plan


def show(plan: Plan) -> str:
    """A plan for people."""
    lines = [f"seed {plan.seed}, logs of {plan.log_size} bytes"]
    lines += [f"  {number}. {op}" for number, op in enumerate(plan.ops, 1)]
    lines += [f"  killed: a {role}, {place or 'anywhere'}, the {count}. time"
              for role, place, count in plan.kills]  # fmt: skip
    lines += [f"  fails: {kind} of a {role}, the {count}. one ({error})"
              for role, kind, count, error in plan.failures]  # fmt: skip
    lines += [f"  stops: a {role}, the {count}. switch point, for {seconds} s"
              for role, count, seconds in plan.stalls]  # fmt: skip
    return "\n".join(lines)
