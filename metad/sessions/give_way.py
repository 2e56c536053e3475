"""When connections are scarce, idle clients give way to new ones.

Above 80 % of the cap those go that have been idle for longest outside a transaction, or before
login: they lose nothing, and can come again.  Each worker lets its share go, once a second.

Rule of this file: a client that has just connected gets some seconds to say something.
"""

from __future__ import annotations

import math

from metad import limits
from metad.sessions.context import WorkerContext


def give_way(context: WorkerContext, now: float) -> int:
    """End as many idle sessions as connections are above the share; how many it were."""
    share = context.limiter.share_above
    if not share:
        return 0
    idle = []
    ending = 0  # they still count: their last reply is on its way
    for session in context.sessions:
        ending += getattr(session, "has_ended", False)
        since = getattr(session, "idle_since", None)
        if since is not None and now - since >= limits.IDLE_GRACE:
            idle.append((since, id(session), session))
    idle.sort()
    leaving = idle[: max(math.ceil(share * context.limiter.connections - 0.01) - ending, 0)]
    for _, _, session in leaving:
        session.give_way()  # type: ignore[attr-defined]
    return len(leaving)
