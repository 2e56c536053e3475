"""Dovecot's dovecot-uidlist: the unique id of each file of a Maildir, as POP clients know it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from metad.errors import DataError, UsageError

UIDLIST = "dovecot-uidlist"
# Dovecot's pop3_uidl_format: its default in all releases.
UIDL_FORMAT = "%08Xu%08Xv"
_LARGEST = 64 << 20
_HEAD = re.compile(r"3 V([0-9]{1,10}) .*|3 V([0-9]{1,10})|1 ([0-9]{1,10}) .*", re.ASCII)
_LINE = re.compile(r"([0-9]{1,10}) ((?:[A-Z]\S* )*):(.*)", re.ASCII)
_OLD_LINE = re.compile(r"([0-9]{1,10}) ()(.*)", re.ASCII)  # version 1 has no fields
_CONVERSION = re.compile(r"%(0?[0-9]{0,2})(X?)([uvf%])", re.ASCII)
_UNIQUE = {"u", "f"}


class ListedFile(NamedTuple):
    """An entry of the list: the file's number in the mailbox, and its unique id."""

    number: int
    uid: str


def check_format(uidl_format: str) -> str:
    """A pop3_uidl_format that can be computed and gives each message another id.

    Raises UsageError, before anything is imported.
    """
    rest = _CONVERSION.sub("", uidl_format)
    if "%" in rest:
        unknown = rest[rest.index("%") :][:4]
        raise UsageError(f"--uidl-format: unknown variable {unknown}; %u, %v, %f and %% are known")
    if not _UNIQUE & {found[3] for found in _CONVERSION.finditer(uidl_format)}:
        raise UsageError("--uidl-format: needs %u or %f, or all messages have the same id")
    return uidl_format


def base_name(name: str) -> str:
    """The name of a message without its flags."""
    return name.partition(":")[0]


def read_uidlist(top: int, place: str, uidl_format: str) -> dict[str, ListedFile]:
    """The list in the Maildir open at `top`; empty if there is none.  Raises DataError, OSError."""
    try:
        fd = os.open(UIDLIST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return {}
    with os.fdopen(fd, "rb") as file:
        text = os.fsdecode(file.read(_LARGEST))
    head, *lines = text.split("\n")
    match = _HEAD.fullmatch(head)
    if match is None:
        raise DataError(
            f"{place}/{UIDLIST}:1: unknown version of Dovecot's list of unique ids",
            remedy="import by POP3 from the running Dovecot instead: --from pop3://HOST",
        )
    validity = int(next(one for one in match.groups() if one))
    known: dict[str, ListedFile] = {}
    for line in lines:
        found = _LINE.fullmatch(line) or _OLD_LINE.fullmatch(line)
        if found is not None:
            saved = [one[1:] for one in found[2].split() if one.startswith("P")]
            number, name = int(found[1]), base_name(found[3])
            uid = saved[0] if saved else _uidl(uidl_format, number, validity, name)
            known[name] = ListedFile(number, uid)
    return known


def _uidl(uidl_format: str, number: int, validity: int, name: str) -> str:
    """A unique id by Dovecot's pop3_uidl_format: %u, %v in any width and base, %f, %%."""

    def one(match: re.Match[str]) -> str:
        width, base, what = match.groups()
        if what in "f%":
            return name if what == "f" else "%"
        # Dovecot's X is hexadecimal in lower case.
        return format(number if what == "u" else validity, width + ("x" if base else "d"))

    return _CONVERSION.sub(one, uidl_format)
