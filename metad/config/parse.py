"""From a TOML file, the environment and the defaults to a configuration.

Rules of this file:

* Nothing is guessed and nothing is ignored: an unknown key or a value of the wrong kind is refused
  with file, line if known, key and reason (exit 78).
"""

from __future__ import annotations

import difflib
import os
import pwd
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metad import limits
from metad.config import checks
from metad.config.line_numbers import find_line
from metad.config.model import SECTIONS, Config, DomainConfig, FilterConfig, Listener
from metad.config.setting import Setting
from metad.config.settings import DEFAULT_LISTEN, LISTS, SETTINGS, TABLES
from metad.errors import ConfigError

SYSTEM_FILE = Path("/etc/metad/metad.toml")
SMTP_PORT = 25
SYSTEM_DATA = Path("/var/lib/metad")

Fail = Callable[[str, str], ConfigError]


def load(
    path: Path | None = None,
    data: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from `path`, otherwise from the system's file if it exists.

    `data` overrides METAD_DATA, which overrides the file.  Raises ConfigError.
    """
    source, content = read(path)
    return parse(content, source, data, environ)


def read(path: Path | None = None) -> tuple[Path | None, str]:
    """The file of `load` and its text; None and "" if there is none.  Raises ConfigError."""
    source = path or (SYSTEM_FILE if _is_there(SYSTEM_FILE) else None)
    return source, _read(source) if source else ""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise ConfigError(
            f"{path}: permission denied",
            remedy="run this as root, or give --config for a hub of your own",
        ) from None


def parse(
    content: str,
    source: Path | None = None,
    data: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Like `load`, from the text of a file.  Raises ConfigError."""
    try:
        tree = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise _syntax_error(source, error) from None
    fail = _failure(source, content)
    _check_tables(tree, fail)
    known = (*TABLES, *LISTS, "layer")
    top = _values("", {k: v for k, v in tree.items() if k not in known}, "", fail)
    tables, options = _tables(tree, fail)
    top["data"] = data_directory(data, top["data"], environ)
    if top["chroot"] is not None and not top["data"].is_relative_to(top["chroot"]):
        raise fail("chroot", f"the data directory {top['data']} is not below it")
    _check_chroot(tables["cluster"], top["chroot"], fail)
    top["hostname"] = top["hostname"] or machine_name()
    sections: dict[str, Any] = {name: make(**tables[name]) for name, make in SECTIONS.items()}
    return Config(
        **top,
        **sections,
        listen=_listeners(tree.get("listen", list(DEFAULT_LISTEN)), fail),
        domain=_domains(tree.get("domain", []), fail),
        layer=tree.get("layer", {}),
        filter=FilterConfig(**tables["filter"], options=options),
        source=source,
    )


def _tables(tree: dict[str, Any], fail: Fail) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of every table, and the tables within [filter], which the filters check."""
    given = {**tree, "filter": {}}
    options: dict[str, Any] = {}
    for name, value in tree.get("filter", {}).items():
        (options if isinstance(value, dict) else given["filter"])[name] = value
    tables = {name: _values(name, given.get(name, {}), name, fail) for name in TABLES}
    _bound_message_size(tables, tree, fail)
    _check_space(tables, fail)
    _check_cluster(tables, fail)
    return tables, options


def machine_name() -> str:
    """The machine's own name if it is valid in a greeting; no resolver is used."""
    try:
        return str(checks.domain(socket.gethostname()))
    except ValueError:
        return "localhost"


def data_directory(given: Path | None, in_file: Path | None, environ: Mapping[str, str]) -> Path:
    """The data directory, absolute: as given, METAD_DATA, the file's, the unit's StateDirectory=
    (systemd.exec(5): it may name several), the user's default."""
    unit = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    named = given or environ.get("METAD_DATA") or in_file or unit
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return SYSTEM_DATA
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    return Path(state if state.startswith("/") else f"{_home(environ)}/.local/state") / "metad"


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise ConfigError("no home directory", remedy="give --data DIR or METAD_DATA") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(limits.CONFIG_FILE + 1)
    except OSError as error:
        raise ConfigError.of(error, path) from None
    if len(content) > limits.CONFIG_FILE:
        raise ConfigError(f"{path}: larger than {checks.show_size(limits.CONFIG_FILE)}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from None


def _check_tables(tree: dict[str, Any], fail: Fail) -> None:
    """Each table is a table, `listen` and `domain` lists of them."""
    for name in (*TABLES, "layer"):
        if not isinstance(tree.get(name, {}), dict):
            raise fail(name, f"must be a table: [{name}]")
    for name in LISTS:
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
        return setting.check(raw)
    except ValueError as error:
        raise fail(key, str(error)) from None


def _unknown(name: str, table: str, known: Mapping[str, Setting]) -> str:
    tables = () if table else (*TABLES, *LISTS, "layer")
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
    where: checks.Address = values.pop("address")
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
    if one.port is None and one.path is None:  # passed under a name
        return one.address == other.address
    if one.port == 0:  # each protocol gets its own free port
        return (one.host, one.port, one.protocol) == (other.host, other.port, other.protocol)
    return (one.host, one.port, one.path) == (other.host, other.port, other.path)


def _bound_message_size(tables: dict[str, Any], tree: dict[str, Any], fail: Fail) -> None:
    """A message may be a quarter of a log: the default is reduced to that, an explicit value is
    not."""
    quarter = tables["store"]["log_size"] // 4
    if tables["limits"]["message_size"] <= quarter:
        return
    if "message_size" in tree.get("limits", {}):
        most = checks.show_size(quarter)
        raise fail("limits.message_size", f"at most a quarter of store.log_size, {most}")
    tables["limits"]["message_size"] = quarter


def _check_space(tables: dict[str, Any], fail: Fail) -> None:
    """Room for each worker's logs and the collector's; marks in their order."""
    store, collector = tables["store"], tables["collector"]
    least = store["log_size"] * (2 * store["workers"] + limits.COLLECTOR_LOGS)
    if store["size_limit"] is not None and store["size_limit"] < least:
        shown = checks.show_size(least)
        raise fail("store.size_limit", f"at least {shown} for these workers, of logs of this size")
    if collector["enough_space"] <= collector["low_space"]:
        raise fail("collector.enough_space", "must be more than collector.low_space")


def _check_cluster(tables: dict[str, Any], fail: Fail) -> None:
    """Addresses of nodes, the log layer, and messages that a link can carry."""
    cluster = tables["cluster"]
    _check_etcd(cluster, fail)
    address, peers, etcd = cluster["address"], cluster["peers"], cluster["etcd"]
    if address is None:
        for name in ("peers", "etcd"):
            if cluster[name]:
                raise fail(f"cluster.{name}", "means nothing without cluster.address")
        return
    if etcd and peers:
        raise fail("cluster.peers", "means nothing with cluster.etcd")
    if not etcd and len(peers) != 1:
        raise fail("cluster.peers", "must name the other node of a cluster of two")
    if address in peers:
        raise fail("cluster.peers", "is the address of this node")
    if tables["store"]["layer"] != "log":
        raise fail("store.layer", "a cluster needs the layer log")
    if tables["limits"]["message_size"] > limits.CLUSTER_MESSAGE:
        most = checks.show_size(limits.CLUSTER_MESSAGE)
        raise fail("limits.message_size", f"at most {most} in a cluster")


def _check_etcd(cluster: dict[str, Any], fail: Fail) -> None:
    """Files are for https; a certificate and its key go together.  The process that talks to etcd
    is confined, so it cannot read the certificates of the system."""
    has_tls = any(url[:5] == "https" for url in cluster["etcd"])
    if has_tls and cluster["etcd_ca"] is None:
        raise fail("cluster.etcd", "an https URL needs cluster.etcd_ca")
    for name in ("etcd_ca", "etcd_certificate", "etcd_key"):
        if cluster[name] is not None and not has_tls:
            raise fail(f"cluster.{name}", "means nothing without an https URL in cluster.etcd")
    for name, other in (("etcd_certificate", "etcd_key"), ("etcd_key", "etcd_certificate")):
        if cluster[name] is not None and cluster[other] is None:
            raise fail(f"cluster.{name}", f"needs cluster.{other}")


def _check_chroot(cluster: dict[str, Any], chroot: Path | None, fail: Fail) -> None:
    """The files for etcd are read again and again, within the chroot."""
    for name in ("etcd_ca", "etcd_certificate", "etcd_key"):
        path = cluster[name]
        if path is not None and chroot is not None and not path.is_relative_to(chroot):
            raise fail(f"cluster.{name}", f"{path} is not below the chroot {chroot}")


# --- Errors with their position
# ----------------------------------------------------------------------


def _failure(source: Path | None, content: str) -> Fail:
    """Makes the error for a key, with the file and the line of the key."""

    def fail(key: str, reason: str) -> ConfigError:
        line = find_line(content, key)
        place = f"{source or 'configuration'}" + (f":{line}" if line else "")
        # A key may contain anything, even a newline; an error is one line.
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
