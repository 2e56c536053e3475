"""`metad user add | remove | passwd | rename | list`: on the database itself, hub or no hub."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from metad import limits
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.lazy import LazyGroup
from metad.cli.tables import print_array, write_lines
from metad.errors import ConfigError, DataError, NoSuchUserError, UsageError
from metad.users import directory_client
from metad.users.account import Alias
from metad.users.database import Account, UserDatabase

password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)


# Commands in other files.
_ELSEWHERE = {
    "accept-loss": "user.user_check:accept_loss",
    "alias": "user.user_edit:alias",
    "check": "user.user_check:check",
    "export": "user.user_files:export_users",
    "import": "user.user_files:import_users",
    "set": "user.user_edit:set_user",
    "show": "user.user_edit:show",
}


@click.group(cls=LazyGroup, places=_ELSEWHERE, no_args_is_help=False)
def user() -> None:
    """Mailboxes and aliases: add, change, remove, list, import, export.

    \b
    Example:
      metad user add alice@example.org
    """


@user.command()
@click.argument("address")
@hub_options
@password_stdin
@click.option("--no-password", is_flag=True, help="A mailbox without a login.")
@json_option
def add(
    place: HubLocation, address: str, password_stdin: bool, no_password: bool, as_json: bool
) -> None:
    """Add a mailbox; creates the data directory if needed.

    \b
    Example:
      metad user add alice@example.org
    """
    if password_stdin and no_password:
        raise UsageError("--password-stdin and --no-password exclude each other")
    work = iterations(place)
    password = None if no_password else read_password(password_stdin)
    with directory_client.open_users(
        place.make() / "users", create=True, iterations=work
    ) as database:
        account = database.add(address, password)
    said(account, f"added {account.address}, mailbox {account.id}", as_json)


@user.command()
@click.argument("address")
@hub_options
@click.option("--force", is_flag=True, help="Remove it from every alias as well.")
@json_option
def remove(place: HubLocation, address: str, force: bool, as_json: bool) -> None:
    """Remove a mailbox; the next collection deletes its mail.

    \b
    Example:
      metad user remove alice@example.org
    """
    with open_users(place) as database:
        try:
            account = database.remove(address, force=force)
        except NoSuchUserError:
            if database.alias(address) is None:
                raise
            raise DataError(
                f"{address} is an alias", remedy=f"metad user alias {address} --delete removes it"
            ) from None
    said(account, f"removed {account.address}, mailbox {account.id}", as_json)


@user.command()
@click.argument("address")
@hub_options
@password_stdin
@json_option
def passwd(place: HubLocation, address: str, password_stdin: bool, as_json: bool) -> None:
    """Give a mailbox a new password.

    \b
    Example:
      metad user passwd alice@example.org
    """
    work = iterations(place)
    password = read_password(password_stdin)
    with directory_client.open_users(place.enter() / "users", iterations=work) as database:
        account = database.set_password(address, password)
    said(account, f"changed the password of {account.address}", as_json)


@user.command()
@click.argument("address")
@click.argument("new")
@hub_options
@json_option
def rename(place: HubLocation, address: str, new: str, as_json: bool) -> None:
    """Give a mailbox the address NEW; its mail and password stay, aliases follow.

    Mail for the old address is refused from now on, unless you make it an alias.

    \b
    Example:
      metad user rename alice@example.org alice.smith@example.org
    """
    with open_users(place) as database:
        account = database.rename(address, new)
    said(account, f"renamed {address} to {account.address}", as_json)


@user.command("list")
@hub_options
@json_option
@click.option("--all", "everything", is_flag=True, help="Include the built-in postmaster.")
@click.option("--aliases", is_flag=True, help="List aliases and their members instead.")
@click.option("-l", "--long", is_flag=True, help="With usage, quota and last login (UTC).")
@click.option("--over-quota", is_flag=True, help="Only those whose quota is reached; implies -l.")
@click.option(
    "--sort", "order", type=click.Choice(["address", "bytes", "messages", "quota", "login"]),
    help="The most bytes, messages or share of the quota first, or the oldest login; implies -l.",
)  # fmt: skip
@click.option("--first", type=click.IntRange(1), metavar="N", help="The first N; implies -l.")
def list_users(
    place: HubLocation, as_json: bool, everything: bool, aliases: bool, **options: Any
) -> None:
    """List the mailboxes by address, one to a line.

    \b
    Example:
      metad user list --over-quota --sort bytes --first 20
    """
    if any(options.values()):
        if aliases:
            raise UsageError("--aliases has no usage", remedy="give it alone")
        from metad.cli.user.user_list import ListOptions, list_long

        config = place.config
        wanted = ListOptions(everything, options["over_quota"], options["order"], options["first"])
        list_long(place.enter(), config, wanted, as_json=as_json)
        return
    with open_users(place) as database:
        found = database.aliases() if aliases else database.accounts(builtin=everything)
        if as_json:
            print_array(map(facts_of, found))
            return
        write_lines(map(_listed, found))


def _listed(one: Account | Alias) -> str:
    notes = _notes(one) if isinstance(one, Account) else list(one.members)
    return one.address + (f"\t{', '.join(notes)}" if notes else "")


def facts_of(one: Any) -> dict[str, Any]:
    """An account or an alias as JSON shows it."""
    if not isinstance(one, Account):
        return {"address": one.address, "members": list(one.members)}
    return {
        "id": one.id,
        "address": one.address,
        "disabled": one.disabled,
        "has_password": one.has_password,
    }


def _notes(account: Account) -> list[str]:
    disabled = ["disabled"] if account.disabled else []
    return disabled + ([] if account.has_password else ["no password"])


def said(one: Any, text: str, as_json: bool) -> None:
    """Report what was done, for people or programs."""
    click.echo(json.dumps(facts_of(one), ensure_ascii=False) if as_json else text)


def open_users(place: HubLocation) -> UserDatabase:
    """The existing users database, opened as its owner."""
    return directory_client.open_users(place.enter() / "users")


def iterations(place: HubLocation) -> int:
    """SCRAM iterations for new passwords; the default if the configuration is bad (with --data)."""
    try:
        return place.config.users.scram_iterations
    except ConfigError:
        return limits.SCRAM_ITERATIONS


def read_password(from_stdin: bool) -> bytes:
    """One line of standard input without its end, or a password typed twice on a terminal."""
    if from_stdin:
        return _line(sys.stdin.buffer.readline(limits.PASSWORD + 3))
    if not terminal():
        raise UsageError("there is no terminal to ask on", remedy="give --password-stdin")
    typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return typed.encode("utf-8", "surrogateescape")


def terminal() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin.isatty()


def _line(line: bytes) -> bytes:
    if not line:
        raise DataError(
            "there is no password on standard input", remedy="write it there, as one line"
        )
    return line.removesuffix(b"\n").removesuffix(b"\r")
