"""`metad fsck`: check the whole store, and repair it on request.

Rules of this file:

* A check holds DATA/lock, shared, so that no hub starts in the meantime.  If a hub is running, the
  check holds the backup lock instead, and ignores what is still changing.
* Each difference is one line on standard output.  Exit code 0: clean; 65: damaged.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import click
import lmdb

from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.mailstore import mail_store
from metad.cli.progress import Progress
from metad.errors import EX_DATAERR, EX_OK, DataError, MetadError, OsError
from metad.store.backup_lock import Pin, pinned
from metad.store.fsck.fsck import Fsck, Plan, Summary
from metad.store.fsck.repair import repair
from metad.store.identity import Store, open_store
from metad.store.index.state import instance
from metad.store.lost_identity import open_to_check
from metad.system.osio import Osio
from metad.users.database import UserDatabase

MOST_IN_JSON = 10_000


@click.command()
@hub_options
@click.option(
    "--repair", "do_repair", is_flag=True, help="Quarantine damage and rebuild the index."
)
@click.option("--checksums-only", is_flag=True, help="Check the logs only, not the index.")
@json_option
def fsck(place: HubLocation, do_repair: bool, checksums_only: bool, as_json: bool) -> int:
    """Check every record of the logs, and the index against the logs.

    A check changes nothing and can run beside a hub.  It prints one line per difference; the exit
    code is 0 if there is none, otherwise 65.  --repair needs the hub to be stopped: it copies
    damaged bytes to quarantine/ and rebuilds the index.

    \b
    Example:
      metad fsck --checksums-only
    """
    if do_repair:
        return _repair(place, as_json)
    return check(place.enter(), compare=not checksums_only, as_json=as_json)


def check(data: Path, *, compare: bool, as_json: bool) -> int:
    """Check and print the result; the exit code."""
    osio = Osio()
    with _share_lock(data) as alone:
        store, fault = open_to_check(osio, data)
        plan = Plan(instance(str(data)), running=not alone, compare=compare)
        with nullcontext() if alone else pinned(osio, store) as pin:
            return _check(osio, store, plan, as_json, pin, fault)


def _check(osio: Osio, store: Store, plan: Plan, as_json: bool, pin: Pin | None, fault: str) -> int:
    """`fault`: what is wrong with store.json, if anything is."""
    lines: list[str] = []
    emit: Callable[[str], None] = lines.append if as_json else click.echo
    if fault:
        emit(fault)
    progress = Progress("logs", quiet=as_json)
    summary = Fsck(osio, store, plan, emit, progress.step, pin).run()
    progress.close()
    summary.findings += bool(fault)
    if summary.clean and summary.compared:
        _note_orphans(store.data, summary)
    if as_json:
        click.echo(json.dumps(_facts(summary, lines), indent=2))
    else:
        _show(summary)
    return EX_OK if summary.clean else EX_DATAERR


def _note_orphans(data: Path, summary: Summary) -> None:
    """Report mailboxes that the users database does not know.  Their mail is kept."""
    try:
        with mail_store(data) as mail, UserDatabase(data / "users") as users:
            numbers = (number for number, usage in mail.index.usages() if usage.messages)
            count = 0
            while piece := list(islice(numbers, 1000)):
                count += users.owners(piece).count(None)
    except MetadError:
        return  # no users database, or an index that must be rebuilt first
    if count:
        summary.notes.append(f"users: {count} orphaned mailboxes have mail; it is kept")


def _repair(place: HubLocation, as_json: bool) -> int:
    osio = Osio()
    with exclusive(place) as store:
        plan = Plan(instance(str(store.data)))
        lines: list[str] = []
        emit: Callable[[str], None] = lines.append if as_json else click.echo
        progress = Progress("logs", quiet=as_json)
        before = Fsck(osio, store, plan, emit, progress.step).run()
        progress.close()
        if before.clean and before.compared:
            remain = before
        else:
            rebuilding(store, lambda: repair(osio, store, plan.boot, before, report))
            emit("after the repair:")
            remain = Fsck(osio, store, plan, emit, progress.step).run()
            progress.close()
        if as_json:
            click.echo(json.dumps(_facts(remain, lines), indent=2))
        else:
            _show(remain)
    return EX_OK if remain.clean else EX_DATAERR


def report(text: str) -> None:
    """Print the progress of a repair or a rebuild."""
    click.echo(f"metad: {text}", err=True)


def rebuilding(store: Store, work: Callable[[], object]) -> None:
    """Run `work` on the index.  Raises DataError for an error of LMDB, OsError."""
    try:
        work()
    except lmdb.Error as error:
        raise DataError(
            f"index: {error}", remedy="run metad store rebuild on a disk with space"
        ) from None
    except OSError as error:
        raise OsError.of(error, error.filename or store.index) from None


# -- the lock


@contextmanager
def exclusive(place: HubLocation) -> Iterator[Store]:
    """The store, locked.  Raises DataError, and UnavailableError if a hub is running."""
    # Imported here, because most commands do not need the master's modules, and before this process
    # becomes the owner of DATA, who may not be allowed to read them.
    from metad.master.datadir import take_lock

    data = place.enter()
    mask = os.umask(0o077)  # as a hub: what is made in DATA is its owner's alone
    try:
        store = open_store(Osio(), data)
        fd = take_lock(data)
        try:
            yield store
        finally:
            os.close(fd)
    finally:
        os.umask(mask)


@contextmanager
def _share_lock(data: Path) -> Iterator[bool]:
    """True: no hub is running, and none can start until this ends."""
    try:
        fd = os.open(data / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


# -- for people


def _facts(summary: Summary, lines: list[str]) -> dict[str, object]:
    return {
        "clean": summary.clean,
        "findings": lines[:MOST_IN_JSON],
        "more": max(len(lines) - MOST_IN_JSON, 0),
        "notes": summary.notes,
        "logs": summary.logs,
        "records": summary.records,
        "bytes": summary.octets,
        "messages": summary.messages if summary.compared else None,
        "compared": summary.compared,
    }


def _show(summary: Summary) -> None:
    for note in summary.notes:
        click.echo(f"note: {note}")
    what = f"{summary.logs} logs, {summary.records} records, {summary.octets} bytes"
    index = f"index with {summary.messages} messages" if summary.compared else "index not compared"
    if summary.clean:
        click.echo(f"clean: {what}; {index}")
    else:
        click.echo(f"damaged: {summary.findings} findings; {what}; {index}")
