"""`metad gc`: collect garbage now, and report what was freed."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.progress import Progress
from metad.config.checks import show_size
from metad.control_client import Client
from metad.errors import OsError

ASK_SECONDS = 0.2
_FIGURES = ("logs_freed", "bytes_freed", "bytes_moved", "failed", "damaged", "expired", "in_use")


@click.command()
@hub_options
@click.option(
    "--full",
    is_flag=True,
    help="Collect every log that contains garbage, not only the most profitable ones.",
)
@json_option
def gc(place: HubLocation, full: bool, as_json: bool) -> None:
    """Collect garbage now, and wait until it is done.

    The running hub deletes expired mail and the mail of removed users.  Then it collects sealed
    logs: it moves live mail together and frees the logs for new mail.  It serves clients in the
    meantime.  The exit code is 71 if a log could not be collected.

    \b
    Example:
      metad gc --full
    """
    with Client(place.enter()) as client:
        before = client.request("gc", full=full)
        done = _sums(before)
        last = before
        progress = Progress("logs", quiet=as_json)
        most = 0
        while last["done"] < before["round"]:
            time.sleep(ASK_SECONDS)
            now = client.request("gc-progress")
            _add(done, last, now)
            last = now
            most = max(most, now["left"])
            progress.show(most - now["left"], most, _moved(now))
        progress.close()
    done["unknown"] = last["unknown"]
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        _show(done)
    if done["failed"]:
        raise OsError(
            f"logs that could not be collected: {done['failed']}", remedy="the hub's log says why"
        )


def _sums(first: dict[str, Any]) -> dict[str, int]:
    return dict.fromkeys((name for name in _FIGURES if name in first), 0)


def _add(sums: dict[str, int], last: dict[str, Any], now: dict[str, Any]) -> None:
    """Add what was done between two replies; a new collector counts from zero."""
    same = last.get("pid") == now.get("pid")
    for name in sums:
        sums[name] += now[name] - (last[name] if same else 0)


def _moved(now: dict[str, Any]) -> str:
    waits = ", waiting for a backup to end" if now["work"] == "waiting" else ""
    return f", {show_size(now['bytes_moved'])} moved{waits}"


def _show(done: dict[str, int]) -> None:
    tables.show_facts(
        {
            "logs freed": done["logs_freed"],
            "bytes freed": show_size(done["bytes_freed"]),
            "bytes moved": show_size(done["bytes_moved"]),
            "logs not collected": done["failed"],
            "damaged records": done["damaged"],
            "messages expired": done["expired"],
            "mailboxes in use": done["in_use"],
            "orphaned mailboxes": done["unknown"],
        }
    )
