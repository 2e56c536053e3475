"""The checks of settings: from TOML's value to the one that the program uses.

Rules of this file:

* A check takes TOML's value (str, int, bool, list …) and returns the program's, or raises
  ValueError with only the reason: the caller adds file, line and key.
* A check never guesses: `true` is not a number, "1_000" is not a size, a name is not an address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metad import limits

Check = Callable[[object], Any]
# Checks whose values have a different form in the file: sizes and durations.
_SHOWN: dict[Check, Callable[[Any], object]] = {}

_UNITS = {"": 1, "KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB, "TiB": 1024 * limits.GIB}
_SIZE = re.compile(r"([0-9]{1,19}) ?(KiB|MiB|GiB|TiB|)", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_PATTERN = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~@-]{1,254}", re.ASCII)
_LAYER = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
# A FileDescriptorName of systemd.socket(5).
_PASSED = re.compile(r"fd:[A-Za-z0-9_.@-]{1,255}", re.ASCII)
# The capacity of sun_path without its final NUL (unix(7)).
_SUN_PATH = 107


def text(value: object) -> str:
    """A string of printable characters that is not empty."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if not value or not value.isprintable():
        raise ValueError("must be a string of printable characters, not empty")
    return value


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def integer(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("must be a whole number")
        if not low <= value <= high:
            raise ValueError(f"must be from {low:,} to {high:,}")
        return value

    return check


def choice(*allowed: Any) -> Check:
    def check(value: object) -> Any:
        for one in allowed:
            if type(value) is type(one) and value == one:
                return one
        raise ValueError("must be " + " or ".join(show_value(one) for one in allowed))

    return check


def size(low: int, high: int, multiple: int = 1) -> Check:
    """Octets: a number, or a string of a number and KiB, MiB, GiB or TiB."""

    def check(value: object) -> int:
        octets = _octets(value)
        if not low <= octets <= high:
            raise ValueError(f"must be from {show_size(low)} to {show_size(high)}")
        if octets % multiple:
            raise ValueError(f"must be a multiple of {multiple:,} bytes")
        return octets

    _SHOWN[check] = show_size
    return check


def _octets(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a size such as "128MiB" (KiB, MiB, GiB, TiB) or a number')
    return int(found[1]) * _UNITS[found[2]]


def show_size(octets: int) -> str:
    """The shortest exact form that `size` reads: 134217728 is 128MiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if octets and octets % _UNITS[unit] == 0:
            return f"{octets // _UNITS[unit]}{unit}"
    return str(octets)


_JUNK = re.compile(r"\+[A-Za-z0-9_-]{1,32}|[^@\s]{1,64}@[A-Za-z0-9.-]{1,255}")
_SPANS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9}) ?(s|min|h|d|w)", re.ASCII)


def duration(low: int, high: int) -> Check:
    """Seconds, from a string of a number and s, min, h, d or w; 0 needs no unit."""

    def check(value: object) -> int:
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        zero = value == "0" or (value == 0 and not isinstance(value, bool))
        if found is None and not zero:
            raise ValueError('must be 0 or a time such as "30d" (s, min, h, d, w)')
        seconds = int(found[1]) * _SPANS[found[2]] if found else 0
        if seconds and not low <= seconds <= high:
            raise ValueError(f"must be from {show_duration(low)} to {show_duration(high)}")
        return seconds

    _SHOWN[check] = lambda seconds: show_duration(seconds) if seconds else 0
    return check


def show_duration(seconds: int) -> str:
    """The shortest exact form that `duration` reads: 86400 is 1d."""
    for unit in ("w", "d", "h", "min"):
        if seconds and seconds % _SPANS[unit] == 0:
            return f"{seconds // _SPANS[unit]}{unit}"
    return f"{seconds}s" if seconds else "0"


def shown(check: Check, value: Any) -> object:
    """A value of a setting in the form of the file: 134217728 is "128MiB"."""
    return _SHOWN[check](value) if check in _SHOWN else value


def show_value(value: object) -> str:
    """A string, number, boolean, or a list of these, in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(show_value, value)) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def domain(value: object) -> str:
    """A domain of letters, digits and hyphens, lower-cased (RFC 5321 2.3.5, RFC 1123 2.1)."""
    name = text(value).lower()
    if len(name) > limits.DOMAIN or not all(_LABEL.fullmatch(part) for part in name.split(".")):
        raise ValueError("must be a domain name such as mx1.example.org")
    return name


def user(value: object) -> str:
    """A name of a system user; its existence is checked when it is needed."""
    name = text(value)
    if not _USER.fullmatch(name):
        raise ValueError("must be the name of a system user")
    return name


def path(value: object) -> Path:
    """An absolute path: a daemon has no meaningful current directory."""
    name = text(value)
    if not name.startswith("/"):
        raise ValueError("must be an absolute path")
    return Path(name)


def network(value: object) -> str:
    """An IP address or a network in CIDR form."""
    try:
        return str(ipaddress.ip_network(text(value), strict=True))
    except ValueError as error:
        raise ValueError(f"must be an address or a network: {error}") from None


def mail_address(value: object) -> str:
    """A mail address in lower case; only its form is checked."""
    local, _, name = text(value).lower().rpartition("@")
    if not local or "*" in local:
        raise ValueError("must be a mail address such as admin@example.org")
    return f"{local}@{domain(name)}"


def address_pattern(value: object) -> str:
    """A shell pattern for addresses: "*@*", "*@example.test"."""
    pattern = text(value).lower()
    if pattern.count("@") != 1 or not _PATTERN.fullmatch(pattern):
        raise ValueError('must be a pattern such as "*@example.test"')
    return pattern


def local_address(value: object) -> Address:
    """A loopback address with a port, or a unix socket."""
    found = address(value)
    if found.path is None and not (found.host and ipaddress.ip_address(found.host).is_loopback):
        raise ValueError('must be a loopback address ("127.0.0.1:9125") or "unix:/PATH"')
    return found


def peer_address(value: object) -> str:
    """An IP address with a port, to which other nodes connect: no wildcard, no free port."""
    found = address(value)
    if not found.port or ipaddress.ip_address(found.host).is_unspecified:
        raise ValueError('must be an IP address and a port, such as "10.0.0.1:7525"')
    return found.text


def etcd_url(value: object) -> str:
    """An endpoint of etcd.  No name is resolved, so that the hub starts without a resolver."""
    given = text(value)
    scheme, separator, rest = given.partition("://")
    if scheme not in ("http", "https") or not separator:
        raise ValueError('must be a URL such as "https://10.0.0.1:2379"')
    return f"{scheme}://{peer_address(rest.removesuffix('/'))}"


def layer_name(value: object) -> str:
    """The name of a layer, built in or an entry point's; its existence is checked later."""
    name = text(value)
    if not _LAYER.fullmatch(name):
        raise ValueError("must be the name of a layer")
    return name


def score(value: object) -> int:
    """A spam score from 0 to 1,000, in hundredths."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1_000:
        raise ValueError("must be a number from 0 to 1,000")
    return round(value * 100)


def show_score(hundredths: int) -> float | int:
    """As `score` reads it: 550 is 5.5."""
    return hundredths // 100 if hundredths % 100 == 0 else hundredths / 100


_SHOWN[score] = show_score


def server(value: object) -> str:
    """Where a server listens: "unix:/PATH", or an IP address and a port."""
    found = address(value)
    if found.port is None and found.path is None:
        raise ValueError('must be "unix:/PATH" or an IP address and a port')
    return found.text


def junk(value: object) -> str:
    """A detail such as "+junk", an address, or nothing."""
    given = text(value) if value != "" else ""
    if given and not _JUNK.fullmatch(given):
        raise ValueError('must be a detail such as "+junk", or an address')
    return given


def list_of(check: Check) -> Check:
    def check_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("must be a list")
        return tuple(check(one) for one in value)

    return check_all


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: host and port, or the path of a Unix socket, or neither: sockets passed
    under a name.  `text` is as given."""

    text: str
    host: str
    port: int | None
    path: str | None


def address(value: object) -> Address:
    """ "0.0.0.0:25", "[::]:25", "unix:/run/metad/lmtp", or "fd:NAME" for a socket from systemd."""
    given = text(value)
    if _PASSED.fullmatch(given):
        return Address(given, "", None, None)
    if given.startswith("unix:"):
        return _unix_address(given)
    host, _, port = given.rpartition(":")
    if not _PORT.fullmatch(port) or not 0 <= int(port) <= 65535:
        raise ValueError('must end in a port from 0 to 65535, as in "0.0.0.0:25"')
    return Address(given, _ip(host), int(port), None)


def _unix_address(given: str) -> Address:
    name = given.removeprefix("unix:")
    if not name.startswith("/"):
        raise ValueError("a unix socket must have an absolute path")
    if len(name.encode("utf-8", "surrogateescape")) > _SUN_PATH:
        raise ValueError(f"the path of a unix socket has at most {_SUN_PATH} bytes")
    return Address(given, "", None, name)


def _ip(host: str) -> str:
    """Only the address.  Names are not resolved: a hub must start without a resolver."""
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        found = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError('must begin with an IP address, as in "0.0.0.0:25" or "[::]:25"') from None
    if bracketed != (found.version == 6):
        raise ValueError("an IPv6 address, and only that, stands in [brackets]")
    return str(found)
