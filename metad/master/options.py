"""How a hub is started, apart from its configuration; and the configuration as text.

A `Snapshot` is the text of a configuration file and its path.  `metad reload` sends it to the hub,
and the nanny passes it to each master, whose user may not be allowed to read the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metad import limits
from metad.config.model import Config
from metad.config.parse import parse
from metad.errors import ConfigError
from metad.system.log_file import LogFile
from metad.system.pidfile import PidFile


class Snapshot(NamedTuple):
    """The text of a configuration file, and its path (None: there is none)."""

    content: str
    source: str | None

    def parse(self, data: Path) -> Config:
        """Raises ConfigError."""
        return parse(self.content, Path(self.source) if self.source else None, data, {})

    def as_json(self) -> dict[str, Any]:
        return {"content": self.content, "source": self.source}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Snapshot:
        """Raises ConfigError."""
        content, source = given.get("content"), given.get("source")
        if not isinstance(content, str) or not isinstance(source, str | None):
            raise ConfigError("not a configuration")
        return cls(content, source)


class SnapshotFile:
    """The latest snapshot in an unnamed file, which the next master starts with."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls, snapshot: Snapshot) -> SnapshotFile:
        """Inherited over an exec.  Raises OSError."""
        made = cls(os.memfd_create("metad configuration", 0))
        made.write(snapshot)
        return made

    def write(self, snapshot: Snapshot) -> None:
        data = json.dumps(snapshot.as_json()).encode()
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)

    def read(self) -> Snapshot:
        """Raises ConfigError, OSError."""
        try:
            found = json.loads(os.pread(self.fd, 8 * limits.CONFIG_FILE, 0))
        except ValueError as error:
            raise ConfigError(f"configuration snapshot: {error}") from None
        return Snapshot.from_json(found)


@dataclass(frozen=True, slots=True)
class Options:
    """`nanny`: the pid of the nanny, or 0; `ready` is called once, when the hub is ready."""

    pid_file: PidFile = field(default_factory=PidFile)
    log_file: LogFile = field(default_factory=LogFile)
    nanny: int = 0
    snapshot: SnapshotFile | None = None
    ready: Callable[[], None] = lambda: None
