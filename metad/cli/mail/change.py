"""`metad mail delete`, `metad mail copy`: single messages, beside a running hub or without one.

Rules of this file:

* Only a worker changes mail, as for POP3 and `metad mail import`; if no hub runs, one without
  listeners is started.  So deletions are durable, and usage and quotas are right.
* Messages are selected first and then named by their unique ids: numbers change, ids do not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from metad.cli.attached import ask_one
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.foreign import Foreign
from metad.cli.mail.import_client import ImportClient, prepare, some_hub, sorted_out
from metad.cli.mail.mail import ListedMail, account_of, entries_of, no_such_message
from metad.cli.mail.mailstore import MailStore, hub_runs, mail_store
from metad.cli.progress import Progress
from metad.errors import (
    EX_DATAERR,
    EX_OK,
    DataError,
    RefusedError,
    TemporaryError,
    UnavailableError,
)
from metad.layers.texts import unstuffed
from metad.store.ids import time_of
from metad.users.account import Account
from metad.users.policy import Policies

ANSWER_SECONDS = 60.0
# How long to wait for a mailbox in use, and between retries.
IN_USE_SECONDS = 5.0
RETRY_SECONDS = 0.25
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be done; do nothing."
)
force_option = click.option("--force", is_flag=True, help="Beyond the mailbox's quota too.")


@contextmanager
def changing(place: HubLocation) -> Iterator[Path]:
    """The data directory while a hub runs on it: the running one, or one for this command."""
    config = place.config
    if os.geteuid() == 0 and not hub_runs(place.data):
        prepare()  # while this is root: its code may be below /root
    data = place.enter()
    with some_hub(config, data):
        yield data


def choose(
    entries: Sequence[ListedMail], messages: Sequence[str], address: str
) -> list[ListedMail]:
    """The messages named by number (7), range (3-5) or unique id, each once, in order.

    Raises DataError, which names the missing ones.
    """
    by_uid = {one.uid: one.number for one in entries}
    chosen: set[int] = set()
    for text in messages:
        first, dash, last = text.partition("-")
        if first.isdecimal() and (last.isdecimal() or not dash) and text not in by_uid:
            wanted = range(int(first), int(last or first) + 1)
            if not wanted or wanted[0] < 1 or wanted[-1] > len(entries):
                raise no_such_message(address, text)
            chosen.update(wanted)
        elif text in by_uid:
            chosen.add(by_uid[text])
        else:
            raise no_such_message(address, text)
    return [entries[number - 1] for number in sorted(chosen)]


# --- Delete ---------------------------------------------------------------------------------------


@click.command()
@click.argument("address")
@click.argument("messages", nargs=-1, required=True, metavar="N|N-M|UID...")
@hub_options
@dry_run_option
@json_option
def delete(
    place: HubLocation, address: str, messages: tuple[str, ...], dry_run: bool, as_json: bool
) -> int:
    """Delete messages of a mailbox, by the numbers or unique ids that metad mail list shows.

    It is done as a POP3 client does it: durable before the command ends.  A mailbox that a POP3
    session has open is waited for; after five seconds the exit code is 75.  metad mail undelete
    brings a message back while its record still lies in a log.

    \b
    Example:
      metad mail delete alice@example.org 3 7-9
    """
    with changing(place) as data:
        account = account_of(data, address)
        with mail_store(data, whole=True) as store:
            chosen = choose(entries_of(store, account.id), messages, account.address)
        result: dict[str, Any] = {"deleted": [one.uid for one in chosen], "missing": []}
        if not dry_run:
            result = delete_uids(data, account, result["deleted"])
    if as_json:
        click.echo(json.dumps({key: result[key] for key in ("deleted", "missing")}))
    else:
        _show_deleted(account, chosen, result, dry_run)
    return EX_DATAERR if result["missing"] else EX_OK


def _show_deleted(
    account: Account, chosen: list[ListedMail], result: dict[str, Any], dry_run: bool
) -> None:
    for one in chosen:
        if one.uid in result["deleted"]:
            verb = "would delete" if dry_run else "deleted"
            click.echo(f"{verb} {one.number}: {one.uid}, {one.octets:,} bytes")
    for uid in result["missing"]:
        click.echo(f"metad: warning: {account.address}: {uid} was gone already", err=True)


def delete_uids(data: Path, account: Account, uids: list[str]) -> dict[str, Any]:
    """Delete messages by their unique ids.  Raises TemporaryError, UnavailableError."""
    request = {"command": "delete", "mailbox": account.id, "address": account.address, "uids": uids}
    deadline = time.monotonic() + IN_USE_SECONDS
    while True:
        answer = ask_one(data, request, ANSWER_SECONDS)
        if answer is None:
            raise UnavailableError(
                f"the hub on {data} does not answer",
                remedy=f"metad mail list {account.address} shows what is left",
            )
        if "refused" not in answer:
            return answer
        in_use = "[IN-USE]" in answer["refused"]
        if not in_use or time.monotonic() > deadline:
            raise TemporaryError(
                f"{account.address}: {answer['refused']}",
                remedy=f"metad who --user {account.address} shows by whom"
                if in_use
                else "metad status shows what is wrong",
            )
        time.sleep(RETRY_SECONDS)


# --- Copy -----------------------------------------------------------------------------------------


@click.command()
@click.argument("address")
@click.argument("messages", nargs=-1, required=True, metavar="N|N-M|UID...")
@hub_options
@click.option(
    "--to", "target", required=True, metavar="ADDRESS", help="The mailbox that gets them."
)
@force_option
@dry_run_option
@json_option
def copy(
    place: HubLocation, address: str, messages: tuple[str, ...], *, target: str, as_json: bool,
    **options: bool,
) -> int:  # fmt: skip
    """Copy messages into another mailbox; there they are new messages with ids of their own.

    Sender, content and time of arrival stay.  The quota of the other mailbox applies, unless
    --force is given.

    \b
    Example:
      metad mail copy alice@example.org 12 --to bob@example.org
    """
    progress = Progress("messages", quiet=as_json)
    with changing(place) as data:
        source, account = account_of(data, address), account_of(data, target)
        with mail_store(data, whole=True) as store:
            chosen = choose(entries_of(store, source.id), messages, source.address)
            if not options["force"]:
                check_room(place, store, account, [one.octets for one in chosen])
            copies = [(one.uid, one.id) for one in chosen]
            stored = Stored([], [], None)
            if not options["dry_run"]:
                stored = store_again(data, store, account, copies, progress)
    progress.close()
    done = [one.uid for one in chosen] if options["dry_run"] else stored.done
    if as_json:
        click.echo(json.dumps({"copied": done, "failed": stored.failures}))
    else:
        for one in chosen:
            if one.uid in done:
                verb = "would copy" if options["dry_run"] else "copied"
                click.echo(f"{verb} {one.number}: {one.uid}, {one.octets:,} bytes")
    return tell_failures(stored)


def check_room(place: HubLocation, store: MailStore, account: Account, sizes: list[int]) -> None:
    """Raises DataError if messages of these sizes do not fit into a mailbox's quota."""
    quota = Policies(place.config).quota(account)
    if quota is None:
        return
    usage = store.index.usage(account.id)
    octets, messages = usage.octets + sum(sizes), usage.messages + len(sizes)
    if (quota.octets and octets > quota.octets) or (quota.messages and messages > quota.messages):
        raise DataError(
            f"{account.address}: {messages:,} messages, {octets:,} bytes are more than its quota",
            remedy="metad user set --quota raises it, --force goes beyond it",
        )


class Stored(NamedTuple):
    """The names of messages that were stored durably, what is wrong with others, and the error that
    says why some were only deferred."""

    done: list[str]
    bad: list[str]
    deferred: TemporaryError | None

    @property
    def failures(self) -> list[str]:
        return [*self.bad, *([str(self.deferred)] if self.deferred else [])]


def store_again(
    data: Path, store: MailStore, account: Account, messages: list[tuple[str, bytes]],
    progress: Progress,
) -> Stored:  # fmt: skip
    """Store messages, given by a name and their id, as new ones of `account`."""
    arrived = f"metad mail list {account.address} shows what has arrived"
    with closing(ImportClient(data, arrived)) as client:
        unread: list[str] = []
        sent: list[str] = []
        for number, (name, message_id) in enumerate(messages):
            progress.step("messages", number, len(messages))
            try:
                found = stored_message(store, message_id)
            except RefusedError as error:
                unread.append(f"{name}: {error}")
                continue
            client.put(account.id, found._replace(place=name, address=account.address))
            sent.append(name)
        client.finish()
        bad, deferred = sorted_out(client.refused)
        refused = {one.place for one in client.refused}
    return Stored([name for name in sent if name not in refused], unread + bad, deferred)


def stored_message(store: MailStore, message_id: bytes) -> Foreign:
    """A message as it was stored, its trace included.  Raises RefusedError: it cannot be read."""
    pieces = store.reader.stream(message_id)
    head = next(pieces)
    if isinstance(head, bytes):
        raise RefusedError("no envelope")
    octets = b"".join(unstuffed((one for one in pieces if isinstance(one, bytes)), lf=False))
    envelope = head.envelope
    return Foreign("", octets, "", envelope.time_us or time_of(message_id), envelope.sender)


def tell_failures(stored: Stored) -> int:
    """The exit code.  Raises TemporaryError if messages were deferred."""
    for one in stored.bad:
        click.echo(f"metad: warning: {one}", err=True)
    if stored.deferred is not None:
        raise stored.deferred
    return EX_DATAERR if stored.bad else EX_OK
