"""`metad store logs | dump | check | rebuild`: inspect the store, rebuild its index."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from metad.cli import backup, tables
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.fsck import check as check_store
from metad.cli.fsck import exclusive, rebuilding, report
from metad.cli.progress import Progress
from metad.control_client import Client
from metad.errors import EX_DATAERR, EX_OK, EX_TEMPFAIL, UsageError
from metad.store.fsck.dump import body_octets, dump_log, line_of
from metad.store.fsck.index_snapshot import read_snapshot
from metad.store.fsck.log_check import log_numbers, read_headers
from metad.store.fsck.repair import rebuild_index
from metad.store.identity import Store, open_store
from metad.store.index.rows import LogCounts
from metad.store.index.state import instance
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.scan import find_seal
from metad.system.osio import Osio


@click.group("store", no_args_is_help=False)
def group() -> None:
    """Inspect the store, rebuild its index, back it up.

    \b
    Example:
      metad store logs
    """


@group.command()
@hub_options
@json_option
def logs(place: HubLocation, as_json: bool) -> None:
    """List the logs: state, end, share of live mail.

    \b
    Example:
      metad store logs
    """
    osio = Osio()
    store = open_store(osio, place.enter())
    progress = Progress("logs", quiet=as_json)
    rows = log_rows(osio, store, progress)
    progress.close()
    total = _total(rows)
    if as_json:
        click.echo(json.dumps({"logs": rows, "total": total}, indent=2))
        return
    tables.show_table("logs", [{**row, "live": _percent(row["live"])} for row in rows])
    click.echo("")
    tables.show_facts({**total, "live": _percent(total["live"])})


@group.command()
@hub_options
@json_option
def check(place: HubLocation, as_json: bool) -> int:
    """Verify every checksum in the logs, not the index.  Exit code 65 if one is wrong.

    \b
    Example:
      metad store check
    """
    return check_store(place.enter(), compare=False, as_json=as_json)


@group.command()
@hub_options
@click.option("--accept", is_flag=True, help="Confirm that the machine's clock is right.")
@json_option
def time(place: HubLocation, accept: bool, as_json: bool) -> int:
    """Compare the machine's clock with the time of the mail.

    A clock that is suddenly far ahead is not believed: no mail expires until the clock agrees with
    the newest mail again, or --accept confirms it.  Exit code 75 while it is not believed.

    \b
    Example:
      metad store time --accept
    """
    with Client(place.enter()) as client:
        found = client.request("time", accept=accept)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        tables.show_facts(
            {
                "clock": _date(found["clock_us"]),
                "time of the mail": _date(found["hub_time_us"]),
                "mail expires": "no" if found["suspect"] else "yes",
            }
        )
    return EX_TEMPFAIL if found["suspect"] else EX_OK


def _date(microseconds: int) -> str:
    made = datetime.fromtimestamp(microseconds / 1e6, UTC)
    return made.isoformat(" ", "seconds")


@group.command()
@hub_options
@json_option
def rebuild(place: HubLocation, as_json: bool) -> None:
    """Rebuild the index from the logs; the hub must be stopped.

    \b
    Example:
      metad store rebuild
    """
    with exclusive(place) as store:
        rebuilding(store, lambda: rebuild_index(Osio(), store, instance(str(store.data)), report))
    counts = read_snapshot(store).logs.values()
    live = sum(row.live_messages for row in counts)
    if as_json:
        click.echo(json.dumps({"logs": len(counts), "live_messages": live}))
    else:
        click.echo(f"rebuilt: {len(counts)} logs, {live} live messages")


@group.command()
@click.argument("log")
@hub_options
@click.option("--bodies", is_flag=True, help="Print the messages as well, as stored.")
@json_option
def dump(place: HubLocation, log: str, bodies: bool, as_json: bool) -> int:
    """Show the records of a log, by its number.  Exit code 65 if a record does not verify.

    \b
    Example:
      metad store dump 3
    """
    if not (log.isascii() and log.isdigit()) or len(log) > 8:
        raise UsageError(f"not the number of a log: {log}", remedy="metad store logs shows them")
    osio = Osio()
    store = open_store(osio, place.enter())
    path = Path(log_path(store.logs, int(log)))
    damaged = False
    for fact in dump_log(osio, path, store.secret, bodies=bodies):
        damaged |= fact["what"] == "damage"
        click.echo(json.dumps(fact) if as_json else line_of(fact))
        if "body" in fact and not as_json:
            click.echo(body_octets(fact["body"], terminal=tables.terminal()), nl=False)
    return EX_DATAERR if damaged else EX_OK


for _one in (backup.backup_command, backup.restore_command):
    group.add_command(_one)


# -- the table


def log_rows(osio: Osio, store: Store, progress: Progress) -> list[dict[str, Any]]:
    """A row for each log.  What is unknown (no index, no header) is None."""
    snapshot = read_snapshot(store) if os.path.exists(f"{store.index}/data.mdb") else None
    counts = snapshot.logs if snapshot and snapshot.readable else {}
    rows = []
    numbers = log_numbers(osio, store)
    for done, number in enumerate(numbers):
        progress.show(done, len(numbers))
        headers = read_headers(osio, store, number)
        if headers is None:
            continue
        if headers.log is None:
            rows.append({"log": number, "state": "damaged"})
        else:
            rows.append(_row(osio, store, headers.log, counts.get(number)))
    return [{**dict.fromkeys(_COLUMNS), **row} for row in rows]


_COLUMNS = ("log", "life", "state", "generation", "size", "end", "messages", "bytes", "live")


def _row(osio: Osio, store: Store, log: LogHeader, counts: LogCounts | None) -> dict[str, Any]:
    known = counts if counts is not None and counts.life == log.life else None
    row: dict[str, Any] = {
        "log": log.number,
        "life": log.life,
        "state": "free" if log.state == FREE else "sealed" if log.seal_offset else "active",
        "generation": log.generation,
        "size": log.size,
    }
    if log.state == FREE:
        return row
    row["end"] = _end(osio, store, log) or (known.watermark if known else None)
    if known is not None:
        row["messages"], row["bytes"] = known.live_messages, known.live_octets
        row["live"] = known.live_octets / log.size
    return row


def _end(osio: Osio, store: Store, log: LogHeader) -> int | None:
    if not log.seal_offset:
        return None
    fd = osio.open(log_path(store.logs, log.number), os.O_RDONLY)
    try:
        seal = find_seal(osio, fd, log)
    finally:
        osio.close(fd)
    return seal.end if seal else None


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    size = sum(row["size"] or 0 for row in rows)
    octets = sum(row["bytes"] or 0 for row in rows)
    return {
        "logs": len(rows),
        "free": sum(row["state"] == "free" for row in rows),
        "size": size,
        "messages": sum(row["messages"] or 0 for row in rows),
        "bytes": octets,
        "live": octets / size if size else None,
    }


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
