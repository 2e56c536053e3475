"""Checks of a node of a cluster: which members answer, and etcd.

What the node refuses for that is among the problems of its hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metad import __version__
from metad.cli.cluster.overview import ask_directory
from metad.cli.cluster.status import Reached, found
from metad.cli.doctor.result import Result, ok, warning
from metad.cluster.view import Membership
from metad.config.model import ClusterConfig

MORE = "metad cluster status shows more"


def check_cluster(config: ClusterConfig, data: Path, *, running: bool) -> Iterator[Result]:
    """Asks each member, as `metad cluster status` does.  Raises UnavailableError, ClusterError,
    ConfigError, OSError."""
    view, number, members = found(data, __version__)
    silent = [one for one in members if not one.is_up and one.state != Membership.REMOVED]
    for one in silent:
        yield _of_silent(one, number)
    etcd = ask_directory(data) if config.etcd and running else None
    if etcd is not None and not etcd.has_word:
        yield warning("cluster", f"etcd: {etcd.line()}", f"start etcd, or mend the network; {MORE}")
    elif not silent:
        yield ok("cluster", f"node {number}, epoch {view.epoch}: all members answer")


def _of_silent(one: Reached, own: int) -> Result:
    if one.number == own:
        return warning("cluster", f"this node is {one.link}", "see docs/cluster.md, Old disks")
    return warning(
        "cluster", f"node {one.number} at {one.address} cannot be reached: {one.link}",
        f"start it, or mend the network; {MORE}",
    )  # fmt: skip
