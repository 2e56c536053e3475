"""The configuration: one frozen object, made of a TOML file, the environment and the defaults.

Rules of this file:

* Nothing is guessed and nothing ignored: an unknown key, a value of the wrong kind and a setting
  that does not work yet are refused with file, line where known, key and reason (exit 78).
* `SETTINGS` is the whole list of keys.  The manual page is generated from it.
* A configuration read by one process and passed to another is the same: no field looks up
  anything when it is used.
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metad import limits, settings
from metad.errors import ConfigError
from metad.keylines import find_line
from metad.settings import Setting

SYSTEM_FILE = Path("/etc/metad/metad.toml")
SYSTEM_DATA = Path("/var/lib/metad")

Protocol = Literal["smtp", "lmtp", "pop3"]
Tls = Literal["none", "starttls", "implicit"]
BareLineEnds = Literal["refuse", "repair"]
Plaintext = Literal["never", "loopback", "always"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One [[listen]] table.  `path` is that of a unix socket; then `port` is None."""

    protocol: Protocol
    address: str
    host: str
    port: int | None
    path: str | None
    tls: Tls = "none"
    proxy: bool = False
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Sizes in octets; `size_limit` None means as large as the disk."""

    layer: str = "log"
    workers: int = 2
    log_size: int = limits.LOG_SIZE
    sync: bool = True
    align: int = 512
    size_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session or message may cost: octets and counts."""

    message_size: int = limits.MESSAGE_SIZE
    recipients: int = limits.RECIPIENTS
    smtp_errors: int = limits.SMTP_ERRORS
    command_line: int = limits.SMTP_COMMAND_LINE


@dataclass(frozen=True, slots=True)
class SmtpConfig:
    bare_line_ends: BareLineEnds = "refuse"


@dataclass(frozen=True, slots=True)
class Pop3Config:
    plaintext: Plaintext = "loopback"
    default_domain: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a hub is told.  `source` is the file it was read from."""

    hostname: str
    user: str | None
    data: Path
    listen: tuple[Listener, ...]
    store: StoreConfig
    limits: Limits
    smtp: SmtpConfig
    pop3: Pop3Config
    source: Path | None = None


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "", "hostname", settings.domain, None,
        "The name in the greeting and in Received fields.  Not set: the name of the machine.",
    ),
    Setting(
        "", "user", settings.user, None,
        "The system user that the hub becomes when it is started by root, who may not start it "
        "without.",
    ),
    Setting(
        "", "data", settings.path, None,
        "The directory of logs, index and users.  `--data` and METAD_DATA go before it.  Not set: "
        "/var/lib/metad for root, $XDG_STATE_HOME/metad or ~/.local/state/metad for others.",
    ),
    Setting(
        "listen", "protocol", settings.choice("smtp", "lmtp", "pop3"), None,
        "What is spoken on this address.  Required.",
    ),
    Setting(
        "listen", "address", settings.address, None,
        'An IP address and a port, "0.0.0.0:25" or "[::]:25", or "unix:/PATH".  Required.',
    ),
    Setting(
        "listen", "tls", settings.choice("none", "starttls", "implicit"), "none",
        "Whether TLS is offered by STARTTLS or STLS, or begins with the connection.",
    ),
    Setting(
        "listen", "proxy", settings.boolean, False,
        "Whether every connection begins with a PROXY header and comes from trusted_proxies.",
    ),
    Setting(
        "listen", "trusted_proxies", settings.list_of(settings.network), [],
        "The addresses and networks of the proxies.",
    ),
    Setting(
        "store", "layer", settings.choice("log", "null"), "log",
        'Where mail goes: "log" keeps it; "null" takes it and forgets it, for measuring.',
    ),
    Setting(
        "store", "workers", settings.integer(1, limits.MAX_WORKERS), 2,
        "Worker processes, each with a log of its own.  As many as there are cores is good.",
    ),
    Setting(
        "store", "log_size",
        settings.size(limits.MIN_LOG_SIZE, limits.MAX_LOG_SIZE, limits.LOG_SIZE_STEP), "128MiB",
        "The size of a log file.  A message may be a quarter of it.",
    ),
    Setting(
        "store", "sync", settings.boolean, True,
        "Whether mail is made durable before it is acknowledged.  false loses acknowledged mail "
        "when the machine stops: for measuring only.",
    ),
    Setting(
        "store", "align", settings.choice(512, 4096), 512,
        "Octets that the disk writes as one.  4096 for disks whose sector that is.",
    ),
    Setting(
        "store", "size_limit", settings.size(limits.MIN_LOG_SIZE, 1 << 60), None,
        "The most that all logs together may take; at it new mail is put off.  Not set: the disk.",
    ),
    Setting(
        "limits", "message_size", settings.size(limits.MIN_MESSAGE_SIZE, limits.MAX_LOG_SIZE // 4),
        "30MiB",
        "The largest message, and the SIZE announced.  At most a quarter of log_size; not set, it "
        "gives way to that.",
    ),
    Setting(
        "limits", "recipients", settings.integer(100, limits.MAX_RECIPIENTS), limits.RECIPIENTS,
        "The most recipients of one transaction (RFC 5321 demands 100).",
    ),
    Setting(
        "limits", "smtp_errors", settings.integer(1, 10_000), limits.SMTP_ERRORS,
        "Syntax errors after which an SMTP session is ended.",
    ),
    Setting(
        "limits", "command_line", settings.integer(1024, 65_536), limits.SMTP_COMMAND_LINE,
        "The longest SMTP command line, in octets with its line end.",
    ),
    Setting(
        "smtp", "bare_line_ends", settings.choice("refuse", "repair"), "refuse",
        "What becomes of a message with a lone CR or LF: refused with 550, or CR LF made of it.",
    ),
    Setting(
        "pop3", "plaintext", settings.choice("never", "loopback", "always"), "loopback",
        "From where a password may come unencrypted.",
    ),
    Setting(
        "pop3", "default_domain", settings.domain, None,
        "The domain of a login name without one.  Not set: there is none.",
    ),
)  # fmt: skip

# Settings whose meaning is fixed but whose code is not there: key, the values that work.
WORKING: Mapping[str, tuple[object, ...]] = {
    "listen.protocol": ("smtp", "pop3"),
    "listen.tls": ("none",),
    "listen.proxy": (False,),
    "listen.trusted_proxies": ((),),
    "store.size_limit": (None,),
    "smtp.bare_line_ends": ("refuse",),
}

DEFAULT_LISTEN = (
    {"protocol": "smtp", "address": "127.0.0.1:2525"},
    {"protocol": "pop3", "address": "127.0.0.1:1110"},
)

_TABLES = ("store", "limits", "smtp", "pop3")
Fail = Callable[[str, str], ConfigError]


def load(
    path: Path | None = None,
    data: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from `path`, else from the system's file if there is one.

    `data` goes before METAD_DATA, that before the file.  Raises ConfigError.
    """
    source = path or (SYSTEM_FILE if SYSTEM_FILE.exists() else None)
    content = _read(source) if source else ""
    return parse(content, source, data, environ)


def parse(
    content: str,
    source: Path | None = None,
    data: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """As `load`, of the text of a file.  Raises ConfigError."""
    try:
        tree = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise _syntax_error(source, error) from None
    fail = _failure(source, content)
    _check_tables(tree, fail)
    top = _values("", {k: v for k, v in tree.items() if k not in (*_TABLES, "listen")}, "", fail)
    tables = {name: _values(name, tree.get(name, {}), name, fail) for name in _TABLES}
    _bound_message_size(tables, tree, fail)
    return Config(
        hostname=top["hostname"] or machine_name(),
        user=top["user"],
        data=data_directory(data, top["data"], environ),
        listen=_listeners(tree.get("listen", list(DEFAULT_LISTEN)), fail),
        store=StoreConfig(**tables["store"]),
        limits=Limits(**tables["limits"]),
        smtp=SmtpConfig(**tables["smtp"]),
        pop3=Pop3Config(**tables["pop3"]),
        source=source,
    )


def machine_name() -> str:
    """The machine's own name if it can stand in a greeting; no resolver is asked."""
    try:
        return str(settings.domain(socket.gethostname()))
    except ValueError:
        return "localhost"


def data_directory(given: Path | None, in_file: Path | None, environ: Mapping[str, str]) -> Path:
    """The data directory, absolute: as given, METAD_DATA, the file's, the user's default."""
    named = given or environ.get("METAD_DATA") or in_file
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return SYSTEM_DATA
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: a relative path in it is to be ignored.
    return Path(state if state.startswith("/") else f"{_home(environ)}/.local/state") / "metad"


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise ConfigError("no home directory: give --data DIR or METAD_DATA") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(limits.CONFIG_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(content) > limits.CONFIG_FILE:
        raise ConfigError(f"{path}: larger than {settings.show_size(limits.CONFIG_FILE)}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from None


def _check_tables(tree: dict[str, Any], fail: Fail) -> None:
    """Each table is a table, `listen` a list of them."""
    for name in _TABLES:
        if not isinstance(tree.get(name, {}), dict):
            raise fail(name, f"must be a table: [{name}]")
    listen = tree.get("listen", [{}])
    if not isinstance(listen, list) or not all(isinstance(one, dict) for one in listen):
        raise fail("listen", "must be a list of tables: [[listen]]")
    if not listen:
        raise fail("listen", "must name at least one address")


def _values(table: str, given: dict[str, Any], place: str, fail: Fail) -> dict[str, Any]:
    """Every setting of `table`, checked; `place` is the table's name in errors."""
    known = {setting.name: setting for setting in SETTINGS if setting.table == table}
    prefix = f"{place}." if place else ""
    for name in given:
        if name not in known:
            raise fail(prefix + name, _unknown(name, table, known))
    return {name: _value(known[name], given, prefix + name, fail) for name in known}


def _value(setting: Setting, given: dict[str, Any], key: str, fail: Fail) -> Any:
    raw = given.get(setting.name, setting.default)
    if raw is None:
        return None
    try:
        value = setting.check(raw)
    except ValueError as error:
        raise fail(key, str(error)) from None
    if setting.key in WORKING and value not in WORKING[setting.key]:
        raise fail(key, f"{settings.show_value(raw)} is not supported yet")
    return value


def _unknown(name: str, table: str, known: Mapping[str, Setting]) -> str:
    tables = () if table else (*_TABLES, "listen")
    close = difflib.get_close_matches(name, [*known, *tables], 1)
    return "unknown key" + (f"; did you mean {close[0]}?" if close else "")


def _listeners(tables: list[dict[str, Any]], fail: Fail) -> tuple[Listener, ...]:
    listeners: list[Listener] = []
    for number, table in enumerate(tables, 1):
        place = f"listen[{number}]"
        values = _values("listen", table, place, fail)
        for name in ("protocol", "address"):
            if values[name] is None:
                raise fail(place, f"{name} is missing")
        listener = _listener(values, f"{place}.address", fail)
        if any(_same_place(listener, other) for other in listeners):
            raise fail(f"{place}.address", f"{listener.address} is listened on already")
        listeners.append(listener)
    return tuple(listeners)


def _listener(values: dict[str, Any], key: str, fail: Fail) -> Listener:
    where: settings.Address = values.pop("address")
    if where.path is not None:
        raise fail(key, "a unix socket is not supported yet")
    return Listener(address=where.text, host=where.host, port=where.port, path=None, **values)


def _same_place(one: Listener, other: Listener) -> bool:
    return (one.host, one.port, one.path) == (other.host, other.port, other.path)


def _bound_message_size(tables: dict[str, Any], tree: dict[str, Any], fail: Fail) -> None:
    """A message may be a quarter of a log: the default gives way to that, a wish does not."""
    quarter = tables["store"]["log_size"] // 4
    if tables["limits"]["message_size"] <= quarter:
        return
    if "message_size" in tree.get("limits", {}):
        most = settings.show_size(quarter)
        raise fail("limits.message_size", f"at most a quarter of store.log_size, {most}")
    tables["limits"]["message_size"] = quarter


# --- Errors with their place ----------------------------------------------------------------------


def _failure(source: Path | None, content: str) -> Fail:
    """What makes the error for a key, with the file and the line where the key stands."""

    def fail(key: str, reason: str) -> ConfigError:
        line = find_line(content, key)
        place = f"{source or 'configuration'}" + (f":{line}" if line else "")
        # A key may hold anything, a newline too: an error is one line.
        shown = key if key.isprintable() else repr(key)
        return ConfigError(f"{place}: {shown}: {reason}")

    return fail


def _syntax_error(source: Path | None, error: Exception) -> ConfigError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    place = f"{source or 'configuration'}"
    found = re.search(r" \(at line ([0-9]+), column [0-9]+\)$", reason)
    if found:
        place, reason = f"{place}:{found[1]}", reason[: found.start()]
    return ConfigError(f"{place}: {reason}")
