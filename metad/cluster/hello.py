"""The first frame of both sides of a link, and who is refused.

Rules of this file:

* A reason for a refusal is written for both logs: it names the nodes and what to do.
* Only a member of our own view, with the certificate that the view has for it, can tell us another
  view.  A removed member keeps its certificate and the cluster's CA; neither gets it in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from metad.cluster.frames import FrameError
from metad.cluster.view import DIGEST_SIZE, MOST_EPOCH, MOST_NUMBER, Membership, View

# The protocols that this release speaks.  Neighbouring releases share one.
PROTOCOLS = (1, 1)
MOST_HELLO = 1024
START_SIZE = 8


class Hello(NamedTuple):
    """`start` is drawn at random by each process; `hub_time_us` is this node's clock.

    `told`, `heard`: marks (metad.cluster.old_disks); commands, and releases before them, send none.
    `command`: this is `metad cluster status` or the like, which goes in a moment.
    `etcd`: the one that this node trusts, and that has answered it lately; 0: none.
    """

    least: int
    most: int
    release: str
    cluster: str
    number: int
    start: bytes
    epoch: int
    digest: bytes
    hub_time_us: int
    told: bytes = b""
    heard: bytes = b""
    command: bool = False
    etcd: int = 0

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(self._asdict())
        return packed


_KINDS: dict[str, type] = {
    "least": int,
    "most": int,
    "release": str,
    "cluster": str,
    "number": int,
    "start": bytes,
    "epoch": int,
    "digest": bytes,
    "hub_time_us": int,
    "told": bytes,
    "heard": bytes,
    "command": bool,
    "etcd": int,
}
_OPTIONAL = frozenset(Hello._field_defaults)


def unpack(body: bytes) -> Hello:
    """Unknown fields are skipped: a later release may have more.  Raises FrameError."""
    if len(body) > MOST_HELLO:
        raise FrameError("a HELLO is too long")
    try:
        found: Any = msgpack.unpackb(body, max_map_len=64, max_array_len=64)
        values = {name: found[name] for name in _KINDS if name in found or name not in _OPTIONAL}
    except Exception:
        raise FrameError("a HELLO cannot be read") from None
    for name, value in values.items():
        if type(value) is not _KINDS[name]:
            raise FrameError(f"a HELLO has a bad {name}")
    hello = Hello(**values)
    if not (1 <= hello.number <= MOST_NUMBER and 1 <= hello.epoch <= MOST_EPOCH):
        raise FrameError("a HELLO has a bad number or epoch")
    if len(hello.digest) != DIGEST_SIZE or len(hello.start) != START_SIZE:
        raise FrameError("a HELLO has a bad digest or start")
    return hello


def fault(hello: Hello, mine: Hello, view: View, fingerprint: str, dialed: int) -> str | None:
    """Why a peer is refused, None if it is not.  `dialed`: the member that was called, or 0."""
    if hello.most < mine.least or hello.least > mine.most:
        return (
            f"no common protocol: release {hello.release} speaks {hello.least} to {hello.most}, "
            f"release {mine.release} {mine.least} to {mine.most}"
        )
    if hello.cluster != view.cluster:
        return f"another cluster: {hello.cluster[:8]} and {view.cluster[:8]}"
    if dialed and hello.number != dialed:
        return f"node {hello.number} answers at the address of node {dialed}"
    if hello.number == mine.number:
        return f"both are node {mine.number}: a copy of a node, or a wrong address"
    reason = member_fault(view, hello.number, fingerprint) or own_fault(view, mine.number)
    if reason is None and hello.epoch == view.epoch and hello.digest != view.digest:
        return two_views(view.epoch)
    return reason


def member_fault(view: View, number: int, fingerprint: str) -> str | None:
    """Why a peer is no member of our view."""
    member = view.member(number)
    if member is None:
        return f"node {number} is not in the view of epoch {view.epoch}"
    if member.state is Membership.REMOVED:
        return f"node {number} was removed from the cluster; empty it and join again"
    if member.fingerprint != fingerprint:
        return f"node {number} does not have the certificate of the view of epoch {view.epoch}"
    return None


def own_fault(view: View, number: int) -> str | None:
    member = view.member(number)
    if member is None or member.state is Membership.REMOVED:
        return f"node {number} was removed from the cluster; empty it and join again"
    return None


def two_views(epoch: int) -> str:
    return (
        f"there are two views of epoch {epoch}; on the node whose view is to win, "
        "use `metad cluster alone` once more"
    )
