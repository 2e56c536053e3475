"""Fuzz targets of imports: mbox files, Maildirs with Dovecot's list, POP3 servers.

What must hold for every input: each message of the source is imported or reported; a source that
ends early is never considered complete; POP3 can send every imported message.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metad.cli.mail import mbox
from metad.cli.mail.foreign import BadItem, Foreign, Item, Note
from metad.cli.mail.maildir import read_maildir
from metad.cli.mail.popclient import Account, PopClient
from metad.cli.mail.uidlist import UIDL_FORMAT
from metad.errors import DataError, MetadError
from metad.protocol.address import parse_mailbox
from tests.support.import_items import items_of

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\0")
_WORD = re.compile(rb"word[0-9]{4}")
_ENVELOPE = re.compile(rb"(?i)return-path:|delivered-to:")
_UID = re.compile(r"[!-~]{0,70}", re.ASCII)


def check(item: Item) -> None:
    if isinstance(item, BadItem):
        assert item.reason
        assert "\n" not in item.place + item.reason
    elif isinstance(item, Note):
        assert "\n" not in item.text
    else:
        assert not _BARE.search(item.octets)
        assert item.octets == b"" or item.octets.endswith(b"\r\n")
        assert _UID.fullmatch(item.uid)
        assert 0 <= item.time_us <= time.time_ns() // 1000
        for address in (item.sender, item.address):
            assert address == "" or parse_mailbox(address)


def mbox_file(octets: bytes) -> None:
    """No more items than separator lines, and only those lines are lost."""
    try:
        items = list(items_of(mbox._messages("box", io.BytesIO(octets), len(octets))))
    except DataError as error:
        assert "\n" not in str(error)
        return
    separators = [line for line in io.BytesIO(octets) if mbox._SEPARATOR.fullmatch(line)]
    assert len(items) <= len(separators)
    for item in items:
        check(item)
    if any(isinstance(one, Note) for one in items):
        return
    kept = b"".join(item.octets for item in items if isinstance(item, Foreign))
    for line in io.BytesIO(octets):
        # These become the envelope.
        if line not in separators and not _ENVELOPE.match(line):
            for word in _WORD.findall(line):
                assert word in kept


def maildir(octets: bytes) -> None:
    """The list, an empty line, then the names of the files, each with its own name in it."""
    listed, _, names = octets.partition(b"\n\n")
    wanted = set()
    with tempfile.TemporaryDirectory(prefix="metad-fuzz-") as top:
        for part in ("cur", "new"):
            (Path(top) / part).mkdir()
        if listed:
            (Path(top) / "dovecot-uidlist").write_bytes(listed)
        for number, name in enumerate(names.split(b"\n")[:20]):
            if not name or b"/" in name or b"\0" in name or len(name) > 255 or name[:1] == b".":
                continue
            directory = b"cur" if number % 2 else b"new"
            path = b"/".join((os.fsencode(top), directory, name))
            with open(path, "wb") as file:
                file.write(b"Subject: " + name + b"\n\nx\n")
            wanted.add((directory, name))
        try:
            items = list(items_of(read_maildir(Path(top), UIDL_FORMAT)))
        except MetadError as error:
            assert "\n" not in str(error)
            return
    assert len(items) == len(wanted)
    for item in items:
        check(item)
        assert isinstance(item, Foreign)


class _Socket:
    """Takes what a client sends."""

    def sendall(self, octets: bytes) -> None:
        assert octets.endswith(b"\r\n")

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 110

    def close(self) -> None:
        pass


class _Scripted(PopClient):
    """A session with a server that sends a fixed script, whatever the client sends."""

    def __init__(self, octets: bytes) -> None:
        self._account = Account("x", 110, tls=False, user="ann", password=b"pw")
        self._place = "x:110"
        self._socket: Any = _Socket()
        self._input: Any = io.BufferedReader(io.BytesIO(octets))  # type: ignore[arg-type]
        greeting = self._reply("greeting")
        self._line_end = b"\r\n" if greeting.endswith(b"\r\n") else b"\n"
        self._log_in()


def pop3_source(octets: bytes) -> None:
    """The part after the login: STAT, UIDL, messages."""
    items: list[Item] = []
    try:
        client = _Scripted(b"+OK\r\n+OK\r\n+OK\r\n" + octets)
        for item in items_of(client.messages()):
            items.append(item)
            assert len(items) <= 10_000
    except MetadError as error:
        assert "\n" not in str(error)
    else:
        count = int(octets.split(b"\n", 1)[0].split()[1])
        assert len(items) >= count  # each of them, or an error
    for item in items:
        check(item)


IMPORT_TARGETS: dict[str, Callable[[bytes], None]] = {
    "mbox": mbox_file,
    "maildir": maildir,
    "pop3-source": pop3_source,
}
