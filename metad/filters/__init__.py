"""Filters: they decide whether a message is accepted, between its arrival and the layer.

Rules of this file:

* A filter is found by its name, an entry point of the group "metad.filters" (docs/filters.md);
  "rspamd" is built in.
* Nothing is imported unless it is configured.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metad.config import checks
from metad.config.model import Config
from metad.errors import ConfigError

if TYPE_CHECKING:
    from metad.filters.base import Filter

GROUP = "metad.filters"
RSPAMD = "rspamd"


def configured(config: Config) -> bool:
    """Whether any filter is configured."""
    return bool(config.filter.rspamd or config.filter.use)


@cache
def find(name: str) -> type[Filter]:
    """The class of a filter.  Raises ConfigError if there is none or it cannot be loaded.

    Cached, because nothing can be found after a chroot.
    """
    if name == RSPAMD:
        from metad.filters.rspamd import RspamdFilter

        return RspamdFilter
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        raise ConfigError(f"filter.use: there is no filter {name}; here are {', '.join(names())}")
    try:
        found = points[0].load()
    except Exception as error:
        raise ConfigError(f"filter.use: {name}: cannot be loaded: {error!r}") from None
    from metad.filters.base import Filter

    if not (isinstance(found, type) and issubclass(found, Filter)):
        raise ConfigError(
            f"filter.use: {name}: {points[0].value} is not a metad.filters.base.Filter"
        )
    return found


def names() -> list[str]:
    """The names of all installed filters."""
    return sorted({RSPAMD, *(one.name for one in entry_points(group=GROUP))})


def check(config: Config) -> dict[str, dict[str, Any]]:
    """The filters of a configuration, in order, with complete options.

    Raises ConfigError.
    """
    place = f"{config.source or 'configuration'}: filter"
    given = config.filter.options
    for name in given:
        if name not in config.filter.use:
            raise ConfigError(f"{place}.{name}: filter.use does not name such a filter")
    found: dict[str, dict[str, Any]] = {}
    if RSPAMD in config.filter.use:
        raise ConfigError(f"{place}.use: rspamd is turned on by filter.rspamd")
    for name in config.filter.use:
        try:
            found[name] = find(name).check_options(given.get(name, {}), config.data)
        except ValueError as error:
            raise ConfigError(f"{place}.{name}: {error}") from None
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{place}.{name}: failed: {error!r}") from None
    if config.filter.rspamd is not None:
        found[RSPAMD] = _rspamd(config)
    return found


def _rspamd(config: Config) -> dict[str, Any]:
    from metad.filters.pool import Address

    given = config.filter
    where = checks.address(given.rspamd)
    return {
        "address": Address(where.path, where.host, where.port or 0),
        "connections": given.connections,
        "authserv_id": given.authserv_id or config.hostname,
        "size": given.size,
        "oversize": given.oversize,
        "spam": given.spam,
        "hostname": given.hostname,
    }


def connects(config: Config) -> bool:
    """Whether a filter makes TCP connections.  Raises ConfigError."""
    return any(find(name).connects(options) for name, options in check(config).items())


def places(config: Config) -> list[Path]:
    """Directories and files that the filters use besides DATA.  Raises ConfigError."""
    return [path for name, options in check(config).items() for path in find(name).places(options)]
