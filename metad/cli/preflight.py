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

from metad.cli.context import is_there
from metad.cli.locked import check_unlocked
from metad.config.advice import advice
from metad.config.model import Config, Listener
from metad.errors import ConfigError, MetadError, NotPermittedError, UnavailableError
from metad.system import sockets
from metad.tls import store as tls_store


class Finding(NamedTuple):
    """`fatal`: the hub would not start."""

    fatal: bool
    text: str


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
            yield Finding(True, f"user: no such system user: {config.user}")
            return
        if found.pw_uid == 0:
            yield Finding(True, "user: the hub does not run as root")
    elif os.geteuid() == 0:
        yield Finding(False, "user: not set, so root cannot start the hub")


def _directory(config: Config) -> Iterator[Finding]:
    """The data directory, or the nearest directory above it that exists."""
    data = config.data
    try:
        exists = is_there(data)
    except NotPermittedError as error:
        yield Finding(True, f"data: {error}")
        return
    if not exists:
        above = next(one for one in data.parents if one.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield Finding(True, f"data: {data} does not exist and {above} is not writable")
        return
    if not data.is_dir():
        yield Finding(True, f"data: {data} is not a directory")
        return
    owner = data.stat().st_uid
    wanted = os.geteuid()
    if config.user is not None:
        with suppress(KeyError):
            wanted = pwd.getpwnam(config.user).pw_uid
    if owner != wanted and any(_names(data)):
        yield Finding(True, f"data: {data} belongs to uid {owner}, not to uid {wanted}")


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
        yield Finding(False, f"certificates: not checked: {config.data} is not readable")
        return
    except OSError:
        pass
    try:
        tls_store.check(config)
    except ConfigError as error:
        yield Finding(True, error.line)
        return
    for line in tls_store.expiry_warnings(config, datetime.now(UTC)):
        yield Finding(False, line)


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
            yield Finding(True, f"listen {listener.address}: no directory {directory}")
        return
    if listener.port is None:
        return
    try:
        for sock in sockets.bind_slots(listener.host, listener.port, 1):
            sock.close()
    except PermissionError:
        yield Finding(False, f"listen {listener.address}: only root may bind this port")
    except OSError as error:
        hint = ": is another program listening there?" if error.errno == errno.EADDRINUSE else ""
        yield Finding(True, f"listen {listener.address}: {error.strerror}{hint}")
