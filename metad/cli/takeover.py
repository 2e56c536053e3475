"""`metad reload` after an upgrade: wait for the new release to take over."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import click

from metad import __version__
from metad.cli.progress import Progress
from metad.control_client import request
from metad.errors import UnavailableError

# States of a hub that is not serving yet, or no longer.
_BETWEEN = ("recovering", "starting", "draining", "closing", "ended")
LOOK_SECONDS = 0.1


def wait(data: Path, since: float, seconds: float, *, quiet: bool = False) -> None:
    """Wait until the hub that started after `since` (monotonic) serves.

    Raises UnavailableError.
    """
    progress = Progress("seconds", quiet=quiet)
    while (left := since + seconds - time.monotonic()) > 0:
        progress.show(0, 0, f"waiting for the new release, at most {left:.0f} s left")
        with suppress(UnavailableError):
            found = request(data, "status")
            young = found["uptime"] <= time.monotonic() - since
            if young and found["state"] not in _BETWEEN:
                progress.close()
                return
        time.sleep(LOOK_SECONDS)
    progress.close()
    raise UnavailableError(
        f"{data}: no hub has taken over within {seconds:g} s", remedy="the hub's log says why"
    )


def show(before: str, as_json: bool) -> None:
    """`before` is the release that has ended."""
    if as_json:
        click.echo(json.dumps({"takeover": True, "from": before, "to": __version__}))
    else:
        click.echo(f"metad {__version__} has taken over from {before}")
