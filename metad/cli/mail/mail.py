"""`metad mail list | show | export`: the mail of one mailbox, with or without a running hub."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, is_there, json_option, no_data
from metad.cli.lazy import LazyGroup
from metad.cli.mail.foreign import Foreign
from metad.cli.mail.maildir import MaildirWriter
from metad.cli.mail.mailstore import MailStore, mail_store
from metad.cli.mail.mbox import MboxWriter
from metad.cli.mail.sources import split_place
from metad.cli.progress import Progress
from metad.errors import (
    EX_DATAERR,
    EX_OK,
    DataError,
    MetadError,
    NoSuchUserError,
    RefusedError,
)
from metad.layers.imported_ids import imported_ids
from metad.layers.texts import unstuffed
from metad.protocol.trace import in_front
from metad.store.ids import is_imported, time_of
from metad.store.index.index import LISTING_ENTRY
from metad.system.osio import Buffer
from metad.users.account import Account
from metad.users.database import UserDatabase


@click.group(
    cls=LazyGroup,
    places={
        "copy": "mail.change:copy",
        "delete": "mail.change:delete",
        "import": "mail.import_mail:import_mail",
        "learn": "mail.learn:learn",
        "tail": "mail.follow:tail",
        "trace": "mail.trace:trace",
        "undelete": "mail.undelete:undelete",
        "wait": "mail.follow:wait",
    },
    no_args_is_help=False,
)
def mail() -> None:
    """The mail of a mailbox: list, show, follow, copy, delete, restore, import, export.

    \b
    Example:
      metad mail list alice@example.org
    """


@dataclass(frozen=True, slots=True)
class ListedMail:
    """A message of a mailbox, as `list` shows it."""

    number: int
    id: bytes
    uid: str
    octets: int

    def facts(self) -> dict[str, Any]:
        seconds = time_of(self.id) // 1_000_000
        return {
            "number": self.number,
            "bytes": self.octets,
            "stored": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)),
            "uid": self.uid,
        }


def account_of(data: Path, address: str) -> Account:
    with UserDatabase(data / "users") as database:
        try:
            account = database.account(address)
        except MetadError:
            account = None
    if account is None:
        raise NoSuchUserError(f"{address}: no such user")
    return account


def no_such_message(address: str, text: str) -> DataError:
    return DataError(
        f"{address}: no such message: {text!a}", remedy=f"metad mail list {address} shows them"
    )


def entries_of(store: MailStore, mailbox: int) -> list[ListedMail]:
    pairs = list(LISTING_ENTRY.iter_unpack(store.index.listing(mailbox)))
    uids = imported_ids(store, [one for one, _ in pairs if is_imported(one)])
    return [
        ListedMail(number, one, uids.get(one) or one.hex(), octets)
        for number, (one, octets) in enumerate(pairs, 1)
    ]


@mail.command("list")
@click.argument("address")
@hub_options
@json_option
def list_mail(place: HubLocation, address: str, as_json: bool) -> None:
    """List a mailbox: number, size in bytes, time and unique id of each message.

    \b
    Example:
      metad mail list alice@example.org
    """
    data = place.enter()
    account = account_of(data, address)
    with mail_store(data, whole=True) as store:
        progress = Progress("messages", quiet=as_json)
        rows = list(_facts(entries_of(store, account.id), progress))
        progress.close()
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        tables.show_table(account.address, rows)


def _facts(entries: list[ListedMail], progress: Progress) -> Iterator[dict[str, Any]]:
    for one in entries:
        progress.row(one.number, len(entries))
        yield one.facts()


@mail.command()
@click.argument("address")
@click.argument("message")
@hub_options
def show(place: HubLocation, address: str, message: str) -> None:
    """Print a message, by its number or unique id.

    \b
    Example:
      metad mail show alice@example.org 1
    """
    data = place.enter()
    account = account_of(data, address)
    with mail_store(data, whole=True) as store:
        for one in entries_of(store, account.id):
            if message in (one.uid, str(one.number)):
                for piece in unstuffed(wire_of(store, account.id, one.id), lf=False):
                    sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
                return
    raise no_such_message(address, message)


def wire_of(store: MailStore, mailbox: int, message_id: bytes) -> Iterator[Buffer]:
    """A message as RETR sends it.  Raises RefusedError."""
    for piece in store.reader.stream(message_id, mailbox):
        if isinstance(piece, bytes):
            yield piece
            continue
        for its, address, _ in piece.envelope.recipients:
            if its == mailbox:
                yield in_front(piece.envelope.sender, address)


# --- Export ---------------------------------------------------------------------------------------


@mail.command("export")
@click.argument("address")
@hub_options
@click.option(
    "--to",
    "target",
    required=True,
    metavar="mbox:FILE|maildir:DIR",
    help="The target; it must not exist.",
)
@json_option
def export_mail(place: HubLocation, address: str, target: str, as_json: bool) -> int:
    """Copy every message of a mailbox to an mbox file or a Maildir; nothing is deleted.

    A Maildir gets Dovecot's list of unique ids, so that POP clients download nothing twice.

    \b
    Example:
      metad mail export alice@example.org --to mbox:/tmp/alice.mbox
    """
    kind, path = split_place(target, "--to")
    if not is_there(place.data):
        raise no_data(place.data)
    owner = os.stat(place.data)
    writer = MboxWriter(path) if kind == "mbox" else MaildirWriter(path, owner)
    data = place.enter()
    account = account_of(data, address)
    damaged: list[str] = []
    with mail_store(data, whole=True) as store:
        count = 0
        for message in _messages(store, account.id, damaged, Progress("messages", quiet=as_json)):
            writer.write(message)
            count += 1
    writer.close()
    if as_json:
        click.echo(json.dumps({"exported": count, "damaged": damaged}))
    else:
        for one in damaged:
            click.echo(f"metad: warning: {one}", err=True)
        click.echo(f"exported {count:,} messages of {account.address}")
    return EX_DATAERR if damaged else EX_OK


def _messages(
    store: MailStore, mailbox: int, damaged: list[str], progress: Progress
) -> Iterator[Foreign]:
    entries = entries_of(store, mailbox)
    for one in entries:
        progress.show(one.number, len(entries))
        try:
            octets = b"".join(unstuffed(wire_of(store, mailbox, one.id), lf=False))
            envelope = next(iter(store.reader.stream(one.id)))
        except RefusedError as error:
            damaged.append(f"message {one.number}: {error}")
            continue
        if isinstance(envelope, bytes):
            continue
        yield Foreign("", octets, one.uid, envelope.envelope.time_us, envelope.envelope.sender)
    progress.close()
