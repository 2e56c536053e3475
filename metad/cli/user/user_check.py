"""`metad user check`: what becomes of mail for an address, and whether it can log in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.mailstore import usage_of
from metad.cli.user.users import open_users, password_stdin, read_password, user
from metad.errors import EX_NOPERM, EX_NOUSER, EX_OK, MetadError, RefusedError
from metad.users.account import Account
from metad.users.database import UserDatabase
from metad.users.policy import Policies


@user.command()
@click.argument("address")
@hub_options
@password_stdin
@json_option
def check(place: HubLocation, address: str, password_stdin: bool, as_json: bool) -> int:
    """Check whether mail for ADDRESS is accepted, and whether it can log in.

    Exit code 67 if mail is refused or deferred, and 77 if the password given is wrong.

    \b
    Example:
      metad user check ann@example.org
    """
    policies = Policies(place.config)
    password = read_password(True) if password_stdin else None
    data = place.enter()
    with UserDatabase(data / "users") as database:
        mail = _mail(data, database, policies, address)
        login = _login(database, address, password)
    if as_json:
        click.echo(json.dumps({"address": address, "mail": mail, "login": login}))
    else:
        click.echo(f"mail   {_text(mail)}\nlogin  {_text(login)}")
    if not mail["ok"]:
        return EX_NOUSER
    return EX_NOPERM if password is not None and not login["ok"] else EX_OK


def _text(found: dict[str, Any]) -> str:
    return f"{'ok' if found['ok'] else 'no'}: {found['reason']}"


def _mail(data: Path, database: UserDatabase, policies: Policies, address: str) -> dict[str, Any]:
    """The answer that RCPT would get now from users and quotas."""
    try:
        accounts = database.expand(address)
        for account in accounts:
            _check_room(data, policies, account)
    except RefusedError as error:
        return {"ok": False, "reason": error.smtp.wire.decode().strip()}
    return {"ok": True, "reason": "delivered to " + ", ".join(one.address for one in accounts)}


def _check_room(data: Path, policies: Policies, account: Account) -> None:
    """Raises OverQuotaError or MailboxFullError."""
    quota = policies.quota(account)
    usage = usage_of(data, account.id) if quota else None
    if quota is not None and usage is not None:
        quota.check(usage, 0)


def _login(database: UserDatabase, address: str, password: bytes | None) -> dict[str, Any]:
    obstacle = next(_obstacles(database, address), None)
    if obstacle is None and password is not None and database.verify(address, password) is None:
        obstacle = "wrong password"
    if obstacle is not None:
        return {"ok": False, "reason": obstacle}
    return {"ok": True, "reason": "the password is right" if password else "password not checked"}


def _obstacles(database: UserDatabase, address: str) -> Iterator[str]:
    try:
        account = database.account(address)
    except MetadError:
        account = None
    if account is None:
        yield "no mailbox has this address (aliases and tags are not login names)"
    elif account.disabled:
        yield "the mailbox is disabled"
    elif not account.has_password:
        yield "the mailbox has no password"


@user.command("accept-loss")
@hub_options
@json_option
def accept_loss(place: HubLocation, as_json: bool) -> None:
    """Refuse mail for unknown users again, after the users database was lost.

    A hub whose users database is missing makes a new one and answers 451 to mail for users whom it
    does not know, so that nothing is returned to its sender while the old one is restored.  This
    command says that the users who are there now are all.

    \b
    Example:
      metad user accept-loss
    """
    with open_users(place) as database:
        was_lost = database.accept_loss()
    text = "accepted" if was_lost else "nothing was lost"
    click.echo(json.dumps({"was_lost": was_lost}) if as_json else text)
