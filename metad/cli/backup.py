"""`metad store backup` and `metad store restore`, with or without a running hub."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import click
import lmdb

from metad.cli import tables
from metad.cli.context import (
    HubLocation,
    become_owner,
    hub_options,
    is_there,
    json_option,
    no_data,
)
from metad.cli.progress import Progress
from metad.config.checks import show_size
from metad.errors import EX_DATAERR, CannotCreateError, OsError
from metad.store.backup.backup import Backup, Done, restore
from metad.store.identity import open_store
from metad.system.directories import make_directory
from metad.system.osio import Osio

_STEP = re.compile(r"(?:log|file) (\d+) of (\d+)")
DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)


@click.command("backup")
@hub_options
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--incremental",
    metavar="OLD",
    type=DIRECTORY,
    help="An earlier backup: unchanged files are linked from it, not copied.",
)
@click.option(
    "--partial", is_flag=True, help="Exit with 0 even if some files could not be read whole."
)
@json_option
def backup_command(
    place: HubLocation, directory: Path, incremental: Path | None, partial: bool, as_json: bool
) -> None:
    """Back up mail and users into DIRECTORY, which must be new or empty.

    The hub can run and serve in the meantime; no log is freed until the backup ends.  The index is
    not included, because it is rebuilt from the logs, and neither are the TLS keys.

    Files that cannot be read whole are named, everything else is copied, and the exit code is 65.

    \b
    Example:
      metad store backup /backup/today --incremental /backup/yesterday
    """
    directory, incremental = directory.absolute(), incremental and incremental.absolute()
    _make_for_owner(directory, place.data)
    data = place.enter()
    osio, steps = Osio(), Steps("logs", quiet=as_json)
    made = Backup(osio, open_store(osio, data), directory, incremental, steps.report)
    users = data / "users"
    made.run(lambda target: copy_users(users, target) if users.exists() else None)
    steps.close()
    _show(made.done, as_json)
    if made.done.bad and not partial:
        sys.exit(EX_DATAERR)


@click.command("restore")
@hub_options
@click.argument("backup", type=DIRECTORY)
@click.option("--partial", is_flag=True, help="Restore what is good if some files are damaged.")
@json_option
def restore_command(place: HubLocation, backup: Path, partial: bool, as_json: bool) -> None:
    """Restore the backup in BACKUP to a new data directory, given by --data.

    Every file is checked against its digest in the backup.  The store gets another node number, so
    that no message id is ever made twice.

    \b
    Example:
      metad store restore /backup/today --data /var/lib/metad
    """
    source = backup.absolute()
    _must_be_empty(place.data)
    place.make()
    steps = Steps("files", quiet=as_json)
    done = restore(Osio(), source, place.data, steps.report, partial=partial)
    steps.close()
    _show(done, as_json)


def copy_users(users: Path, target: Path) -> None:
    """A consistent copy of the users database, even of a running hub.  Raises OsError."""
    try:
        env = lmdb.open(str(users), readonly=True, create=False)
        try:
            env.copy(str(target), compact=True)
        finally:
            env.close()
    except lmdb.Error as error:
        raise OsError(
            f"{users}: {error}", remedy="metad doctor examines the data directory"
        ) from None


def _make_for_owner(directory: Path, data: Path) -> None:
    """As root: create the directory for the owner of `data`, which will write to it."""
    if os.geteuid() != 0:
        return
    try:
        owner = os.stat(data)
    except OSError:
        raise no_data(data) from None
    try:
        os.close(make_directory(directory, owner))
    except FileExistsError:
        return
    except OSError as error:
        raise CannotCreateError.of(error, directory) from None
    Osio().fsync_directory(str(directory.parent))


def _must_be_empty(data: Path) -> None:
    if is_there(data):
        become_owner(data)
        if os.listdir(data):
            raise CannotCreateError(f"{data}: not empty", remedy="give a new directory with --data")


class Steps(Progress):
    """Progress from the reports of a backup: `log 3 of 40` means that the third begins."""

    def report(self, text: str) -> None:
        if found := _STEP.fullmatch(text):
            self.show(int(found[1]) - 1, int(found[2]))
        else:
            self.close()
            click.echo(text, err=True)


def _show(done: Done, as_json: bool) -> None:
    if as_json:
        facts: dict[str, object] = {
            "files": done.files,
            "linked": done.linked,
            "bytes": done.octets,
        }
        facts["bad"] = done.bad
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(
            {"files": done.files, "linked": done.linked, "copied": show_size(done.octets)}
        )
