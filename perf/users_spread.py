"""Seconds until a changed password holds on the other nodes of a cluster with etcd.

    sh tools/perf users_spread [--changes 200]

Three hubs and one etcd on this machine (etcd from PATH), made by commands.  A password is changed
on each node in turn, as `metad user passwd` does it.  From its return on it is measured, for each
other node: until its mirror has the change, and until a POP3 client has logged in there with the
new password.  After every tenth change the old password is tried on all nodes, and must fail.

Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from metad.errors import MetadError
from metad.users.database import UserDatabase
from metad.users.directory_client import open_users
from tests.support.clients import Pop3Line
from tests.support.etcd_hubs import EtcdNode, three_nodes
from tests.support.hub import DEADLINE, address

USER = "ann"
LOOK_S = 0.0002
OLD_PASSWORDS = 10  # every tenth is tried once more
Figures = dict[str, Any]


def answer(node: EtcdNode, password: str, source: str = "127.0.0.1") -> bytes:
    """To PASS."""
    with Pop3Line(node, source) as pop:
        pop.say(f"USER {address(USER)}")
        pop.send(f"PASS {password}\r\n".encode())
        found: bytes = pop.line()
        if found.startswith(b"+OK"):
            pop.say("QUIT")
        return found


def wait(users: UserDatabase, version: int, since: float) -> float:
    """Seconds until the mirror has this version of the password."""
    while True:
        found = users.account(address(USER))
        now = time.perf_counter()
        if found is not None and found.password_version >= version:
            return now - since
        if now - since > DEADLINE:
            raise SystemExit("a node does not get the change")
        time.sleep(LOOK_S)


def log_in(node: EtcdNode, password: str, since: float) -> float:
    """Seconds until a client is in."""
    while not answer(node, password).startswith(b"+OK"):
        if time.perf_counter() - since > DEADLINE:
            raise SystemExit("a node refuses the new password")
    return time.perf_counter() - since


def measure(nodes: Sequence[EtcdNode], changes: int) -> Figures:
    change: list[float] = []
    mirrored: list[float] = []
    logged_in: list[float] = []
    old = "secret"
    with ExitStack() as stack:
        users = [stack.enter_context(open_users(node.data / "users")) for node in nodes]
        for number in range(changes):
            at, new = number % len(nodes), f"new-{number}"
            began = time.perf_counter()
            version = users[at].set_password(address(USER), new.encode()).password_version
            since = time.perf_counter()
            change.append(since - began)
            others = [other for other in range(len(nodes)) if other != at]
            mirrored += [wait(users[other], version, since) for other in others]
            logged_in += [log_in(nodes[other], new, since) for other in others]
            if number % OLD_PASSWORDS == 0:
                refuse(nodes, old, number)
            old = new
    return {
        "changes": changes,
        "load": round(os.getloadavg()[0], 1),
        **spread("change", change),
        **spread("mirrored", mirrored),
        **spread("logged_in", logged_in),
    }


def refuse(nodes: Sequence[EtcdNode], old: str, number: int) -> None:
    """From addresses of their own: failed logins of one are delayed."""
    for at, node in enumerate(nodes, 1):
        if not (found := answer(node, old, f"127.1.{number % 250}.{at}")).startswith(b"-ERR"):
            raise SystemExit(f"the old password holds still: {found!r}")


def spread(name: str, seconds: Sequence[float]) -> Figures:
    ordered = sorted(seconds)
    figures = {
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }
    return {f"{name}_{what}_ms": round(value * 1000, 2) for what, value in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=200)
    given = parser.parse_args()
    try:
        with three_nodes([USER]) as trio:
            print(json.dumps(measure(trio.nodes, given.changes)))
    except MetadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
