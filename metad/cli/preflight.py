"""`metad config check`: whether a hub could start here with this configuration."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from metad.cli.context import is_there, user_name
from metad.cli.locked import check_unlocked
from metad.config.advice import advice
from metad.config.model import Config, Listener
from metad.errors import (
    ConfigError,
    MetadError,
    NotPermittedError,
    UnavailableError,
    remedy_for,
)
from metad.system import sockets
from metad.tls import store as tls_store

_SET_USER = "set user to the system user that shall own the data"


class Finding(NamedTuple):
    """`fatal`: the hub would not start.  `remedy`: what to do, unless the text says it."""

    fatal: bool
    text: str
    remedy: str = ""

    @property
    def line(self) -> str:
        return f"{self.text} ({self.remedy})" if self.remedy else self.text


def preflight(config: Config) -> Iterator[Finding]:
    """Everything that would stop a start, and settings that their author may not want."""
    yield from _user(config)
    yield from _directory(config)
    yield from _certificates(config)
    yield from _ports(config)
    yield from (Finding(False, line) for line in advice(config))


def _user(config: Config) -> Iterator[Finding]:
    if config.user is not None:
        try:
            found = pwd.getpwnam(config.user)
        except KeyError:
            yield Finding(
                True, f"user: no such system user: {config.user}", f"useradd --system {config.user}"
            )
            return
        if found.pw_uid == 0:
            yield Finding(True, "user: the hub does not run as root", _SET_USER)
    elif os.geteuid() == 0:
        yield Finding(False, "user: not set, so root cannot start the hub", _SET_USER)


def _directory(config: Config) -> Iterator[Finding]:
    """The data directory, or the nearest directory above it that exists."""
    data = config.data
    try:
        exists = is_there(data)
    except NotPermittedError as error:
        yield Finding(True, f"data: {error}", error.remedy)
        return
    if not exists:
        above = next(one for one in data.parents if one.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield Finding(
                True, f"data: {data} does not exist and {above} is not writable",
                "create it as root and give it to the hub's user: install -d -m 0700 -o USER DIR",
            )  # fmt: skip
        return
    if not data.is_dir():
        yield Finding(True, f"data: {data} is not a directory", "set data to a directory")
        return
    owner = data.stat().st_uid
    wanted = os.geteuid()
    if config.user is not None:
        with suppress(KeyError):
            wanted = pwd.getpwnam(config.user).pw_uid
    if owner != wanted and any(_names(data)):
        yield Finding(
            True, f"data: {data} belongs to uid {owner}, not to uid {wanted}",
            f"chown -R {user_name(wanted)} {data}, if its mail is this hub's"
            if config.user or os.geteuid() else _SET_USER,
        )  # fmt: skip


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except PermissionError:
        return ["?"]


def _certificates(config: Config) -> Iterator[Finding]:
    if not tls_store.wanted(config):
        return
    try:
        os.listdir(config.data / tls_store.DIRECTORY)
    except PermissionError:
        yield Finding(
            False, f"certificates: not checked: {config.data} is not readable",
            NotPermittedError.remedy,
        )  # fmt: skip
        return
    except OSError:
        pass
    try:
        tls_store.check(config)
    except ConfigError as error:
        yield Finding(True, str(error), error.remedy)
        return
    for line in tls_store.expiry_warnings(config, datetime.now(UTC)):
        yield Finding(False, line, "renew it: metad tls install")


def _ports(config: Config) -> Iterator[Finding]:
    """Whether each address can be bound; a hub running on this directory has bound them already."""
    try:
        check_unlocked(config.data)
    except UnavailableError:
        return
    except MetadError:
        pass
    for listener in config.listeners:
        yield from _port(listener)


def _port(listener: Listener) -> Iterator[Finding]:
    if listener.path is not None:
        directory = os.path.dirname(listener.path)
        if not os.path.isdir(directory):
            yield Finding(True, f"listen {listener.address}: no directory {directory}",
                          f"create {directory}, for the hub's user")  # fmt: skip
        return
    if listener.port is None:
        return
    try:
        for sock in sockets.bind_slots(listener.host, listener.port, 1):
            sock.close()
    except PermissionError:
        yield Finding(False, f"listen {listener.address}: only root may bind this port",
                      "start the hub as root: it becomes its user then")  # fmt: skip
    except OSError as error:
        hint = ": is another program listening there?" if error.errno == errno.EADDRINUSE else ""
        text = f"listen {listener.address}: {error.strerror}{hint}"
        yield Finding(True, text, remedy_for(error))
