"""Runs the commands of a hub's user in a forked child."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.hub import Hub


def metad(
    hub: Hub, *arguments: str, given: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """As `Hub.run`: what the command gave."""
    return hub.run_forked(*arguments, given=given, check=check)


def owned(hub: Hub, path: Path) -> Path:
    """A file of the test's that the hub's owner may read."""
    path.chmod(0o644)
    return path
