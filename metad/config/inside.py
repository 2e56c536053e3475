"""The configuration as the processes in the chroot see it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from metad.config.model import Config


def inside(config: Config) -> Config:
    """The configuration as a process in the chroot sees it."""
    if config.chroot is None:
        return config
    chroot, cluster = config.chroot, config.cluster

    def seen(path: Path | None) -> Path | None:
        return None if path is None else Path("/") / path.relative_to(chroot)

    files = replace(
        cluster,
        etcd_ca=seen(cluster.etcd_ca),
        etcd_certificate=seen(cluster.etcd_certificate),
        etcd_key=seen(cluster.etcd_key),
    )
    return replace(config, data=Path("/") / config.data.relative_to(chroot), cluster=files)
