"""`metad mail list | show | import | export`: the mail of one mailbox, hub or no hub."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options
from metad.cli.mail.import_client import Deposit, prepare, some_hub
from metad.cli.mail.mailfiles import (
    UIDL_FORMAT,
    Foreign,
    MaildirWriter,
    MboxWriter,
    Writer,
    read_maildir,
    read_mbox,
    write_all,
)
from metad.cli.mail.mailstore import MailStore, hub_runs, mail_store
from metad.cli.mail.popclient import PopClient, parse_url
from metad.cli.mail.privileged_read import Reading
from metad.cli.user.users import json_option, password_stdin, read_password
from metad.errors import (
    EX_DATAERR,
    EX_OK,
    DataError,
    MetadError,
    NoSuchUserError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from metad.layers.logs import imported_uids
from metad.layers.texts import unstuffed
from metad.protocol.trace import in_front
from metad.store.ids import is_imported, time_of
from metad.store.index.index import LISTING_ENTRY
from metad.system.osio import Buffer
from metad.users.account import Account
from metad.users.database import UserDatabase


@click.group(no_args_is_help=False)
def mail() -> None:
    """The mail of one mailbox: list, show, import, export."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of a mailbox, as `list` shows it."""

    number: int
    id: bytes
    uid: str
    octets: int

    def facts(self) -> dict[str, Any]:
        seconds = time_of(self.id) // 1_000_000
        return {
            "number": self.number,
            "octets": self.octets,
            "stored": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)),
            "uid": self.uid,
        }


def _account(data: Path, address: str) -> Account:
    with UserDatabase(data / "users") as database:
        try:
            account = database.account(address)
        except MetadError:
            account = None
    if account is None:
        raise NoSuchUserError(f"{address}: there is no such user")
    return account


def _entries(store: MailStore, mailbox: int) -> list[Entry]:
    pairs = list(LISTING_ENTRY.iter_unpack(store.index.listing(mailbox)))
    uids = imported_uids(store, [one for one, _ in pairs if is_imported(one)])
    return [
        Entry(number, one, uids.get(one) or one.hex(), octets)
        for number, (one, octets) in enumerate(pairs, 1)
    ]


@mail.command("list")
@click.argument("address")
@hub_options
@json_option
def list_mail(place: HubLocation, address: str, as_json: bool) -> None:
    """List a mailbox: number, octets, time and unique id of each message."""
    data = place.enter()
    account = _account(data, address)
    with mail_store(data) as store:
        rows = [one.facts() for one in _entries(store, account.id)]
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        tables.show_table(account.address, rows)


@mail.command()
@click.argument("address")
@click.argument("message")
@hub_options
def show(place: HubLocation, address: str, message: str) -> None:
    """Write a message, by its number or unique id, to standard output, as it is."""
    data = place.enter()
    account = _account(data, address)
    with mail_store(data) as store:
        for one in _entries(store, account.id):
            if message in (one.uid, str(one.number)):
                for piece in unstuffed(_wire(store, account.id, one.id), lf=False):
                    sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
                return
    raise DataError(f"{address}: there is no message {message!a}")


def _wire(store: MailStore, mailbox: int, message_id: bytes) -> Iterator[Buffer]:
    """A message as RETR sends it.  Raises RefusedError."""
    for piece in store.reader.stream(message_id):
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
@click.option("--to", "target", required=True, metavar="mbox:FILE|maildir:DIR", help="Must be new.")
@json_option
def export_mail(place: HubLocation, address: str, target: str, as_json: bool) -> int:
    """Write every message of a mailbox to an mbox file or a Maildir; nothing is deleted.

    A Maildir gets Dovecot's list of unique ids, so that POP clients know what they have.
    """
    kind, path = _place_of(target, "--to")
    try:
        owner = os.stat(place.data)
    except OSError:
        raise UnavailableError(f"{place.data}: there is no data directory here") from None
    writer: Writer = MboxWriter(path) if kind == "mbox" else MaildirWriter(path, owner)
    data = place.enter()
    account = _account(data, address)
    damaged: list[str] = []
    with mail_store(data) as store:
        count = write_all(writer, _messages(store, account.id, damaged))
    if as_json:
        click.echo(json.dumps({"exported": count, "damaged": damaged}))
    else:
        for one in damaged:
            click.echo(f"metad: warning: {one}", err=True)
        click.echo(f"exported {count:,} messages of {account.address}")
    return EX_DATAERR if damaged else EX_OK


def _messages(store: MailStore, mailbox: int, damaged: list[str]) -> Iterator[Foreign]:
    for one in _entries(store, mailbox):
        try:
            octets = b"".join(unstuffed(_wire(store, mailbox, one.id), lf=False))
            envelope = next(iter(store.reader.stream(one.id)))
        except RefusedError as error:
            damaged.append(f"message {one.number}: {error}")
            continue
        if isinstance(envelope, bytes):
            continue
        yield Foreign("", octets, one.uid, envelope.envelope.time_us, envelope.envelope.sender)


def _place_of(text: str, option: str) -> tuple[str, Path]:
    kind, _, path = text.partition(":")
    if kind not in {"mbox", "maildir"} or not path:
        raise UsageError(f"{option}: mbox:FILE or maildir:DIRECTORY")
    return kind, Path(path)


# --- Import ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import."""

    source: str
    uidl_format: str
    master: str | None
    password_stdin: bool
    insecure: bool
    as_json: bool


@mail.command("import")
@click.argument("address")
@hub_options
@click.option(
    "--from", "source", required=True, metavar="mbox:FILE|maildir:DIR|pop3://[USER@]HOST[:PORT]",
    help="pop3s:// is TLS from the first octet; pop3:// turns to TLS where the server offers it.",
)  # fmt: skip
@click.option(
    "--uidl-format", default=UIDL_FORMAT, show_default=True,
    help="Of a Maildir that Dovecot served: its pop3_uidl_format (%u, %v, %f).",
)  # fmt: skip
@click.option("--master", metavar="NAME", help="Log in to the server as its master user.")
@password_stdin
@click.option("--insecure", is_flag=True, help="Without TLS, or with any certificate.")
@json_option
def import_mail(place: HubLocation, address: str, **given: Any) -> int:
    """Bring the messages of another server into a mailbox, behind those that are there.

    They keep the unique ids that POP clients know, so nobody downloads anything twice; those
    that are in the mailbox already, by their unique id, are passed over: it can be done again.
    A message without one gets one that its content makes.
    """
    wish = ImportOptions(**given)
    config = place.config
    read = _reader(wish, address)
    # Before the command becomes the hub's owner: what is read need not be that one's to read.
    reading = None
    if os.geteuid() == 0:
        reading = Reading(read)
        if not hub_runs(place.data):
            prepare()
    try:
        data = place.enter()
        account = _account(data, address)
        with some_hub(config, data), closing(Deposit(data)) as deposit:
            known = _known(data, account.id)
            passed = _import(deposit, account, reading or read(), known)
    finally:
        if reading is not None:
            reading.close()
    return _report(account, deposit, passed, wish.as_json)


def _reader(wish: ImportOptions, address: str) -> Callable[[], Iterator[Foreign]]:
    """What will read the messages.  A password is asked for now."""
    if not wish.source.startswith(("pop3://", "pop3s://")):
        kind, path = _place_of(wish.source, "--from")
        path = path.absolute()
        if kind == "mbox":
            return lambda: read_mbox(path)
        return lambda: read_maildir(path, wish.uidl_format)
    account = parse_url(wish.source)
    account = replace(
        account,
        user=account.user or address,
        master=wish.master,
        password=read_password(wish.password_stdin),
        insecure=wish.insecure,
    )

    def fetch() -> Iterator[Foreign]:
        with PopClient(account) as client:
            yield from client.messages(set())

    return fetch


def _known(data: Path, mailbox: int) -> set[str]:
    """The unique ids of a mailbox."""
    try:
        with mail_store(data) as store:
            return {one.uid for one in _entries(store, mailbox)}
    except UnavailableError:
        return set()


def _import(deposit: Deposit, account: Account, messages: Any, known: set[str]) -> int:
    """How many were passed over: they are here already."""
    passed = 0
    made: Counter[str] = Counter()
    for message in messages:
        uid = message.uid or _made_uid(message, made)
        if uid in known:
            passed += 1
            continue
        known.add(uid)
        address = message.address or account.address
        deposit.put(account.id, message._replace(uid=uid, address=address))
    deposit.finish()
    return passed


def _made_uid(message: Foreign, made: Counter[str]) -> str:
    """A unique id for a message that has none, the same each time; a twin's has a number."""
    digest = hashlib.blake2b(message.octets, digest_size=16).hexdigest()
    made[digest] += 1
    return digest if made[digest] == 1 else f"{digest}.{made[digest]}"


def _report(account: Account, deposit: Deposit, passed: int, as_json: bool) -> int:
    refused = [f"{message.place}: {why}" for message, why in deposit.refused]
    if as_json:
        facts = {"imported": deposit.stored, "known": passed, "refused": refused}
        click.echo(json.dumps(facts))
    else:
        for one in refused:
            click.echo(f"metad: warning: {one}", err=True)
        known = f", passed over {passed:,} that are here already" if passed else ""
        click.echo(f"imported {deposit.stored:,} messages into {account.address}{known}")
    return EX_DATAERR if refused else EX_OK
