"""Back ends: where accepted mail goes and where a mailbox's mail comes from.

Rules of this file:

* A layer is found by name: a built-in one, else the entry point of that name in the group
  "metad.layers" (docs/layers.md).  A built-in layer cannot be replaced.
* Nothing is imported before it is needed.  Any exception of a foreign package becomes one line.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metad.config.model import Config
from metad.errors import ConfigError

if TYPE_CHECKING:
    from metad.layers.base import Layer

GROUP = "metad.layers"
OWN = {
    "log": ("metad.layers.logs", "LogLayer"),
    "null": ("metad.layers.null", "NullLayer"),
    "sort": ("metad.layers.sort", "SortLayer"),
}
CLUSTERED = ("metad.layers.cluster", "ClusterLayer")
WITH_ETCD = ("metad.layers.cluster_with_etcd", "EtcdClusterLayer")


@cache
def find(name: str) -> type[Layer]:
    """The class of a layer.  Raises ConfigError if there is none or it cannot be loaded.

    Cached, because nothing can be found after a chroot.
    """
    if name in OWN:
        module, attribute = OWN[name]
        own: type[Layer] = getattr(import_module(module), attribute)
        return own
    foreign = _entry_point(name)
    try:
        found = foreign.load()
    except Exception as error:
        raise ConfigError(f"store.layer: {name}: cannot be loaded: {error!r}") from None
    from metad.layers.base import Layer

    if not (isinstance(found, type) and issubclass(found, Layer)):
        raise ConfigError(f"store.layer: {name}: {foreign.value} is not a metad.layers.base.Layer")
    return found


def of_worker(config: Config) -> type[Layer]:
    """The class that a worker uses: on a cluster node, the one that copies mail to the other
    nodes."""
    if config.cluster.address is None:
        return find(config.store.layer)
    module, name = WITH_ETCD if config.cluster.etcd else CLUSTERED
    clustered: type[Layer] = getattr(import_module(module), name)
    return clustered


def names() -> list[str]:
    """The names of all installed layers."""
    return sorted({*OWN, *(one.name for one in entry_points(group=GROUP))})


def check(config: Config) -> dict[str, Any]:
    """Check that the configured layer exists and accepts its settings; return them with defaults.

    Raises ConfigError.
    """
    layer = find(config.store.layer)
    place = f"{config.source or 'configuration'}: layer"
    try:
        return layer.check_options(config.layer, config.data)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{place}: {config.store.layer} failed: {error!r}") from None


def directories(config: Config) -> list[Path]:
    """The directories that the layer needs besides the data directory, created if missing.

    Raises ConfigError.
    """
    wanted = find(config.store.layer).directories(check(config))
    outside = [one for one in wanted if not one.is_relative_to(config.data)]
    for one in outside:
        try:
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"layer: {one}: {error.strerror}") from None
    return outside


def _entry_point(name: str) -> EntryPoint:
    for one in entry_points(group=GROUP, name=name):
        return one
    raise ConfigError(f"store.layer: there is no layer {name}; here are {', '.join(names())}")
