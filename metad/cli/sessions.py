"""`metad who`, `metad kick`: the sessions of a running hub."""

from __future__ import annotations

import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.attached import ask_all
from metad.cli.context import HubLocation, hub_options, json_option
from metad.errors import EX_OK, EX_TEMPFAIL, DataError, UsageError


def _network(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise click.BadParameter(f"{value!a} is no address or network") from None


client_option = click.option(
    "--client", metavar="ADDRESS|NETWORK", callback=_network,
    help="Sessions of this client, such as 192.0.2.7 or 2001:db8::/64.",
)  # fmt: skip
user_option = click.option("--user", metavar="ADDRESS", help="POP3 sessions of this user.")
protocol_option = click.option(
    "--protocol", type=click.Choice(["smtp", "lmtp", "pop3"]), help="Sessions of this protocol."
)


@click.command()
@hub_options
@client_option
@user_option
@protocol_option
@json_option
def who(place: HubLocation, as_json: bool, **wanted: str | None) -> int:
    """Show the sessions of now: protocol, client, user or sender, TLS, since when, state.

    Connections without a session yet (a TLS handshake or a PROXY header is under way) are counted
    in the last line.  Exit code 75 if a worker did not answer: its sessions are missing.

    \b
    Example:
      metad who --client 192.0.2.0/24 --protocol pop3
    """
    sessions, connecting, silent = _ask(place.enter(), {"command": "who", **wanted})
    if as_json:
        facts = {"sessions": sessions, "connecting": connecting, "silent": silent}
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(sessions)
        more = f", {connecting} connecting" if connecting else ""
        click.echo(f"{len(sessions):,} session{'s' * (len(sessions) != 1)}{more}")
    return _warn(silent, "its sessions are missing above")


@click.command()
@click.argument("sessions", nargs=-1, metavar="[SESSION]...")
@hub_options
@client_option
@user_option
@protocol_option
@json_option
def kick(place: HubLocation, sessions: tuple[str, ...], as_json: bool, **wanted: str | None) -> int:
    """End sessions at once: those named (as metad who shows them), or those that all options match.

    The client gets 421 or -ERR where one can be given.  It may connect again: disable the user
    (metad user set ADDRESS --disable), or refuse the network in the firewall, before that.
    Deletions of a POP3 session that has not sent QUIT are not carried out.  Exit code 65 if there
    is no such session, 75 if a worker did not answer.

    \b
    Example:
      metad kick --user alice@example.org
    """
    if not sessions and not any(wanted.values()):
        raise UsageError(
            "no session is named", remedy="give its name, or --client, --user or --protocol"
        )
    request = {"command": "kick", "sessions": sessions, **wanted}
    ended, _, silent = _ask(place.enter(), request)
    if as_json:
        click.echo(json.dumps({"ended": ended, "silent": silent}, indent=2))
    else:
        for one in ended:
            name = one["user"] or (f"<{one['from']}>" if one["from"] else "")
            click.echo(f"ended {one['session']}: {one['protocol']} {one['client']} {name}".rstrip())
    if not ended and not silent:
        raise DataError("there is no such session", remedy="metad who shows those of now")
    return _warn(silent, "sessions of its may go on")


def _ask(data: Path, request: dict[str, Any]) -> tuple[list[dict[str, Any]], int, list[str]]:
    """The sessions, the number of connections without one, the workers that did not answer."""
    sessions: list[dict[str, Any]] = []
    connecting = 0

    def took(line: dict[str, Any]) -> None:
        nonlocal connecting
        if line.get("end"):
            connecting += line.get("connecting", 0)
        else:
            sessions.append(line)

    silent = ask_all(data, request, took)
    sessions.sort(key=lambda one: (one["since"], one["session"]))
    return sessions, connecting, silent


def _warn(silent: list[str], missing: str) -> int:
    for one in silent:
        click.echo(f"metad: warning: {one} does not answer; {missing}", err=True)
    return EX_TEMPFAIL if silent else EX_OK


def _show(sessions: list[dict[str, Any]]) -> None:
    now = time.time()
    rows = [
        {
            "session": one["session"],
            "proto": one["protocol"],
            "client": one["client"],
            "user": one["user"] or (f"<{one['from']}>" if one["from"] else "-"),
            "tls": one["tls"],
            "age": _age(now - one["since"]),
            "state": one["state"],
        }
        for one in sessions
    ]
    if rows:
        tables.show_table("", rows)


def _age(seconds: float) -> str:
    """5s, 12m, 3h, 2d: short enough for a column."""
    left = max(0, int(seconds))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if left >= length:
            return f"{left // length}{unit}"
    return f"{left}s"
