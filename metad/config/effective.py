"""A configuration as an equivalent TOML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from metad.config.checks import show_value, shown
from metad.config.model import Config
from metad.config.settings import SETTINGS, TABLES

HIDDEN = "(hidden)"
# Options of layers and filters whose values only the hub may see.
_SECRET = re.compile(r"pass(word|wd|phrase)?$|secret|token|credential|(^|_)key$", re.IGNORECASE)


def effective(loaded: Config, *, hide: bool = False) -> Iterator[str]:
    """The lines of a TOML file equivalent to `loaded`.  `hide`: without passwords and the like."""
    yield from _table("", loaded)
    for listener in loaded.listen:
        yield from ("", "[[listen]]", *_table("listen", listener))
    for name in TABLES:
        yield from ("", f"[{name}]", *_table(name, getattr(loaded, name)))
    for domain in loaded.domain:
        yield from ("", "[[domain]]", *_table("domain", domain))
    if loaded.layer:
        yield from ("", "[layer]", *_options(loaded.layer, hide))
    for name, table in loaded.filter.options.items():
        yield from ("", f"[filter.{name}]", *_options(table, hide))


def _table(name: str, values: object) -> Iterator[str]:
    for setting in SETTINGS:
        if setting.table == name:
            value = getattr(values, setting.name)
            if value is not None:
                yield f"{setting.name} = {show_value(shown(setting.check, value))}"


def _options(table: Mapping[str, Any], hide: bool) -> Iterator[str]:
    for name, value in table.items():
        given = HIDDEN if hide and _SECRET.search(name) else value
        yield f"{name} = {show_value(given)}"
