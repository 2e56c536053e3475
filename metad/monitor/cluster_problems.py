"""What is wrong with a node of a cluster, and what to do about it.

refusing    this node takes no new mail; in most cases no logins either
degraded    logins alone are refused, a node is away, or mail is short of copies
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from metad.monitor.problem import Problem
from metad.system.node_standing import Obstacle, Short, Standing, nodes

LOGINS: Final = "POP3 logins"
# Why, and what to do.
_FIXED: Final = {
    Obstacle.OLD_DISK: (
        "this node has an old copy of its disk, or runs twice",
        "metad cluster status shows the reason; stop it, empty its data directory, join again",
    ),
    Obstacle.REMOVED: (
        "this node was removed from its cluster",
        "stop it, empty its data directory, and join again: metad cluster join",
    ),
    Obstacle.ABSENT: (
        "the cluster has gone on without this node",
        "it takes part again when it reaches the others; metad cluster status shows which it does",
    ),
    Obstacle.ENTERING: (
        "this node enters its cluster",
        "wait until it has what it lacks; if this stays, see metad cluster status and the log",
    ),
    Obstacle.NO_WORD: (
        "neither etcd nor enough other nodes answer, so the others may have gone on without this "
        "node",
        "start etcd and the other nodes, or mend the network; metad cluster status shows more",
    ),
}


def problems(standing: Standing, *, with_etcd: bool) -> Iterator[Problem]:
    """Each is reported once: who is silent is not told again beside a refusal for that."""
    yield from _refusals(standing, with_etcd=with_etcd)
    found = (standing.mail, standing.logins)
    if Obstacle.OLD_DISK in found or Obstacle.REMOVED in found:
        return
    if standing.silent and Obstacle.FEW not in found:
        silent = nodes(standing.silent)
        yield Problem(
            f"{silent} of the cluster {_do(standing.silent)} not answer",
            f"start {silent}, or mend the network; metad cluster status shows why",
        )
    if standing.absent and Obstacle.ABSENT not in found:
        yield _of_absent(standing, with_etcd=with_etcd)
    yield from _copies(standing)


def _refusals(standing: Standing, *, with_etcd: bool) -> Iterator[Problem]:
    mail, logins = standing.mail, standing.logins
    if mail is not Obstacle.NONE:
        also = LOGINS if logins is mail else "deletions"
        why, remedy = _reason(mail, standing, with_etcd=with_etcd)
        text = f"{why}: new mail and {also} are refused"
        yield Problem(text, remedy, refuses=True, since=standing.mail_since)
    if logins not in (Obstacle.NONE, mail):
        why, remedy = _reason(logins, standing, with_etcd=with_etcd)
        yield Problem(f"{why}: {LOGINS} are refused", remedy, since=standing.logins_since)


def _reason(obstacle: Obstacle, standing: Standing, *, with_etcd: bool) -> tuple[str, str]:
    if obstacle is Obstacle.FEW:
        return _few(standing)
    if obstacle is not Obstacle.AWAY:
        return _FIXED[obstacle]
    away = nodes(standing.unhealed)
    lost = "; what is lost for good: metad cluster remove --lossy" if with_etcd else ""
    return f"{away} may have mail that no other node has", f"start {away}{lost}"


def _few(standing: Standing) -> tuple[str, str]:
    remedy = "if the others will not be back soon: metad cluster alone"
    if not standing.silent:
        return "too few nodes of the cluster are active", f"start another node; {remedy}"
    silent = nodes(standing.silent)
    return (
        f"too few nodes of the cluster answer, {silent} {_do(standing.silent)} not",
        f"start {silent}, or mend the network; {remedy}",
    )


def _do(numbers: tuple[int, ...]) -> str:
    return "does" if len(numbers) == 1 else "do"


def _of_absent(standing: Standing, *, with_etcd: bool) -> Problem:
    absent = nodes(standing.absent)
    remedy = f"start {absent} again"
    if with_etcd:
        remedy += f"; if lost, join a new node, or: metad cluster remove {standing.absent[0]}"
    else:
        remedy += "; if lost, let a new machine join at the same address"
    be = "is" if len(standing.absent) == 1 else "are"
    return Problem(f"{absent} {be} absent: the other nodes have gone on", remedy)


def _copies(standing: Standing) -> Iterator[Problem]:
    if standing.short is Short.NEW and standing.mail is Obstacle.NONE:
        yield Problem("new mail has one copy only", "start another node of the cluster")
    elif standing.short is Short.OLD:
        yield Problem(
            "some mail is short of copies: it is being copied",
            "wait until metad cluster status shows none",
        )
