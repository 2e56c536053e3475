"""`metad trace`: the dialogs of a client, a user or an address, as they happen."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from metad.cli.attached import Workers
from metad.cli.context import HubLocation, finite, hub_options
from metad.cli.tables import cell
from metad.errors import EX_OK, UnavailableError, UsageError

# How often to look for workers that have started since.
LOOK_SECONDS = 2.0
# A worker may be replaced; without any for this long, the hub is gone.
GONE_SECONDS = 10.0


@click.command()
@click.argument("what", metavar="CLIENT|NETWORK|USER|ADDRESS")
@hub_options
@click.option("--lines", type=click.IntRange(1), metavar="N", help="End after N lines.")
@click.option("--seconds", type=click.FloatRange(0.1), metavar="S", callback=finite,
              help="End after S seconds.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object to a line.")
def trace(
    place: HubLocation, what: str, lines: int | None, seconds: float | None, as_json: bool
) -> int:
    """Follow one client, network, user or address from now on: print the dialog of its sessions.

    Passwords and the content of messages are left out.  Sessions that are open are followed as soon
    as they are between two commands.  An address is found in MAIL, RCPT and USER (with any +tag)
    and by the user who has logged in; the lines of the session before that are printed first.  It
    goes on until ^C, or the limit given.  A hub without a trace pays nothing.

    \b
    Example:
      metad trace 192.0.2.7
      metad trace alice@example.org --seconds 60
    """
    request = {"command": "trace", **_wanted(what)}
    count = 0
    try:
        for line in follow(place.enter(), request, seconds):
            click.echo(json.dumps(line) if as_json else text_of(line))
            count += 1
            if count == lines:
                break
    except KeyboardInterrupt:
        pass
    return EX_OK


def _wanted(what: str) -> dict[str, str]:
    if not what.strip():
        raise UsageError(
            "nothing to follow is named", remedy="give a client, a network, a user or an address"
        )
    try:
        return {"client": str(ipaddress.ip_network(what, strict=False))}
    except ValueError as error:
        if "/" in what and "@" not in what:
            raise UsageError(f"{error}", remedy="give a network such as 192.0.2.0/24") from None
        return {"address": what}


def follow(data: Path, request: dict[str, Any], seconds: float | None) -> Iterator[dict[str, Any]]:
    """The lines of all workers, including those that start later.  Raises UnavailableError."""
    end = time.monotonic() + seconds if seconds else float("inf")
    with Workers(data) as workers:
        workers.send(request)
        looked = seen = time.monotonic()
        while (now := time.monotonic()) < end:
            for worker, line in workers.hear(min(LOOK_SECONDS, end - now)):
                if line is not None and "error" in line:
                    raise UnavailableError(f"{worker.name}: {line['error']}")
                if line is not None:
                    yield line
            now = time.monotonic()
            if now - looked >= LOOK_SECONDS or not workers.open:
                looked = now
                workers.look_again(request)
            seen = now if workers.open else seen
            if now - seen > GONE_SECONDS:
                raise UnavailableError("the hub has stopped", remedy="metad start starts it")


def text_of(line: dict[str, Any]) -> str:
    """A line for people."""
    if "dropped" in line:
        return f"… {line['dropped']:,} lines were dropped: they are not read quickly enough"
    moment = time.localtime(line["time"])
    when = f"{time.strftime('%H:%M:%S', moment)}.{int(line['time'] % 1 * 1000):03}"
    return f"{when} {line['session']} {line['client']} {line['side']}: {cell(line['text'])}"
