"""`metad gc`: collect garbage now, and say what it freed."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options
from metad.config.checks import show_size
from metad.control import Client

ASK_SECONDS = 0.2
_FIGURES = ("logs_freed", "octets_freed", "octets_moved", "damaged", "expired", "in_use")


@click.command()
@hub_options
@click.option("--full", is_flag=True, help="Every log in which anything is dead, not the best.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(place: HubLocation, full: bool, as_json: bool) -> None:
    """Have the running hub collect garbage now, and wait until it has.

    Mail that is older than its user's expiry goes, and that of removed users.  Then sealed logs are
    emptied: mail that somebody still has moves together, and the logs are free for new mail.  The
    hub serves all the while.
    """
    with Client(place.enter()) as client:
        before = client.request("gc", full=full)
        done = _sums(before)
        last = before
        while last["done"] < before["round"]:
            time.sleep(ASK_SECONDS)
            now = client.request("gc-progress")
            _add(done, last, now)
            last = now
            _show_progress(now)
    done["unknown"] = last["unknown"]
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        _show(done)


def _sums(first: dict[str, Any]) -> dict[str, int]:
    return dict.fromkeys((name for name in _FIGURES if name in first), 0)


def _add(sums: dict[str, int], last: dict[str, Any], now: dict[str, Any]) -> None:
    """Add what was done between two answers; a new collector counts from nothing."""
    same = last.get("pid") == now.get("pid")
    for name in sums:
        sums[name] += now[name] - (last[name] if same else 0)


def _show_progress(now: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        waits = ", waiting for the end of a backup" if now["work"] == "waiting" else ""
        text = f"{now['left']} logs left, {show_size(now['octets_moved'])} moved{waits}"
        click.echo(f"\r\033[K{text}", nl=now["left"] == 0, err=True)


def _show(done: dict[str, int]) -> None:
    tables.show_facts(
        {
            "logs freed": done["logs_freed"],
            "octets freed": show_size(done["octets_freed"]),
            "octets moved": show_size(done["octets_moved"]),
            "damaged records": done["damaged"],
            "messages expired": done["expired"],
            "mailboxes in use": done["in_use"],
            "mailboxes of nobody": done["unknown"],
        }
    )
