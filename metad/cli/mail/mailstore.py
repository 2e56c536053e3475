"""Reads the log store from a command, with or without a running hub.

Rules of this file:

* It only reads, and only through the index and the verifying reader.
* Without a hub the index is used only if the next hub would use it: otherwise the contents of a
  mailbox are unknown until recovery.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import lmdb
import posix_ipc

from metad.control_client import Client, request
from metad.errors import MetadError, UnavailableError
from metad.store.identity import open_store
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.reader import Reader
from metad.store.unentered_mail import UnenteredMail
from metad.store.usage import Usage
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea

RECOVERY_SECONDS = 30.0
LOOK_SECONDS = 0.05
# A worker that has died keeps its note of mail that is not in the index until it is recovered.
ENTRY_SECONDS = 1.0
ENTRY_LOOK_SECONDS = 0.001
MASTER_ROW = 0


class MailStore:
    """The index and the logs of a store."""

    def __init__(self, data: Path) -> None:
        """Raises UnavailableError: there is none, or it has to be recovered first."""
        osio = Osio()
        try:
            store = open_store(osio, data)
            has_index = os.path.exists(os.path.join(store.index, index_state.DATA_FILE))
            if not has_index and not os.listdir(store.logs):
                raise UnavailableError(
                    f"{data}: there is no mail here", remedy="name the data directory by --data"
                )
            boot = index_state.instance(str(data))
            unusable = index_state.why_unusable(osio, store.index, boot)
            if unusable and not hub_runs(data):
                raise UnavailableError(
                    f"{data}: the index has to be rebuilt",
                    remedy="start the hub, or run metad store rebuild",
                )
            self.index = Index(store.index, readonly=True)
        except lmdb.Error as error:
            raise UnavailableError(
                f"{data}: the index cannot be read: {error}",
                remedy="restart the hub, which rebuilds it",
            ) from None
        self.osio = osio
        self.store = store
        self.reader = Reader(osio, store, self.index)

    def close(self) -> None:
        self.reader.close()
        self.index.close()


@contextmanager
def mail_store(data: Path, *, whole: bool = False) -> Iterator[MailStore]:
    """The store of a hub, open for reading, once mail acknowledged before is in the index.  Raises
    UnavailableError.

    `whole`: with the mail of a worker that has just died, which its recovery enters into the index.
    """
    if whole:
        wait_for_recovery(data)
    if hub_runs(data):
        wait_for_entries(data)
    store = MailStore(data)
    try:
        yield store
    finally:
        store.close()


def wait_for_entries(data: Path) -> None:
    """Wait until the index has all mail that the running hub acknowledged before, as a session
    does; a second at most."""
    try:
        area = SharedArea.attach((data / "run" / "segment").read_text().strip())
    except (OSError, ValueError, posix_ipc.Error):  # it is ending, or of another release
        return
    mail = UnenteredMail(area, MASTER_ROW)
    asked_ns = mail.now_ns()
    deadline = time.monotonic() + ENTRY_SECONDS
    while mail.is_any_older(asked_ns) and time.monotonic() < deadline:
        mail.ask()
        time.sleep(ENTRY_LOOK_SECONDS)


def wait_for_recovery(data: Path, seconds: float = RECOVERY_SECONDS) -> None:
    """Wait for the running hub to recover the log of a worker; warn if it takes too long."""
    deadline = time.monotonic() + seconds
    while _recovers(data):
        if time.monotonic() > deadline:
            text = (
                "metad: warning: the log of a worker that died is being recovered: mail is missing"
            )
            click.echo(text, err=True)
            return
        time.sleep(LOOK_SECONDS)


def _recovers(data: Path) -> bool:
    try:
        return any(one["role"] == "recovery" for one in request(data, "status")["processes"])
    except MetadError as error:
        if hub_runs(data):
            click.echo(f"metad: warning: {error}: its latest mail may be missing", err=True)
        return False


def usage_of(data: Path, mailbox: int) -> Usage | None:
    """The usage of a mailbox; None if it is unknown now."""
    try:
        with mail_store(data) as store:
            return store.index.usage(mailbox)
    except MetadError:
        return None


def hub_runs(data: Path) -> bool:
    """Whether a hub answers on this data directory."""
    try:
        Client(data).__exit__()
    except UnavailableError:
        return False
    return True
