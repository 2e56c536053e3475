"""`metad user list --long`: every mailbox with its usage, quota and last login.

Rule of this file: a million mailboxes take seconds.  Facts about all of them are read at once, in
their stored order (usage by mailbox, logins by mailbox), and the list is printed as it is made;
only a sorted one is held in memory, and with --first only its beginning.
"""

from __future__ import annotations

import heapq
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click

from metad.cli import tables
from metad.cli.mail.mailstore import mail_store
from metad.cli.progress import Progress
from metad.config.model import Config
from metad.errors import MetadError
from metad.users.database import UserDatabase
from metad.users.last_logins import NAME as LOGINS
from metad.users.policy import Policies

TABLE_ROWS = 1000  # drawn as a table; the rest follows as plain lines
_CELL = 8
_NAMES = ("address", "messages", "bytes", "quota", "used", "last_login", "notes")


class MailboxRow(NamedTuple):
    """A mailbox.  `octets`, `messages`: None if unknown now; a quota of 0 is none; `last_login`:
    Unix time, 0 if never."""

    address: str
    id: int
    disabled: bool
    has_password: bool
    octets: int | None
    messages: int | None
    quota: int
    quota_messages: int
    last_login: int

    @property
    def share(self) -> float:
        """The used share of its quota, the greater one of two."""
        octets = (self.octets or 0) / self.quota if self.quota else 0.0
        messages = (self.messages or 0) / self.quota_messages if self.quota_messages else 0.0
        return max(octets, messages)

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "address": self.address,
            "disabled": self.disabled,
            "has_password": self.has_password,
            "messages": self.messages,
            "bytes": self.octets,
            "quota": self.quota,
            "quota_messages": self.quota_messages,
            "last_login": self.last_login or None,
        }

    def cells(self) -> tuple[str, ...]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.last_login))
        notes = ["disabled"] if self.disabled else []
        notes += [] if self.has_password else ["no password"]
        has_quota = self.quota or self.quota_messages
        return (
            self.address,
            "-" if self.messages is None else str(self.messages),
            "-" if self.octets is None else str(self.octets),
            str(self.quota) if self.quota else "-",
            f"{self.share:.0%}" if has_quota else "-",
            when if self.last_login else "never",
            ", ".join(notes),
        )


# The order of each --sort: what asks for attention comes first.
ORDERS: dict[str, Callable[[MailboxRow], Any]] = {
    "address": lambda one: one.address,
    "bytes": lambda one: -(one.octets or 0),
    "messages": lambda one: -(one.messages or 0),
    "quota": lambda one: -one.share,
    "login": lambda one: one.last_login,
}


class MailboxFacts:
    """Facts about all mailboxes, by number."""

    def __init__(self, data: Path) -> None:
        self.octets = self.messages = array("Q")
        self.has_usage = False
        self._read_usage(data)
        self.logins = _logins(data / "users" / LOGINS)

    def _read_usage(self, data: Path) -> None:
        try:
            with mail_store(data) as store:
                size = store.index.greatest_mailbox() + 1
                octets, messages = array("Q", bytes(8 * size)), array("Q", bytes(8 * size))
                progress = Progress("mailboxes")
                for mailbox, usage in store.index.usages():
                    progress.row(mailbox, size)
                    if mailbox < size:  # others were added since
                        octets[mailbox], messages[mailbox] = usage
                progress.close()
        except MetadError as error:
            click.echo(f"metad: warning: usage is not known: {error}", err=True)
            return
        self.octets, self.messages, self.has_usage = octets, messages, True


def _logins(path: Path) -> array[int]:
    """The times of all last logins (metad.users.last_logins)."""
    found = array("Q")
    try:
        raw = path.read_bytes()
    except OSError:
        return found
    found.frombytes(raw[: len(raw) - len(raw) % _CELL])
    if sys.byteorder == "little":
        found.byteswap()
    return found


def entries(
    data: Path, database: UserDatabase, config: Config, *, builtin: bool
) -> Iterator[MailboxRow]:
    """All mailboxes, by address."""
    policies = Policies(config)
    known = MailboxFacts(data)
    octets, messages, logins = known.octets, known.messages, known.logins
    size, most = len(octets), len(logins)
    nothing = 0 if known.has_usage else None
    for one in database.accounts(builtin=builtin):
        number = one.id
        policy = policies.of(one)
        yield MailboxRow(
            one.address, number, one.disabled, one.has_password,
            octets[number] if number < size else nothing,
            messages[number] if number < size else nothing,
            policy.quota or 0, policy.messages or 0,
            logins[number] if number < most else 0,
        )  # fmt: skip


def is_over(one: MailboxRow) -> bool:
    """Whether the next message is refused or deferred: the quota is reached."""
    return one.share >= 1.0


def arranged(
    found: Iterable[MailboxRow], order: str | None, first: int | None
) -> Iterable[MailboxRow]:
    """In the requested order; entries come by address."""
    if order is None or order == "address":
        return islice(found, first)
    if first is not None:
        return heapq.nsmallest(first, found, ORDERS[order])
    return sorted(found, key=ORDERS[order])


def show(found: Iterable[MailboxRow], *, as_json: bool) -> None:
    source = iter(found)
    if as_json:
        tables.print_array(one.facts() for one in source)
    elif tables.terminal():
        rows = list(islice(source, TABLE_ROWS))
        if rows:
            tables.show_table("", [dict(zip(_NAMES, one.cells(), strict=True)) for one in rows])
        tables.write_lines("\t".join(one.cells()) for one in source)
    else:
        click.echo("\t".join(_NAMES))
        tables.write_lines("\t".join(one.cells()) for one in source)


class ListOptions(NamedTuple):
    """The command's options."""

    builtin: bool
    over: bool
    order: str | None
    first: int | None


def list_long(data: Path, config: Config, wanted: ListOptions, *, as_json: bool) -> None:
    """Print the list."""
    with UserDatabase(data / "users") as database:
        found = entries(data, database, config, builtin=wanted.builtin)
        chosen = filter(is_over, found) if wanted.over else found
        show(arranged(chosen, wanted.order, wanted.first), as_json=as_json)
