"""`metad mail undelete`: brings back deleted messages while their records still lie in a log.

Rules of this file:

* A deletion record overrides its message forever, so the message comes back as a new one with a new
  unique id (docs/decisions.md).
* A message whose content is in the mailbox again already is not brought back twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email import message_from_bytes, policy
from functools import partial
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.change import (
    Stored,
    changing,
    check_room,
    dry_run_option,
    force_option,
    store_again,
    stored_message,
    tell_failures,
)
from metad.cli.mail.foreign import Foreign
from metad.cli.mail.mail import account_of, entries_of
from metad.cli.mail.mailstore import MailStore, mail_store
from metad.cli.progress import Progress
from metad.errors import DataError, RefusedError, UsageError
from metad.store.history import Deletion, History

# Octets read for a header, and the maximum in Return-Path and Delivered-To.
HEAD = 65_536
IN_FRONT_MOST = 1024
_TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deleted message that can still be read; `present`: the mailbox has an equal message
    again."""

    deletion: Deletion
    received_us: int
    sender: str
    octets: int
    subject: str
    present: bool

    @property
    def name(self) -> str:
        return self.deletion.id.hex()

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "received": _utc(self.received_us),
            "deleted": _utc(self.deletion.time_us),
            "by": "expiry" if self.deletion.expired else "session",
            "bytes": self.octets,
            "from": self.sender,
            "subject": self.subject,
            "present": self.present,
        }


def _utc(us: int) -> str | None:
    return time.strftime(_TIME, time.gmtime(us // 1_000_000)) if us else None


@click.command()
@click.argument("address")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@hub_options
@click.option("--all", "everything", is_flag=True, help="Bring back every message that is listed.")
@force_option
@dry_run_option
@json_option
def undelete(
    place: HubLocation, address: str, ids: tuple[str, ...], *, everything: bool, as_json: bool,
    **options: bool,
) -> int:  # fmt: skip
    """Bring back deleted messages whose records still lie in a log; without IDs, list them.

    A message comes back as a new one with a new id: POP3 clients download
    it again, and its expiry starts again.  Times are UTC.

    \b
    Example:
      metad mail undelete alice@example.org
      metad mail undelete alice@example.org 000661f2a1b0c3d40001000200000007
    """
    if ids and everything:
        raise UsageError("give either ids or --all")
    unread: list[str] = []
    progress = Progress("logs", quiet=as_json)
    with changing(place) as data:
        account = account_of(data, address)
        with mail_store(data, whole=True) as store:
            found = candidates(store, account.id, unread.append, progress)
            chosen = [one for one in _choose(found, ids, everything) if not one.present]
            stored = Stored([], [], None)
            if chosen and not options["force"]:
                check_room(place, store, account, [one.octets for one in chosen])
            if chosen and not options["dry_run"]:
                names = [(one.name, one.deletion.id) for one in chosen]
                stored = store_again(data, store, account, names, progress)
    progress.close()
    shown = chosen if ids or everything else found
    if as_json:
        facts = [one.facts() | {"restored": one.name in stored.done} for one in shown]
        click.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _show(shown, stored.done, dry_run=options["dry_run"], listing=not (ids or everything))
    return tell_failures(stored._replace(bad=unread + stored.bad))


def candidates(
    store: MailStore, mailbox: int, report: Callable[[str], None], progress: Progress
) -> list[Candidate]:
    """Readable messages that the mailbox has deleted, oldest first."""
    history = History(store.osio, store.store, store.index, report, partial(progress.step, "logs"))
    found: list[tuple[Candidate, bytes]] = []
    deletions = history.deleted_by(mailbox)
    for done, deletion in enumerate(deletions):
        progress.step("deleted messages", done, len(deletions))
        try:
            message = stored_message(store, deletion.id)
        except RefusedError as error:
            report(f"{deletion.id.hex()}: {error}")
            continue
        found.append((_candidate(deletion, message), _digest(message)))
    here = _contents(store, mailbox, {one.octets for one, _ in found}, progress)
    return [replace(one, present=digest in here) for one, digest in found]


def _candidate(deletion: Deletion, message: Foreign) -> Candidate:
    head = message_from_bytes(message.octets[:HEAD], policy=policy.default)
    subject = str(head.get("Subject", ""))
    octets = len(message.octets)
    return Candidate(deletion, message.time_us, message.sender, octets, subject, present=False)


def _contents(store: MailStore, mailbox: int, sizes: set[int], progress: Progress) -> set[bytes]:
    """Digests of the messages in the mailbox that may have one of these sizes."""
    found = set()
    entries = entries_of(store, mailbox)
    for one in entries:
        progress.step("messages compared", one.number, len(entries))
        # POP3 also counts Return-Path and Delivered-To.
        if not any(0 <= one.octets - size <= IN_FRONT_MOST for size in sizes):
            continue
        try:
            found.add(_digest(stored_message(store, one.id)))
        except RefusedError:
            continue
    return found


def _digest(message: Foreign) -> bytes:
    return hashlib.blake2b(message.octets, digest_size=16).digest()


def _choose(found: Sequence[Candidate], ids: Sequence[str], everything: bool) -> list[Candidate]:
    if everything:
        return list(found)
    by_name = {one.name: one for one in found}
    for one in ids:
        if one not in by_name:
            raise DataError(
                f"{one!a} is not among the deleted messages that still lie in a log",
                remedy=f"metad mail trace {one} tells what became of it",
            )
    return [by_name[one] for one in dict.fromkeys(ids)]


def _show(shown: Sequence[Candidate], restored: list[str], *, dry_run: bool, listing: bool) -> None:
    if listing:
        rows = [one.facts() for one in shown]
        if rows:
            tables.show_records("", rows)
        else:
            click.echo("no log holds a deleted message any more", err=True)
        return
    if not shown:
        click.echo("nothing to bring back: it is in the mailbox again, or in no log", err=True)
    for one in shown:
        if dry_run or one.name in restored:
            verb = "would bring back" if dry_run else "brought back"
            click.echo(f"{verb} {one.name}, {one.octets:,} bytes")
