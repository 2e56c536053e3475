"""`metad mail learn`: rspamd's classifier learns from messages of a mailbox."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

import click

from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.mail import account_of, entries_of, no_such_message, wire_of
from metad.cli.mail.mailstore import mail_store
from metad.config import checks
from metad.errors import DataError, UnavailableError, UsageError
from metad.filters.body import of_bytes
from metad.filters.http import HttpError, request
from metad.filters.pool import Address, HttpPool
from metad.layers.texts import unstuffed

DEADLINE = 60.0
DEFAULT = "127.0.0.1:11334"
# rspamd's statuses: learned; known already, or nothing to learn.
_LEARNED, _SKIPPED = 200, (204, 208)
_REFUSED = 403


@click.command()
@click.argument("kind", type=click.Choice(["spam", "ham"]))
@click.argument("address")
@click.argument("messages", nargs=-1, required=True)
@hub_options
@click.option(
    "--controller", metavar="ADDRESS", default=DEFAULT, show_default=True,
    help="Where rspamd's controller listens: IP:PORT or unix:/PATH.",
)  # fmt: skip
@click.option("--password-stdin", is_flag=True, help="Read the controller's password from stdin.")
@json_option
def learn(
    place: HubLocation,
    kind: Literal["spam", "ham"],
    address: str,
    messages: tuple[str, ...],
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Teach rspamd that messages, by number or unique id, are spam or ham.

    \b
    Example:
      metad mail learn spam alice@example.org 3
    """
    try:
        where = checks.address(checks.server(given["controller"]))
    except ValueError as error:
        raise UsageError(f"--controller: {error}") from None
    password = sys.stdin.readline().rstrip("\r\n") if given["password_stdin"] else ""
    target = Address(where.path, where.host, where.port or 0)
    texts = _texts(place, address, messages)
    for name, octets in texts.items():
        done = asyncio.run(_teach(target, kind, octets, password))
        click.echo(json.dumps({"message": name, "answer": done}) if as_json else f"{name}: {done}")


def _texts(place: HubLocation, address: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The messages.  Raises DataError if one is not there."""
    data = place.enter()
    account = account_of(data, address)
    found: dict[str, bytes] = {}
    with mail_store(data, whole=True) as store:
        entries = entries_of(store, account.id)
        for name in wanted:
            one = next((e for e in entries if name in (e.uid, str(e.number))), None)
            if one is None:
                raise no_such_message(address, name)
            wire = wire_of(store, account.id, one.id)
            found[name] = b"".join(unstuffed(wire, lf=False))
    return found


async def _teach(target: Address, kind: str, octets: bytes, password: str) -> str:
    """rspamd's answer.  Raises UnavailableError, DataError."""
    pool = HttpPool(asyncio.get_running_loop(), target, 1)
    fields = [("Password", password)] if password else []
    try:
        async with asyncio.timeout(DEADLINE):
            response = await pool.post(
                request(f"/learn{kind}", fields, len(octets)), of_bytes(octets)
            )
    except (HttpError, OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise UnavailableError(
            f"rspamd's controller at {target}: {reason}",
            remedy="start rspamd, or name its controller by --controller",
        ) from None
    finally:
        pool.close()
    if response.status == _LEARNED:
        return f"learned as {kind}"
    if response.status in _SKIPPED:
        return f"known as {kind} already, or there is nothing to learn from"
    if response.status == _REFUSED:
        raise DataError(
            f"rspamd's controller at {target} wants a password", remedy="give --password-stdin"
        )
    raise DataError(
        f"rspamd's controller at {target}: {_reason(response.body, response.status)}",
        remedy="rspamd's log says more",
    )


def _reason(body: bytes, status: int) -> str:
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = ""
    return text if isinstance(text, str) and text.isprintable() and text else f"status {status}"
