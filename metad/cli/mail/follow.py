"""`metad mail tail` and `metad mail wait`: messages as they arrive.

Rules of this file:

* The index is read again only when it has changed: reading its transaction number costs a
  microsecond.
* A message is printed once, in the order of its mailbox; one that another worker or node enters
  later with a smaller id, after those that were there first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any, NamedTuple

import click

from metad.cli.context import HubLocation, finite, hub_options, json_option
from metad.cli.mail.mail import ListedMail, account_of, entries_of, mail, wire_of
from metad.cli.mail.mailstore import MailStore, mail_store
from metad.cli.tables import cell
from metad.errors import EX_TEMPFAIL, MetadError, RefusedError, UnavailableError
from metad.layers.texts import unstuffed
from metad.store.ids import time_of
from metad.users.account import Account
from metad.users.database import UserDatabase

POLL_SECONDS = 0.05
# A message may come so much later than another one with a greater id.
LATE_US = 60_000_000
# Bytes of a message that are read for its subject.
_HEAD = 64 * 1024


class TimedOutError(MetadError):
    """The messages did not arrive in time (exit 75)."""

    exit_code = EX_TEMPFAIL
    remedy = "wait longer with --timeout"


class Arrival(NamedTuple):
    """A message that has arrived; `store` is open until the next one is asked for."""

    store: MailStore
    account: Account
    number: int
    id: bytes
    octets: int


class Seen:
    """The messages of one mailbox at the last look: the greatest id, and each one of the last
    minute."""

    __slots__ = ("_last", "_recent")

    def __init__(self) -> None:
        self._last = b""
        self._recent: set[bytes] = set()

    def fresh(self, entries: list[ListedMail]) -> list[ListedMail]:
        """Those that have come since the last look."""
        floor, recent = self._floor(), self._recent
        found = [one for one in entries if one.id > floor and one.id not in recent]
        self._last = max([self._last, *(one.id for one in found)])
        floor = self._floor()
        self._recent = {one.id for one in entries if one.id > floor}
        return found

    def _floor(self) -> bytes:
        """Ids below it have been seen, or are ignored."""
        if not self._last:
            return b""
        return max(time_of(self._last) - LATE_US, 0).to_bytes(8, "big")


def follow(data: Path, address: str | None, *, new_only: bool) -> Iterator[Arrival | None]:
    """Messages of one mailbox or of all; None after each look.  Raises MetadError."""
    seen_in: dict[int, Seen] = {}
    seen = -1
    first = True
    while True:
        try:
            with mail_store(data) as store:
                while True:
                    now = store.index.transaction
                    if now != seen:
                        seen = now
                        for one in _fresh(store, _accounts(data, address), seen_in):
                            if not (first and new_only):
                                yield one
                        first = False
                    yield None
                    time.sleep(POLL_SECONDS)
        except UnavailableError:
            # No mail yet, or an index that is being rebuilt.
            first = False
            yield None
            time.sleep(POLL_SECONDS)


def _accounts(data: Path, address: str | None) -> list[Account]:
    if address is not None:
        return [account_of(data, address)]
    with UserDatabase(data / "users") as users:
        return list(users.accounts())


def _fresh(
    store: MailStore, accounts: list[Account], seen_in: dict[int, Seen]
) -> Iterator[Arrival]:
    """The messages that have come into each mailbox since the last look."""
    for account in accounts:
        seen = seen_in.setdefault(account.id, Seen())
        for one in seen.fresh(entries_of(store, account.id)):
            yield Arrival(store, account, one.number, one.id, one.octets)


@mail.command()
@click.argument("address", required=False)
@hub_options
@click.option("--all", "everything", is_flag=True, help="Start with the messages already stored.")
@json_option
def tail(place: HubLocation, address: str | None, everything: bool, as_json: bool) -> None:
    """Print a line for each message as it arrives, in one mailbox or in all, until Ctrl-C.

    \b
    Example:
      metad mail tail ann@example.org
    """
    data = place.enter()
    for one in follow(data, address, new_only=not everything):
        if one is not None:
            facts = summary(one)
            click.echo(json.dumps(facts, ensure_ascii=False) if as_json else _line(facts))


@mail.command()
@click.argument("address")
@hub_options
@click.option("--count", type=click.IntRange(1), default=1, show_default=True,
              help="How many messages the mailbox must hold.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0), default=60.0, show_default=True,
              metavar="SECONDS", callback=finite,
              help="How long to wait; then the exit code is 75.")  # fmt: skip
@json_option
def wait(place: HubLocation, address: str, count: int, timeout: float, as_json: bool) -> None:
    """Wait until a mailbox holds a number of messages.

    \b
    Example:
      metad mail wait ann@example.org --count 2 --timeout 10
    """
    data = place.enter()
    account_of(data, address)
    deadline = time.monotonic() + timeout
    found = 0
    for one in follow(data, address, new_only=False):
        found += one is not None
        if found >= count:
            facts = {"address": address, "messages": found}
            click.echo(json.dumps(facts) if as_json else f"{address}: {found} messages")
            return
        if one is None and time.monotonic() > deadline:
            raise TimedOutError(f"{address}: {found} messages after {timeout:g} s, not {count}")


def summary(one: Arrival) -> dict[str, Any]:
    """What a person wants to know about a message."""
    try:
        head = b""
        for piece in unstuffed(wire_of(one.store, one.account.id, one.id), lf=False):
            head += piece
            if len(head) > _HEAD:
                break
    except RefusedError as error:
        return {"to": one.account.address, "number": one.number, "error": str(error)}
    message = message_from_bytes(head, policy=policy.default)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_of(one.id) // 1_000_000)),
        "to": one.account.address,
        "number": one.number,
        "bytes": one.octets,
        "from": str(message.get("From", "")),
        "subject": str(message.get("Subject", "")),
    }


def _line(facts: dict[str, Any]) -> str:
    if "error" in facts:
        return f"{facts['to']} {facts['number']}: {cell(facts['error'])}"
    text = f"from {cell(facts['from'])}: {cell(facts['subject'])}"
    return f"{facts['time']} {facts['to']} {facts['number']} ({facts['bytes']:,} bytes) {text}"
