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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metad import limits
from metad.config import settings
from metad.config.line_numbers import find_line
from metad.config.settings import Setting
from metad.errors import ConfigError

SYSTEM_FILE = Path("/etc/metad/metad.toml")
SMTP_PORT = 25
SYSTEM_DATA = Path("/var/lib/metad")

Protocol = Literal["smtp", "lmtp", "pop3"]
Tls = Literal["none", "starttls", "implicit"]
BareLineEnds = Literal["refuse", "repair"]
Full = Literal["defer", "refuse"]
Plaintext = Literal["never", "loopback", "always"]
Scram = Literal["auto", "always", "never"]


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
    # Of the whole hub; messages per minute and client network, 0 for any number.
    connections: int = limits.CONNECTIONS
    network_connections: int = limits.NETWORK_CONNECTIONS
    message_rate: int = 0
    # Octets, of one worker.
    memory: int = limits.MEMORY
    # Seconds: of the processes.
    heartbeat: int = limits.HEARTBEAT
    stop_deadline: int = limits.STOP_DEADLINE
    reload_deadline: int = limits.RELOAD_DEADLINE


@dataclass(frozen=True, slots=True)
class SmtpConfig:
    """Networks in CIDR form; `clients` empty: everybody may connect."""

    bare_line_ends: BareLineEnds = "refuse"
    repair_networks: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pop3Config:
    """`login_delay` in seconds between two logins of a user, 0 for none."""

    plaintext: Plaintext = "loopback"
    default_domain: str | None = None
    scram: Scram = "auto"
    login_delay: int = 0


@dataclass(frozen=True, slots=True)
class UsersConfig:
    """Of every account that does not have its own: `expiry` of mail in seconds, 0 for never."""

    scram_iterations: int = limits.SCRAM_ITERATIONS
    expiry: int = 0


@dataclass(frozen=True, slots=True)
class QuotaConfig:
    """Of every account that does not have its own: octets, messages; 0 for no bound."""

    size: int = 0
    messages: int = 0
    full: Full = "defer"


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """When the collector works: messages and logins per second, seconds, per cent of space."""

    idle_load: int = limits.IDLE_LOAD
    idle_seconds: int = limits.IDLE_SECONDS
    garbage: int = limits.GARBAGE
    low_space: int = limits.LOW_SPACE
    enough_space: int = limits.ENOUGH_SPACE


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One [[domain]] table: what goes before the defaults for its accounts; None: they apply."""

    name: str
    quota: int | None = None
    messages: int | None = None
    expiry: int | None = None
    login_delay: int | None = None


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
    chroot: Path | None = None
    landlock: bool = True
    users: UsersConfig = UsersConfig()
    quota: QuotaConfig = QuotaConfig()
    collector: CollectorConfig = CollectorConfig()
    domain: tuple[DomainConfig, ...] = ()
    layer: Mapping[str, Any] = field(default_factory=dict)


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
        "", "chroot", settings.path, None,
        "The directory that becomes the root of every process of the hub: the data directory, or "
        "one that it lies in.  Needs a start by root, or CAP_SYS_CHROOT.",
    ),
    Setting(
        "", "landlock", settings.boolean, True,
        "Whether the processes give up all files but the data directory's, where the kernel has "
        "Landlock; `metad status` says what is in force.",
    ),
    Setting(
        "listen", "protocol", settings.choice("smtp", "lmtp", "pop3"), None,
        "What is spoken on this address.  Required.",
    ),
    Setting(
        "listen", "address", settings.address, None,
        'An IP address and a port, "0.0.0.0:25" or "[::]:25", or "unix:/PATH", or "fd:NAME" for '
        "the sockets that systemd hands over under this name.  Required.",
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
        "store", "layer", settings.layer_name, "log",
        'Where mail goes: "log" keeps it; "sort" puts it into Maildirs for another server; "null" '
        "takes it and forgets it, for measuring; or a layer of an installed package.  Its own "
        "settings stand in the table [layer].",
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
        "collector", "idle_load", settings.integer(0, 1_000_000), limits.IDLE_LOAD,
        "The hub is idle while it takes and gives less than this many messages a second.",
    ),
    Setting(
        "collector", "idle_seconds", settings.integer(0, 86_400), limits.IDLE_SECONDS,
        "How long it has to be idle before logs are collected for that reason alone.",
    ),
    Setting(
        "collector", "garbage", settings.integer(5, 99), limits.GARBAGE,
        "How much of a log must be dead, in per cent, to be collected while the hub is idle; of "
        "logs with older mail more.",
    ),
    Setting(
        "collector", "low_space", settings.integer(1, 90), limits.LOW_SPACE,
        "Per cent of the space for logs (size_limit, or the disk) that is free when the collector "
        "begins to work under load too.",
    ),
    Setting(
        "collector", "enough_space", settings.integer(1, 95), limits.ENOUGH_SPACE,
        "Per cent of it at which that work ends.",
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
        "limits", "connections", settings.integer(100, 1_000_000), limits.CONNECTIONS,
        "The most connections at once, of all workers together.  Above it a client hears 421.",
    ),
    Setting(
        "limits", "network_connections", settings.integer(1, 1_000_000),
        limits.NETWORK_CONNECTIONS,
        "The most connections at once from one client address (IPv6: from one /64).",
    ),
    Setting(
        "limits", "message_rate", settings.integer(0, 1_000_000), 0,
        "The most messages in a minute from one client address (IPv6: from one /64).  0: any "
        "number.",
    ),
    Setting(
        "limits", "memory", settings.size(limits.MIN_MEMORY, limits.MAX_MEMORY), "128MiB",
        "What a worker holds in memory of its clients' octets: half for messages on their way in, "
        "which beyond that go to files without names; half for what clients send before its turn "
        "or do not read: beyond that the one that has waited longest is dropped.",
    ),
    Setting(
        "limits", "heartbeat", settings.integer(1, 3600), limits.HEARTBEAT,
        "Seconds without a sign of life after which a worker is hung: it is killed and replaced.",
    ),
    Setting(
        "limits", "stop_deadline", settings.integer(1, 3600), limits.STOP_DEADLINE,
        "Seconds that sessions get to finish their transaction when the hub is stopped.",
    ),
    Setting(
        "limits", "reload_deadline", settings.integer(1, 86_400), limits.RELOAD_DEADLINE,
        "Seconds that sessions get to end by themselves after a reload, before they are treated "
        "as by a stop.",
    ),
    Setting(
        "smtp", "bare_line_ends", settings.choice("refuse", "repair"), "refuse",
        "What becomes of a message with a lone CR or LF: refused with 550, or CR LF made of it.",
    ),
    Setting(
        "smtp", "repair_networks", settings.list_of(settings.network), [],
        "The clients whose lone CR and LF are repaired though all others' are refused.",
    ),
    Setting(
        "smtp", "clients", settings.list_of(settings.network), [],
        "Who may connect to SMTP and LMTP, for a hub behind a filter.  Empty: everybody.",
    ),
    Setting(
        "pop3", "plaintext", settings.choice("never", "loopback", "always"), "loopback",
        "From where a password may come unencrypted.",
    ),
    Setting(
        "pop3", "default_domain", settings.domain, None,
        "The domain of a login name without one.  Not set: there is none.",
    ),
    Setting(
        "pop3", "scram", settings.choice("auto", "always", "never"), "auto",
        'Whether SCRAM-SHA-256 is offered.  "auto": while every user who may log in has keys.',
    ),
    Setting(
        "pop3", "login_delay", settings.integer(0, 86_400), 0,
        "The least seconds between two logins of a user (RFC 2449 LOGIN-DELAY).  0: none.",
    ),
    Setting(
        "users", "scram_iterations",
        settings.integer(limits.SCRAM_ITERATIONS, limits.MAX_SCRAM_ITERATIONS),
        limits.SCRAM_ITERATIONS,
        "The work of checking a password (RFC 7677 demands 4096).  For passwords given from now "
        "on; every first login of a mailbox after a start pays for it.",
    ),
    Setting(
        "users", "expiry", settings.duration(*limits.EXPIRY), 0,
        'The age at which mail is deleted by the collector, such as "90d".  0: never.',
    ),
    Setting(
        "quota", "size", settings.size(0, limits.MAX_QUOTA), 0,
        'What a mailbox may hold, such as "1GiB", as POP3 counts it.  0: any amount.',
    ),
    Setting(
        "quota", "messages", settings.integer(0, limits.MAX_QUOTA_MESSAGES), 0,
        "The most messages of a mailbox.  0: any number.",
    ),
    Setting(
        "quota", "full", settings.choice("defer", "refuse"), "defer",
        "What a sender to a full mailbox hears: 452, to try again, or 552.",
    ),
    Setting(
        "domain", "name", settings.domain, None,
        "The domain whose accounts these settings are for.  Required.",
    ),
    Setting(
        "domain", "quota", settings.size(0, limits.MAX_QUOTA), None,
        "As quota.size, for this domain.",
    ),
    Setting(
        "domain", "messages", settings.integer(0, limits.MAX_QUOTA_MESSAGES), None,
        "As quota.messages, for this domain.",
    ),
    Setting(
        "domain", "expiry", settings.duration(*limits.EXPIRY), None,
        "As users.expiry, for this domain.",
    ),
    Setting(
        "domain", "login_delay", settings.integer(0, 86_400), None,
        "As pop3.login_delay, for this domain.",
    ),
)  # fmt: skip

# Settings whose meaning is fixed but whose code is not there: key, the values that work.
WORKING: Mapping[str, tuple[object, ...]] = {}

DEFAULT_LISTEN = (
    {"protocol": "smtp", "address": "127.0.0.1:2525"},
    {"protocol": "pop3", "address": "127.0.0.1:1110"},
)

_TABLES = ("store", "collector", "limits", "smtp", "pop3", "users", "quota")
_LISTS = ("listen", "domain")
Fail = Callable[[str, str], ConfigError]


def load(
    path: Path | None = None,
    data: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from `path`, else from the system's file if there is one.

    `data` goes before METAD_DATA, that before the file.  Raises ConfigError.
    """
    source, content = read(path)
    return parse(content, source, data, environ)


def read(path: Path | None = None) -> tuple[Path | None, str]:
    """The file of `load` and its text; none and nothing if there is none.  Raises ConfigError."""
    source = path or (SYSTEM_FILE if SYSTEM_FILE.exists() else None)
    return source, _read(source) if source else ""


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
    tables_of = (*_TABLES, *_LISTS, "layer")
    top = _values("", {k: v for k, v in tree.items() if k not in tables_of}, "", fail)
    tables = {name: _values(name, tree.get(name, {}), name, fail) for name in _TABLES}
    _bound_message_size(tables, tree, fail)
    _check_space(tables, fail)
    directory = data_directory(data, top["data"], environ)
    if top["chroot"] is not None and not directory.is_relative_to(top["chroot"]):
        raise fail("chroot", f"the data directory {directory} does not lie in it")
    return Config(
        hostname=top["hostname"] or machine_name(),
        user=top["user"],
        data=directory,
        listen=_listeners(tree.get("listen", list(DEFAULT_LISTEN)), fail),
        store=StoreConfig(**tables["store"]),
        limits=Limits(**tables["limits"]),
        smtp=SmtpConfig(**tables["smtp"]),
        pop3=Pop3Config(**tables["pop3"]),
        source=source,
        chroot=top["chroot"],
        landlock=top["landlock"],
        users=UsersConfig(**tables["users"]),
        quota=QuotaConfig(**tables["quota"]),
        collector=CollectorConfig(**tables["collector"]),
        domain=_domains(tree.get("domain", []), fail),
        layer=tree.get("layer", {}),
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
    """Each table is a table, `listen` and `domain` lists of them."""
    for name in (*_TABLES, "layer"):
        if not isinstance(tree.get(name, {}), dict):
            raise fail(name, f"must be a table: [{name}]")
    for name in _LISTS:
        given = tree.get(name, [])
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise fail(name, f"must be a list of tables: [[{name}]]")
    if tree.get("listen") == []:
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
    tables = () if table else (*_TABLES, *_LISTS, "layer")
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
    if values["proxy"] and not values["trusted_proxies"] and where.path is None:
        raise fail(key, "proxy = true needs trusted_proxies")
    if values["trusted_proxies"] and not values["proxy"]:
        raise fail(key, "trusted_proxies means nothing without proxy = true")
    if values["protocol"] == "lmtp" and where.port == SMTP_PORT:
        raise fail(key, "LMTP must not be on the port of SMTP (RFC 2033 section 5)")
    return Listener(address=where.text, host=where.host, port=where.port, path=where.path, **values)


def _domains(tables: list[dict[str, Any]], fail: Fail) -> tuple[DomainConfig, ...]:
    found: dict[str, DomainConfig] = {}
    for number, table in enumerate(tables, 1):
        place = f"domain[{number}]"
        one = DomainConfig(**_values("domain", table, place, fail))
        if one.name is None:
            raise fail(place, "name is missing")
        if one.name in found:
            raise fail(f"{place}.name", f"{one.name} has such a table already")
        found[one.name] = one
    return tuple(found.values())


def _same_place(one: Listener, other: Listener) -> bool:
    if one.port is None and one.path is None:  # handed over under a name
        return one.address == other.address
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


def _check_space(tables: dict[str, Any], fail: Fail) -> None:
    """Room for each worker's logs and the collector's; marks in their order."""
    store, collector = tables["store"], tables["collector"]
    least = store["log_size"] * (2 * store["workers"] + limits.COLLECTOR_LOGS)
    if store["size_limit"] is not None and store["size_limit"] < least:
        shown = settings.show_size(least)
        raise fail("store.size_limit", f"at least {shown} for these workers, of logs of this size")
    if collector["enough_space"] <= collector["low_space"]:
        raise fail("collector.enough_space", "must be more than collector.low_space")


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
