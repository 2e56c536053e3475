"""The first steps of every command: data directory, configuration, the right user.

Rules of this file:

* A command run as root becomes the owner of DATA before it opens anything in it; run as a user
  other than the owner, it refuses (77).  This is done only here.
* The configuration is read before that, as the caller: the hub's user may not be allowed to read
  it.
"""

from __future__ import annotations

import functools
import math
import os
import pwd
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from metad.config.model import Config
from metad.config.parse import load
from metad.errors import ConfigError, NotPermittedError, OsError, UnavailableError
from metad.system.osio import Osio
from metad.users.preload import preload

F = TypeVar("F", bound=Callable[..., Any])


class HubLocation:
    """Where a command finds its hub: from --data, METAD_DATA or the configuration."""

    def __init__(
        self, data: Path | None, config: Path | None, environ: Mapping[str, str] = os.environ
    ) -> None:
        # Absolute now: a detached hub leaves the current directory.
        self._given = data.absolute() if data else None
        self._file = config.absolute() if config else None
        self._environ = environ

    @property
    def given(self) -> Path | None:
        """The data directory given by --data."""
        return self._given

    @property
    def file(self) -> Path | None:
        """The configuration file given by --config."""
        return self._file

    @functools.cached_property
    def config(self) -> Config:
        """The configuration.  Raises ConfigError."""
        return load(self._file, self._given, self._environ)

    @functools.cached_property
    def data(self) -> Path:
        """The data directory, absolute.  If it is given, a bad configuration does not matter."""
        named = self._given or self._environ.get("METAD_DATA")
        if named and self._file is None:
            return Path(named).absolute()
        return self.config.data

    def enter(self) -> Path:
        """The data directory, after becoming its owner.

        Raises UnavailableError (no directory) and NotPermittedError.
        """
        become_owner(self.data)
        return self.data

    def make(self) -> Path:
        """Like `enter`, but create the directory if it does not exist."""
        if not is_there(self.data):
            make_data(self.data, self.config.user if os.geteuid() == 0 else None)
        return self.enter()


def finite(
    _context: click.Context, _parameter: click.Parameter, value: float | None
) -> float | None:
    """The callback of an option of seconds: neither inf nor nan, which no range refuses."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a number of seconds")
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def hub_options(command: F) -> F:
    """--data and --config; the command gets a `HubLocation` as its first argument."""

    @click.option(
        "--data",
        metavar="DIR",
        type=click.Path(path_type=Path, readable=False),
        help="Data directory (default: METAD_DATA, then the configuration).",
    )
    @click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),
        help="Configuration file (default: /etc/metad/metad.toml, if it exists).",
    )
    @functools.wraps(command)
    def wrapped(data: Path | None, config_file: Path | None, **rest: Any) -> Any:
        return command(HubLocation(data, config_file), **rest)

    return wrapped  # type: ignore[return-value]  # fmt: skip


def become_owner(data: Path) -> None:
    """Become the owner of `data` if this is root; refuse if this is another user."""
    try:
        found = os.stat(data)
    except (FileNotFoundError, NotADirectoryError):
        raise no_data(data) from None
    except PermissionError:
        raise not_permitted(data) from None
    if found.st_uid == os.geteuid():
        if found.st_uid == 0:
            _refuse_users_path(data)
        return
    if os.geteuid() != 0:
        raise NotPermittedError(
            f"{data} belongs to {user_name(found.st_uid)}", remedy="run this as that user or root"
        )
    _become(found.st_uid, found.st_gid)


def is_there(data: Path) -> bool:
    """Whether the data directory exists.  Raises NotPermittedError: a directory above is closed."""
    try:
        os.stat(data)
    except PermissionError:
        raise not_permitted(data) from None
    except OSError:
        return False
    return True


def not_permitted(data: Path) -> NotPermittedError:
    return NotPermittedError(f"{data}: permitted only to its owner and root")


def no_data(data: Path) -> UnavailableError:
    return UnavailableError(
        f"{data}: no such data directory", remedy="name it by --data; metad user add makes one"
    )


def _refuse_users_path(data: Path) -> None:
    """The command stays root, because the directory is root's: another user must not decide which.

    Raises NotPermittedError: a link or a directory on its path belongs to another user.
    """
    for path in (data, *data.parents):
        uid = os.lstat(path).st_uid
        if uid != 0:
            raise NotPermittedError(
                f"{data} belongs to root, but {user_name(uid)} decides where {path} leads",
                remedy=f"give {path} to root, or the data directory to another user",
            )


def _become(uid: int, gid: int) -> None:
    """Drop root permanently: groups, group and user, real, effective and saved."""
    # Our own code may be readable only by root.
    preload()
    try:
        entry = pwd.getpwuid(uid)
        gid, groups = entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
    except KeyError:
        groups = [gid]
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise NotPermittedError(
            f"cannot become {user_name(uid)}: {error.strerror}", remedy="run this as that user"
        ) from None


def make_data(data: Path, user: str | None) -> None:
    """Create `data`, mode 0700, and its parents; as root, owned by `user` if given."""
    owner = system_user(user) if user else None
    osio = Osio()
    try:
        data.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        # By descriptor, and never through a link that another user has just put there.
        fd = osio.open(str(data), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if owner is not None:
                os.fchown(fd, owner.pw_uid, owner.pw_gid)
        finally:
            osio.close(fd)
        osio.fsync_directory(str(data.parent))
    except OSError as error:
        raise OsError.of(error, error.filename or data) from None


def may_start(config: Config) -> None:
    """Check that this user may start a hub with this configuration.

    Raises ConfigError (root without `user`, or no such user) and NotPermittedError.
    """
    uid = os.geteuid()
    if uid == 0 and config.user is None:
        raise ConfigError(
            f"{config.source or 'configuration'}: user: must be set when root starts the hub",
            remedy="set user to the system user that shall own the data",
        )
    if config.user is not None:
        wanted = system_user(config.user).pw_uid
        if uid not in (0, wanted):
            raise NotPermittedError(
                f"the hub runs as {config.user}", remedy="run this as that user or root"
            )
    if uid != 0 and is_there(config.data):
        become_owner(config.data)


def system_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"user: no such system user: {name}", remedy=f"useradd --system {name}"
        ) from None


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
