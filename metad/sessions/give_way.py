"""When connections are scarce, idle clients give way to new ones.

Above 80 % of the cap, clients that have been idle longest outside a transaction, or before login,
are disconnected: they lose nothing, and can reconnect.  Each worker disconnects its share once a
second.

Rule of this file: a client that has just connected gets some seconds to send a command.
"""

from __future__ import annotations

import math

from metad import limits
from metad.sessions.context import WorkerContext


def give_way(context: WorkerContext, now: float) -> int:
    """End as many idle sessions as there are connections above the share.  Returns their number."""
    share = context.limiter.share_above
    if not share:
        return 0
    idle = []
    ending = 0  # they still count: their last reply is being sent
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
