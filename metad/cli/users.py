"""`metad user add | remove | passwd | list`: works on the database itself, hub or no hub."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from metad import limits
from metad.cli.context import Place, hub_options
from metad.errors import DataError, UsageError
from metad.users.database import Account, UserDatabase

password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)


@click.group(no_args_is_help=False)
def user() -> None:
    """Add, change, remove and list mailboxes."""


@user.command()
@click.argument("address")
@hub_options
@password_stdin
@click.option("--no-password", is_flag=True, help="A mailbox that nobody can log in to yet.")
def add(place: Place, address: str, password_stdin: bool, no_password: bool) -> None:
    """Add a mailbox; makes the data directory if it is the first."""
    if password_stdin and no_password:
        raise UsageError("--password-stdin and --no-password exclude each other")
    password = None if no_password else read_password(password_stdin)
    with UserDatabase(place.make() / "users", create=True) as database:
        account = database.add(address, password)
    click.echo(f"added {account.address}, mailbox {account.id}")


@user.command()
@click.argument("address")
@hub_options
def remove(place: Place, address: str) -> None:
    """Remove a mailbox; its mail goes with the next collection."""
    with UserDatabase(place.enter() / "users") as database:
        account = database.remove(address)
    click.echo(f"removed {account.address}, mailbox {account.id}")


@user.command()
@click.argument("address")
@hub_options
@password_stdin
def passwd(place: Place, address: str, password_stdin: bool) -> None:
    """Give a mailbox a new password."""
    password = read_password(password_stdin)
    with UserDatabase(place.enter() / "users") as database:
        account = database.set_password(address, password)
    click.echo(f"changed the password of {account.address}")


@user.command("list")
@hub_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="The built-in postmaster too.")
def list_users(place: Place, as_json: bool, everything: bool) -> None:
    """List the mailboxes by address, one to a line."""
    with UserDatabase(place.enter() / "users") as database:
        if as_json:
            _list_json(database, everything)
            return
        for account in database.accounts(builtin=everything):
            notes = _notes(account)
            click.echo(account.address + (f"\t{', '.join(notes)}" if notes else ""))


def _list_json(database: UserDatabase, everything: bool) -> None:
    """One array, written as it is read: a million users need no memory."""
    separator = "["
    for account in database.accounts(builtin=everything):
        click.echo(separator)
        click.echo(json.dumps(_facts(account), ensure_ascii=False), nl=False)
        separator = ","
    click.echo("\n]" if separator == "," else "[]")


def _facts(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "address": account.address,
        "disabled": account.disabled,
        "has_password": account.has_password,
    }


def _notes(account: Account) -> list[str]:
    disabled = ["disabled"] if account.disabled else []
    return disabled + ([] if account.has_password else ["no password"])


def read_password(from_stdin: bool) -> bytes:
    """One line of standard input without its end, or what is typed twice on a terminal."""
    if from_stdin:
        return _line(sys.stdin.buffer.readline(limits.PASSWORD + 3))
    if not terminal():
        raise UsageError("there is no terminal to ask on: give --password-stdin")
    typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return typed.encode("utf-8", "surrogateescape")


def terminal() -> bool:
    """Whether there is a person who can be asked."""
    return sys.stdin.isatty()


def _line(line: bytes) -> bytes:
    if not line:
        raise DataError("there is no password on standard input")
    return line.removesuffix(b"\n").removesuffix(b"\r")
