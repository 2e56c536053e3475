"""`metad user import | export`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, is_there, json_option
from metad.cli.progress import Progress
from metad.cli.user.users import iterations, open_users, user
from metad.config import checks
from metad.errors import EX_DATAERR, EX_OK, DataError, OsError, UsageError
from metad.users import directory_client, passwords
from metad.users.account import Account
from metad.users.database import UserDatabase, account_address
from metad.users.imports import import_entries, importers
from metad.users.imports.import_apply import Outcome, Transfer

# Number of bad lines shown; the others are only counted.
SHOWN = 1000


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import."""

    file: Path
    kind: str
    domain: str | None
    shadow: Path | None
    least_uid: int
    dry_run: bool
    sync: bool
    as_json: bool


@user.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, readable=False))
@hub_options
@click.option(
    "--format", "kind", type=click.Choice(list(importers.FORMATS)), required=True,
    help="passwd (and --shadow); csv; Dovecot's passwd-file; Postfix's virtual alias or mailbox "
    "maps.",
)  # fmt: skip
@click.option("--domain", help="The domain of names without one; with --sync, only this one's.")
@click.option(
    "--shadow",
    type=click.Path(path_type=Path, readable=False),
    help="The shadow file with passwd's passwords.",
)  # fmt: skip
@click.option(
    "--least-uid", type=click.IntRange(0), default=importers.LEAST_UID, show_default=True,
    help="Skip passwd users with lower uids.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Report what would change, without changing it.")
@click.option("--sync", is_flag=True, help="Remove users that the file does not list.")
@json_option
def import_users(place: HubLocation, **given: Any) -> int:
    """Add and change mailboxes and aliases as a file describes them.

    Importing the same file again changes nothing.  A bad line is reported and skipped; the exit
    code is then 65, and --sync removes no users.

    \b
    Example:
      metad user import --format dovecot /etc/dovecot/users
    """
    wish = ImportOptions(**given)
    if wish.shadow is not None and wish.kind != "passwd":
        raise UsageError("--shadow belongs to --format passwd")
    domain = None if wish.domain is None else _domain(wish.domain)
    work = iterations(place)
    with ExitStack() as stack:
        # Open the files first: only root may be allowed to read them.
        shadow = _open(stack, wish.shadow) if wish.shadow else None
        source = importers.Source(_open(stack, wish.file), domain, shadow, wish.least_uid)
        database = stack.enter_context(_database(stack, place, wish.dry_run, work))
        progress = Progress("bytes", quiet=wish.as_json)
        shown = _shown(progress, source.text)
        transfer = Transfer(database, dry_run=wish.dry_run, progress=shown)
        transfer.run(importers.read(wish.kind, source))
        progress.close()
        error = _sync(transfer, wish.kind, domain) if wish.sync else None
    _report(transfer.outcome, error, wish.dry_run, wish.as_json)
    outcome = transfer.outcome
    return EX_DATAERR if outcome.bad or outcome.no_login or error else EX_OK


def _domain(name: str) -> str:
    try:
        return account_address(f"x@{name}").rpartition("@")[2]
    except DataError:
        raise UsageError(f"--domain {name!a}: not a domain") from None


def _open(stack: ExitStack, path: Path) -> importers.Text:
    if str(path) == "-":
        return importers.Text("-", sys.stdin.buffer)
    try:
        return importers.Text(str(path), stack.enter_context(path.open("rb")))
    except OSError as error:
        raise OsError.of(error, path) from None


def _database(stack: ExitStack, place: HubLocation, dry_run: bool, work: int) -> UserDatabase:
    """The database; for a dry run without one, a temporary empty one."""
    if not dry_run:
        return directory_client.open_users(place.make() / "users", create=True, iterations=work)
    if is_there(place.data):
        users = place.enter() / "users"
        if (users / "data.mdb").exists():
            return UserDatabase(users, iterations=work)
    empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="metad-"))
    return UserDatabase(Path(empty) / "users", create=True, iterations=work)


def _shown(progress: Progress, text: importers.Text) -> Callable[[Outcome], None]:
    """Shows the place in the file; its size is not known if it is a pipe."""
    size = 0 if text.name == "-" else os.fstat(text.file.fileno()).st_size

    def show(outcome: Outcome) -> None:
        done = text.file.tell() if size else 0
        progress.show(done, size, f", {outcome.lines:,} lines")

    return show


def _sync(transfer: Transfer, kind: str, domain: str | None) -> str | None:
    """Why nothing was removed, if so."""
    chosen = importers.FORMATS[kind]

    def covers(address: str) -> bool:
        return domain is None or address.rpartition("@")[2] == domain

    try:
        transfer.sync(covers, accounts=chosen.accounts, aliases=chosen.aliases)
    except DataError as error:
        return str(error)
    return None


def _report(outcome: Outcome, error: str | None, dry_run: bool, as_json: bool) -> None:
    counts = {name: getattr(outcome, name) for name in ("added", "changed", "unchanged", "removed")}
    if as_json:
        bad = [one._asdict() for one in outcome.bad]
        facts = counts | {"bad": bad, "weak_hashes": outcome.weak, "dry_run": dry_run}
        facts["no_login"] = [one._asdict() for one in outcome.no_login]
        click.echo(json.dumps(facts | {"error": error}, ensure_ascii=False))
        return
    for one in (outcome.bad + outcome.no_login)[:SHOWN]:
        text = f"{one.place}: {one.reason}"
        click.echo(text if text.isprintable() else ascii(text)[1:-1], err=True)
    if len(outcome.bad) > SHOWN:
        click.echo(f"and {len(outcome.bad) - SHOWN:,} more bad lines", err=True)
    if outcome.weak:
        click.echo(f"metad: warning: {outcome.weak:,} passwords are weak hashes", err=True)
    if error:
        click.echo(f"metad: warning: {error}", err=True)
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    click.echo(f"{'would be: ' if dry_run else ''}{text}, bad {len(outcome.bad):,}")


# --- Export ---------------------------------------------------------------------------------------


@user.command("export")
@hub_options
@click.option("--domain", help="Export only addresses of this domain.")
@click.option("--no-secrets", is_flag=True, help="Leave out the passwords.")
@json_option
def export_users(place: HubLocation, domain: str | None, no_secrets: bool, as_json: bool) -> None:
    """Write mailboxes and aliases to standard output, as CSV that `import` reads.

    It contains the password hashes: protect it like a shadow file.

    \b
    Example:
      metad user export >users.csv
    """
    wanted = _domain(domain) if domain is not None else None
    with open_users(place) as database:
        rows = (
            row
            for row in _rows(database, secrets=not no_secrets)
            if wanted is None or row["address"].rpartition("@")[2] == wanted
        )
        if as_json:
            tables.print_array(rows)
            return
        click.echo(_csv_line(importers.COLUMNS), nl=False)
        for row in rows:
            click.echo(_csv_line([_cell(row.get(name)) for name in importers.COLUMNS]), nl=False)


def _rows(database: UserDatabase, *, secrets: bool) -> Iterator[dict[str, Any]]:
    for account in database.accounts():
        yield _row(database, account, secrets)
    for alias in database.aliases():
        yield {"address": alias.address, "members": list(alias.members)}


def _row(database: UserDatabase, account: Account, secrets: bool) -> dict[str, Any]:
    policy = account.policy
    row: dict[str, Any] = {
        "address": account.address,
        "quota": None if policy.quota is None else checks.show_size(policy.quota),
        "messages": policy.messages,
        "expiry": None if policy.expiry is None else checks.show_duration(policy.expiry),
        "login_delay": None
        if policy.login_delay is None
        else checks.show_duration(policy.login_delay),
        "disabled": account.disabled or None,
        "spam_filter": None if policy.spam_filter is None else bool(policy.spam_filter),
        "spam_mark": None if policy.spam_mark is None else f"{policy.spam_mark / 100:g}",
        "spam_refuse": None if policy.spam_refuse is None else f"{policy.spam_refuse / 100:g}",
    }
    if secrets and account.has_password:
        record = database.record(account.address)
        keys = passwords.unpacked(record.get("scram"))
        row |= {
            "hash": record.get("hash"),
            "scram": import_entries.show_scram(keys) if keys else None,
        }
    return {name: value for name, value in row.items() if value is not None}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(value)
    return "" if value is None else str(value)


def _csv_line(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
