"""`metad mail trace`: what became of a message, or of the messages of a mailbox.

Rules of this file:

* Statements about the present come from the index, those about the past from records that still lie
  in logs.  If neither knows anything, the lines of the hub's log follow; without any, it reports
  that.
* The hub's log is opened with the caller's rights: it may be root's.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from email import message_from_bytes, policy
from functools import partial
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.mail.hub_log import HubLog, given, of_hub
from metad.cli.mail.mail import account_of, entries_of
from metad.cli.mail.mailstore import MailStore, mail_store
from metad.cli.mail.undelete import HEAD
from metad.cli.progress import Progress
from metad.errors import EX_DATAERR, EX_OK, DataError, MetadError, RefusedError, UsageError
from metad.store.fsck.index_snapshot import read_snapshot
from metad.store.history import Deletion, History
from metad.store.ids import time_of
from metad.store.index import relocation
from metad.store.log import footer, record
from metad.users.account import Account
from metad.users.database import UserDatabase

_ID = re.compile(r"[0-9a-fA-F]{32}")
_LAST = 50
Facts = dict[str, Any]


@click.command()
@click.argument("what", metavar="ID|ADDRESS|MESSAGE-ID")
@hub_options
@click.option(
    "--log", "logs", multiple=True, metavar="FILE", type=click.Path(path_type=Path, readable=False),
    help="Show the lines of this log about the message, not of the one that the hub writes.",
)  # fmt: skip
@click.option(
    "--last", type=click.IntRange(1), default=_LAST, show_default=True,
    help="Of a mailbox: so many messages, the latest; of a log alone: so many lines.",
)  # fmt: skip
@json_option
def trace(
    place: HubLocation, what: str, *, logs: tuple[Path, ...], last: int, as_json: bool
) -> int:
    """Tell what became of a message: when it came and from whom, whose mailboxes have it, where its
    copies lie, when it was deleted or expired, whether its record has been collected.

    ID is the one in the 250 reply, the log and POP3's UIDL; a Message-ID makes the command read
    every log.  The lines of the running hub's log about the message follow, from its file or the
    journal: they tell which session deleted it, and why a message that is not here was refused, or
    that it has been collected.  Times are UTC.  Exit code 65 if nothing is known.

    \b
    Example:
      metad mail trace 000661f2a1b0c3d40001000200000007
      metad mail trace alice@example.org --last 20
    """
    text = what.strip().removeprefix("<").removesuffix(">")
    if not text:
        raise UsageError("no message is named", remedy="give an id, an address or a Message-ID")
    hub_log = given(logs) if logs else of_hub(place)
    data = place.enter()
    notes: list[str] = []
    account = None if _ID.fullmatch(what) else _account(data, what)
    with mail_store(data, whole=True) as store, UserDatabase(data / "users") as users:
        progress = Progress("logs", quiet=as_json)
        tracer = Tracer(store, users, notes, progress)
        if account is not None:
            hub_log.about(())
            rows = tracer.mailbox(account, last)
            progress.close()
            return _show_mailbox(rows, account, notes, as_json=as_json)
        found = tracer.by_id(what) if _ID.fullmatch(what) else tracer.by_message_id(text)
        progress.close()
    if found:
        lines = hub_log.about([one["id"] for one in found])
        found = [one | {"log": lines[one["id"]]} for one in found]
    else:
        found = _in_log(hub_log, text, last)
    return _show_messages(found, what, notes, as_json=as_json)


def _account(data: Path, address: str) -> Account | None:
    try:
        return account_of(data, address)
    except MetadError:
        return None


def _in_log(hub_log: HubLog, text: str, last: int) -> list[Facts]:
    """What the hub's log alone knows, of a message that was refused or has been collected."""
    name = text.lower() if _ID.fullmatch(text) else None
    lines = hub_log.about([name])[name][-last:] if name else hub_log.naming(text, last)
    return [{"id": name, "known": False, "log": lines}] if lines else []


class Tracer:
    """Finds out about messages.  `notes` gets anything that could not be examined."""

    def __init__(
        self, store: MailStore, users: UserDatabase, notes: list[str], progress: Progress
    ) -> None:
        self._store = store
        self._users = users
        self._progress = progress
        self._history = History(
            store.osio, store.store, store.index, notes.append, partial(progress.step, "logs")
        )

    def by_id(self, text: str) -> list[Facts]:
        facts = self._message(bytes.fromhex(text))
        return [facts] if facts["known"] else []

    def by_message_id(self, wanted: str) -> list[Facts]:
        total = sum(row.live_messages for row in read_snapshot(self._store.store).logs.values())
        found = []
        for done, one in enumerate(self._history.messages(), 1):
            self._progress.step("messages", done, max(done, total))
            if self._head(one).get("message_id") == wanted:
                found.append(one)
        return [self._message(one) for one in found]

    def mailbox(self, account: Account, last: int) -> list[Facts]:
        """The latest messages of a mailbox, including those that it deleted."""
        rows = {
            one.id: self._row(one.id, "in the mailbox", 0)
            for one in entries_of(self._store, account.id)[-last:]
        }
        for one in self._history.deleted_by(account.id):
            rows[one.id] = self._row(one.id, _how(one), one.time_us)
        return [rows[one] for one in sorted(rows)][-last:]

    def _row(self, message_id: bytes, state: str, deleted_us: int) -> Facts:
        head = self._head(message_id)
        return {
            "id": message_id.hex(),
            "received": _utc(head.get("time_us") or time_of(message_id)),
            "from": head.get("from"),
            "bytes": head.get("bytes"),
            "state": state,
            "deleted": _utc(deleted_us),
        }

    def _message(self, message_id: bytes) -> Facts:
        places, deletions, named = self._history.of(message_id)
        head = self._head(message_id)
        here = self._mailboxes(message_id, named | set(head.get("recipients", {})))
        mailboxes = [self._mailbox(one, head, "in the mailbox", 0) for one in sorted(here)]
        mailboxes += [self._mailbox(one.mailbox, head, _how(one), one.time_us) for one in deletions]
        return {
            "id": message_id.hex(),
            "known": bool(places or deletions or here),
            "made": _utc(time_of(message_id)),
            "node": int.from_bytes(message_id[8:10], "big"),
            "received": _utc(head["time_us"]) if head else None,
            **{key: head.get(key) for key in ("client", "helo", "from", "message_id", "bytes")},
            "mailboxes": mailboxes,
            "copies": [place._asdict() | self._log(place.log) for place in places],
            "collected": not places,
            "readable": bool(head),
        }

    def _log(self, number: int) -> Facts:
        return {"life": self._store.index.log_counts(number).life}

    def _mailboxes(self, message_id: bytes, named: set[int]) -> set[int]:
        """Of the mailboxes `named` those that have the message."""
        entries = b"".join(
            footer.ENTRY.pack(one, message_id, 0, 0, 0, record.MESSAGE) for one in sorted(named)
        )
        if not entries:
            return set()
        item = relocation.Item(record.MESSAGE, 0, 0, entries)
        [looked] = relocation.look(self._store.index, 0, [item])
        return set(looked.mailboxes)

    def _mailbox(self, number: int, head: Facts, state: str, deleted_us: int) -> Facts:
        given = head.get("recipients", {}).get(number)
        return {
            "mailbox": number,
            "address": self._users.address_of(number),
            "given": given,
            "state": state,
            "deleted": _utc(deleted_us),
        }

    def _head(self, message_id: bytes) -> Facts:
        """The contents of the record; empty if it cannot be read."""
        try:
            pieces = self._store.reader.stream(message_id)
            first = next(pieces)
            if isinstance(first, bytes):
                return {}
            octets = b""
            for piece in pieces:
                octets += piece if isinstance(piece, bytes) else b""
                if len(octets) > HEAD or b"\r\n\r\n" in octets:
                    break
            size = self._store.reader.size(message_id)
        except (RefusedError, StopIteration):
            return {}
        envelope = first.envelope
        header = message_from_bytes(octets[:HEAD], policy=policy.compat32)
        return {
            "time_us": envelope.time_us,
            "client": envelope.client,
            "helo": envelope.helo,
            "from": envelope.sender,
            "message_id": str(header.get("Message-ID", "")).strip().strip("<>"),
            "bytes": size,
            "recipients": {one.mailbox: one.address for one in envelope.recipients},
        }


def _how(deletion: Deletion) -> str:
    return "expired, or its user was removed" if deletion.expired else "deleted"


def _utc(us: int | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(us // 1_000_000)) if us else None


# --- For people -----------------------------------------------------------------------------------


def _show_mailbox(
    rows: Sequence[Facts], account: Account, notes: list[str], *, as_json: bool
) -> int:
    _warn(notes)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        tables.show_records(account.address, rows)
    else:
        click.echo(
            f"{account.address}: no message, and none that was deleted lies in a log", err=True
        )
    return EX_OK


def _show_messages(found: list[Facts], what: str, notes: list[str], *, as_json: bool) -> int:
    _warn(notes)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return EX_OK if found else EX_DATAERR
    if not found:
        raise DataError(
            f"no log tells of {what!a}: it was never stored here, or it was deleted and collected",
            remedy="--log FILE searches an older log of the hub",
        )
    for facts in found:
        for line in _lines(facts):
            click.echo(line)
    return EX_OK


def _warn(notes: list[str]) -> None:
    for one in notes:
        click.echo(f"metad: warning: {one}", err=True)


def _lines(facts: Facts) -> Iterator[str]:
    cell = tables.cell
    if not facts["known"]:
        yield "record:     none: it was never stored here, or it was deleted and collected"
        yield from _log_lines(facts)
        return
    yield f"id:         {facts['id']}"
    yield f"made:       {facts['made']} by node {facts['node']}"
    if facts["readable"]:
        client, helo = cell(facts["client"]), cell(facts["helo"])
        yield f"received:   {facts['received']} from {client}, helo <{helo}>"
        yield f"from:       <{cell(facts['from'])}>"
        yield f"message-id: <{cell(facts['message_id'])}>"
        yield f"record:     {facts['bytes']:,} bytes"
    for one in facts["mailboxes"]:
        when = f" {one['deleted']}" if one["deleted"] else ""
        given = f" as {cell(one['given'])}" if one["given"] not in (None, one["address"]) else ""
        yield f"mailbox:    {cell(one['address'] or one['mailbox'])}{given}: {one['state']}{when}"
    for one in facts["copies"]:
        yield f"copy:       log {one['log']}, offset {one['offset']:,}, {one['size']:,} bytes"
    if facts["collected"]:
        yield "copy:       none: its record has been collected"
    yield from _log_lines(facts)


def _log_lines(facts: Facts) -> Iterator[str]:
    for line in facts["log"]:
        yield f"log:        {tables.cell(line)}"
