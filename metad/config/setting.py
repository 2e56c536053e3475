"""One key of the configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metad.config.checks import Check


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file: `table` is "" for the top, "listen" for each [[listen]].

    `default` has the form of the file; None means that the key is not set.
    """

    table: str
    name: str
    check: Check
    default: Any
    doc: str

    @property
    def key(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name
