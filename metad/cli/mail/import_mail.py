"""`metad mail import`: the messages of another server into mailboxes here.

Rules of this file:

* One bad item never ends an import: it is reported, the import continues, and the exit code is 65.
* An import can be repeated: messages already in the mailbox, by unique id, are skipped.
* A source that ends early is never considered complete: its error determines the exit code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.foreign import BadItem, Foreign, Item, Note, Reached, SourceItem
from metad.cli.mail.import_client import ImportClient, prepare, some_hub, sorted_out
from metad.cli.mail.import_progress import Progress
from metad.cli.mail.mail import account_of, entries_of, mail
from metad.cli.mail.mailstore import hub_runs, mail_store
from metad.cli.mail.privileged_read import Reading
from metad.cli.mail.sources import (
    PopOptions,
    Source,
    file_source,
    is_server,
    server_source,
)
from metad.cli.mail.uidlist import UIDL_FORMAT, check_format
from metad.cli.tables import cell
from metad.cli.user.users import password_stdin, read_password
from metad.errors import EX_DATAERR, EX_OK, MetadError, UnavailableError, UsageError
from metad.users.account import Account
from metad.users.database import UserDatabase

# After this many mailboxes in a row without an answer from the server, the others are not tried.
MOST_SILENT = 3


@dataclass(slots=True)
class Result:
    """The result for one mailbox.  `error`: why its source ended early; `deferred`: why the hub did
    not take messages now."""

    address: str
    imported: int = 0
    known: int = 0
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: MetadError | None = None
    deferred: MetadError | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "imported": self.imported,
            "known": self.known,
            "refused": self.bad,
            "notes": self.notes,
            "error": self.problem.line if self.problem else None,
        }

    @property
    def problem(self) -> MetadError | None:
        """Why it is incomplete."""
        return self.error or self.deferred

    @property
    def exit_code(self) -> int:
        if self.problem is not None:
            return self.problem.exit_code
        return EX_DATAERR if self.bad else EX_OK


@mail.command("import")
@click.argument("address", required=False)
@hub_options
@click.option(
    "--from", "source", required=True, metavar="mbox:FILE|maildir:DIR|pop3://[USER@]HOST[:PORT]",
    help="pop3s:// begins with TLS; pop3:// uses STLS if the server offers it.",
)  # fmt: skip
@click.option(
    "--all", "everyone", is_flag=True,
    help="Import every mailbox of this hub; the source has %u, %n and %d in its path.",
)  # fmt: skip
@click.option(
    "--uidl-format", default=UIDL_FORMAT, show_default=True,
    help="For Maildirs of Dovecot: its pop3_uidl_format (%u, %v, %f).",
)  # fmt: skip
@click.option("--master", metavar="NAME", help="Log in to the server as its master user.")
@password_stdin
@click.option("--insecure", is_flag=True, help="Permit no TLS, or any certificate.")
@json_option
def import_mail(
    place: HubLocation, address: str | None, *, source: str, everyone: bool, as_json: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Copy messages of another server into a mailbox.

    They keep the unique ids that POP3 clients know, so that no client downloads a message twice.
    Messages that are in the mailbox already, by unique id, are skipped, so an import can be
    repeated.  Bad messages are named, and the others are imported; then the exit code is 65.  If
    the hub defers messages, because its disk is full for example, it is 75: repeat the import
    later.

    For all mailboxes of a Dovecot: metad mail import --all --from maildir:/var/vmail/%d/%n/Maildir

    \b
    Example:
      metad mail import alice@example.org --from maildir:/home/alice/Maildir
    """
    if (address is None) is not everyone:
        raise UsageError("give either one address or --all")
    opened = _open_source(source, everyone, **options)
    results: list[Result] = []
    try:
        results.extend(_run(place, opened, address, quiet=as_json))
    except MetadError:  # the hub ended: earlier messages are stored, and reported
        if everyone:
            _report(results, everyone, as_json)
        raise
    return _report(results, everyone, as_json)


def _open_source(
    text: str, everyone: bool, *, uidl_format: str, master: str | None, password_stdin: bool,
    insecure: bool,
) -> Source:  # fmt: skip
    """Check all options here, before anything is imported."""
    check_format(uidl_format)
    if not is_server(text):
        return file_source(text, uidl_format, template=everyone)
    if everyone and master is None:
        raise UsageError("--all from a server needs its master user", remedy="give --master NAME")
    return server_source(text, PopOptions(read_password(password_stdin), master, insecure))


def _run(
    place: HubLocation, source: Source, address: str | None, *, quiet: bool
) -> Iterator[Result]:
    config = place.config
    reading = None
    read: Callable[[str], Iterator[SourceItem]] = source.read
    if os.geteuid() == 0:
        # While this process is root: load modules and open files that need root.
        if not hub_runs(place.data):
            prepare()
        if source.path is not None:
            reading = Reading(source)
            read = reading.read
    try:
        data = place.enter()
        accounts = [account_of(data, address)] if address else _all_accounts(data)
        with some_hub(config, data), closing(ImportClient(data)) as client:
            one = partial(_one, client, data, read)
            yield from _each(accounts, one, Progress(len(accounts), quiet=quiet))
    finally:
        if reading is not None:
            reading.close()


def _each(
    accounts: list[Account], one: Callable[[Account, Progress], Result], progress: Progress
) -> Iterator[Result]:
    """Import mailbox after mailbox, until a server stops answering."""
    silent = 0
    for account in accounts:
        if silent >= MOST_SILENT:
            yield Result(account.address, error=UnavailableError("not tried: no answer"))
            continue
        progress.begin(account.address)
        result = one(account, progress)
        progress.end()
        yield result
        silent = silent + 1 if isinstance(result.error, UnavailableError) else 0
    progress.close()


def _all_accounts(data: Path) -> list[Account]:
    with UserDatabase(data / "users") as database:
        return sorted(database.accounts(), key=lambda one: one.address)


def _one(
    client: ImportClient,
    data: Path,
    read: Callable[[str], Iterator[SourceItem]],
    account: Account,
    progress: Progress,
) -> Result:
    """Import one mailbox."""
    result = Result(account.address)
    stored, refused = client.stored, len(client.refused)
    known = _known(data, account.id)
    items = _shown(_until_error(read, result), progress)
    for message in _new_messages(items, known, result):
        address = message.address or account.address
        client.put(account.id, message._replace(address=address))
        progress.message()
    client.finish()
    result.imported = client.stored - stored
    bad, result.deferred = sorted_out(client.refused[refused:])
    result.bad += bad
    return result


def _shown(items: Iterable[SourceItem], progress: Progress) -> Iterator[Item]:
    """The items; how much of the source has been read goes to `progress`."""
    for item in items:
        if isinstance(item, Reached):
            progress.reached(item.done, item.total)
        else:
            yield item


def _until_error(
    read: Callable[[str], Iterator[SourceItem]], result: Result
) -> Iterator[SourceItem]:
    """The items of a source until it fails, which ends only this mailbox.  A failing hub ends
    everything."""
    try:
        yield from read(result.address)
    except MetadError as error:
        result.error = error


def _known(data: Path, mailbox: int) -> set[str]:
    """The unique ids in a mailbox."""
    try:
        with mail_store(data, whole=True) as store:
            return {one.uid for one in entries_of(store, mailbox)}
    except UnavailableError:
        return set()


def _new_messages(items: Iterable[Item], known: set[str], result: Result) -> Iterator[Foreign]:
    """The messages to store, each with its unique id; the other items go to the result.

    A source may have two messages with the same id, for example from copied X-UIDL fields.  The
    second one then gets an id made from its content, the same in every run.
    """
    seen: set[str] = set()
    twins: Counter[str] = Counter()
    for item in items:
        if isinstance(item, BadItem):
            result.bad.append(f"{item.place}: {item.reason}")
        elif isinstance(item, Note):
            result.notes.append(item.text)
        else:
            uid = item.uid if item.uid and item.uid not in seen else made_uid(item, twins)
            seen.add(uid)
            if uid in known:
                result.known += 1
                continue
            known.add(uid)
            yield item._replace(uid=uid)


def made_uid(message: Foreign, twins: Counter[str]) -> str:
    """A unique id made from the content; equal messages of one source are numbered."""
    digest = hashlib.blake2b(message.octets, digest_size=16).hexdigest()
    twins[digest] += 1
    return digest if twins[digest] == 1 else f"{digest}.{twins[digest]}"


def _report(results: list[Result], everyone: bool, as_json: bool) -> int:
    """Print the result for each mailbox.  The exit code is the first one that is not 0."""
    if as_json:
        facts = [one.facts() for one in results]
        click.echo(json.dumps(facts if everyone else facts[0]))
    else:
        for one in results:
            if one.problem is not None and not everyone and not one.imported and not one.known:
                _show_flaws(one)
                raise one.problem
            _show(one)
    if everyone and not as_json:
        total = sum(one.imported for one in results)
        failed = sum(one.exit_code != EX_OK for one in results)
        click.echo(
            f"{len(results):,} mailboxes, {total:,} messages imported, {failed:,} incomplete"
        )
    return next((one.exit_code for one in results if one.exit_code), EX_OK)


def _show_flaws(result: Result) -> None:
    for note in result.notes:
        click.echo(f"note: {cell(note)}", err=True)
    for bad in result.bad:
        click.echo(f"metad: warning: {cell(bad)}", err=True)


def _show(result: Result) -> None:
    _show_flaws(result)
    if result.problem is not None:
        click.echo(f"metad: error: incomplete: {result.problem.line}", err=True)
    known = f", skipped {result.known:,} that were there already" if result.known else ""
    bad = f", {len(result.bad):,} failed" if result.bad else ""
    click.echo(f"imported {result.imported:,} messages into {result.address}{known}{bad}")
