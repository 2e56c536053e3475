"""The sources of an import: mbox files, Maildirs, POP3 servers; one mailbox or all.

Rules of this file:

* Root reads the files of a mailbox as their owner, never as root: the owner may have placed a link
  to one of root's files there.  See metad.cli.mail.privileged_read.
* A POP3 server is read after the command has become the hub's owner: root never parses data from a
  network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from metad.cli.mail.foreign import SourceItem, shown
from metad.cli.mail.maildir import read_maildir
from metad.cli.mail.mbox import read_mbox
from metad.cli.mail.popclient import PopClient, parse_url
from metad.errors import OsError, UsageError

# Dovecot's variables of mail_location that an address can fill in.
_VARIABLE = re.compile(r"%(.?)")


@dataclass(frozen=True, slots=True)
class Source:
    """`read(address)`: the items of one mailbox; `path(address)`: its files, None for a server."""

    read: Callable[[str], Iterator[SourceItem]]
    path: Callable[[str], Path] | None = None


@dataclass(frozen=True, slots=True)
class PopOptions:
    """How to log in to a POP3 server."""

    password: bytes
    master: str | None
    insecure: bool


def is_server(text: str) -> bool:
    """Whether a source is a POP3 server, which needs a password."""
    return text.startswith(("pop3://", "pop3s://"))


def server_source(url: str, options: PopOptions) -> Source:
    """Raises UsageError."""
    account = replace(
        parse_url(url),
        master=options.master,
        password=options.password,
        insecure=options.insecure,
    )

    def read(address: str) -> Iterator[SourceItem]:
        with PopClient(replace(account, user=account.user or address)) as client:
            yield from client.messages()

    return Source(read)


def file_source(text: str, uidl_format: str, *, template: bool) -> Source:
    """mbox:FILE or maildir:DIRECTORY; `template`: with %u, %n and %d.  Raises UsageError."""
    kind, path = split_place(text, "--from", ", or pop3://HOST")
    if template:
        expand(str(path), "user@example.org")

    def place(address: str) -> Path:
        made = Path(expand(str(path), address) if template else path).absolute()
        # Links that a caller without privileges gives are followed; root must name the target.
        return made if os.geteuid() == 0 else Path(os.path.realpath(made))

    def read(address: str) -> Iterator[SourceItem]:
        where = place(address)
        return read_mbox(where) if kind == "mbox" else read_maildir(where, uidl_format)

    return Source(read, place)


def split_place(text: str, option: str, more: str = "") -> tuple[str, Path]:
    """mbox:FILE or maildir:DIRECTORY -> its kind and path.  Raises UsageError."""
    kind, _, path = text.partition(":")
    if kind not in {"mbox", "maildir"} or not path:
        raise UsageError(f"{option}: must be mbox:FILE or maildir:DIRECTORY{more}")
    return kind, Path(path)


def expand(template: str, address: str) -> str:
    """Dovecot's %u (address), %n (local part), %d (domain), %%.

    Raises UsageError: an unknown variable, none of these, or an address that is no file name.
    """
    local, _, domain = address.rpartition("@")
    for part in (local, domain):
        if "/" in part or "\0" in part or part in ("", ".", ".."):
            raise UsageError(
                f"{address}: has no directory: it is not a file name",
                remedy="import it alone, with its path in --from",
            )
    values = {"u": address, "n": local, "d": domain, "%": "%"}

    def one(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise UsageError(f"--from: unknown variable {match[0]}; %u, %n, %d and %% are known")
        return values[match[1]]

    used = set(_VARIABLE.findall(template))
    if not used & {"u", "n"}:
        raise UsageError("--all: the source needs %u, or %n and %d, for the mailbox")
    return _VARIABLE.sub(one, template)


def owner_of(path: Path) -> os.stat_result:
    """The owner of these files.  Raises OsError: missing, or a symbolic link."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OsError.of(error, shown(path)) from None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
