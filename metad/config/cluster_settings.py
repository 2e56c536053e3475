"""The settings of the table [cluster]."""

from __future__ import annotations

from typing import Final

from metad import limits
from metad.config import checks
from metad.config.setting import Setting

CLUSTER: Final = (
    Setting(
        "cluster", "address", checks.peer_address, None,
        "Makes the hub a node of a cluster: the IP address and port where the other nodes reach it "
        "(metad(8), `metad cluster`).  Needs `peers` or `etcd`.  Default: none, the hub is alone.",
    ),
    Setting(
        "cluster", "peers", checks.list_of(checks.peer_address), [],
        "Of the other node, for a cluster of two without etcd.",
    ),
    Setting(
        "cluster", "etcd", checks.list_of(checks.etcd_url), [],
        'The endpoints of etcd, such as ["https://10.0.0.1:2379"], for a cluster of any size '
        "instead of `peers`.",
    ),
    Setting(
        "cluster", "etcd_ca", checks.path, None,
        "The CA of etcd's certificates, in PEM.  Required for https.",
    ),
    Setting(
        "cluster", "etcd_certificate", checks.path, None,
        "The certificate that this node shows to etcd, in PEM.  Default: none.",
    ),
    Setting("cluster", "etcd_key", checks.path, None, "The key of `etcd_certificate`, in PEM."),
    Setting(
        "cluster", "absent_after", checks.duration(*limits.CLUSTER_ABSENT_AFTER), "10min",
        "With etcd: how long a member must have been away until the others go on without it.",
    ),
)  # fmt: skip
