"""The configuration as the program uses it: one frozen object.

Rules of this file:

* A configuration is the same in the process that read it and in those that it is passed to: no
  field looks up anything when used.
* Defaults are only in metad.config.settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metad.config.checks import Address, address
from metad.config.settings import DEFAULTS

_TOP = DEFAULTS[""]
_LISTEN = DEFAULTS["listen"]
_STORE = DEFAULTS["store"]
_LIMITS = DEFAULTS["limits"]
_SMTP = DEFAULTS["smtp"]
_POP3 = DEFAULTS["pop3"]
_USERS = DEFAULTS["users"]
_QUOTA = DEFAULTS["quota"]
_COLLECTOR = DEFAULTS["collector"]
_DOMAIN = DEFAULTS["domain"]
_FILTER = DEFAULTS["filter"]
_DEV = DEFAULTS["dev"]
_METRICS = DEFAULTS["metrics"]
_CLUSTER = DEFAULTS["cluster"]

Protocol = Literal["smtp", "lmtp", "pop3", "peer"]
Tls = Literal["none", "starttls", "implicit"]
BareLineEnds = Literal["refuse", "repair"]
Full = Literal["defer", "refuse"]
Plaintext = Literal["never", "loopback", "always"]
LogFormat = Literal["text", "json"]
Scram = Literal["auto", "always", "never"]
Failure = Literal["accept", "defer"]
Oversize = Literal["skip", "partial"]
Spam = Literal["mark", "junk"]
Mixed = Literal["defer", "mark"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One [[listen]] table, or what [cluster] listens on ("peer").  `path`: that of a Unix socket;
    then `port` is None."""

    protocol: Protocol
    address: str
    host: str
    port: int | None
    path: str | None
    tls: Tls = _LISTEN["tls"]
    proxy: bool = _LISTEN["proxy"]
    trusted_proxies: tuple[str, ...] = _LISTEN["trusted_proxies"]


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Sizes in bytes; `size_limit` None: as large as the disk; `align` None: as the disk needs."""

    layer: str = _STORE["layer"]
    workers: int = _STORE["workers"]
    log_size: int = _STORE["log_size"]
    sync: bool = _STORE["sync"]
    align: int | None = _STORE["align"]
    size_limit: int | None = _STORE["size_limit"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one session or message: octets and counts."""

    message_size: int = _LIMITS["message_size"]
    recipients: int = _LIMITS["recipients"]
    smtp_errors: int = _LIMITS["smtp_errors"]
    command_line: int = _LIMITS["command_line"]
    # Of the whole hub; messages per minute and client network, 0 for any number.
    connections: int = _LIMITS["connections"]
    network_connections: int = _LIMITS["network_connections"]
    message_rate: int = _LIMITS["message_rate"]
    # Octets, of one worker.
    memory: int = _LIMITS["memory"]
    unfinished: int = _LIMITS["unfinished"]
    # Seconds: of the processes.
    heartbeat: int = _LIMITS["heartbeat"]
    stop_deadline: int = _LIMITS["stop_deadline"]
    reload_deadline: int = _LIMITS["reload_deadline"]


@dataclass(frozen=True, slots=True)
class SmtpConfig:
    """Networks in CIDR form; `clients` empty: all clients may connect."""

    bare_line_ends: BareLineEnds = _SMTP["bare_line_ends"]
    repair_networks: tuple[str, ...] = _SMTP["repair_networks"]
    strict: bool = _SMTP["strict"]
    clients: tuple[str, ...] = _SMTP["clients"]


@dataclass(frozen=True, slots=True)
class Pop3Config:
    """`login_delay` in seconds between two logins of a user, 0 for none."""

    plaintext: Plaintext = _POP3["plaintext"]
    default_domain: str | None = _POP3["default_domain"]
    scram: Scram = _POP3["scram"]
    login_delay: int = _POP3["login_delay"]
    master_users: tuple[str, ...] = _POP3["master_users"]


@dataclass(frozen=True, slots=True)
class UsersConfig:
    """For every account without its own: `expiry` of mail in seconds, 0 for never."""

    scram_iterations: int = _USERS["scram_iterations"]
    expiry: int = _USERS["expiry"]


@dataclass(frozen=True, slots=True)
class QuotaConfig:
    """For every account without its own: octets, messages; 0 for no limit."""

    size: int = _QUOTA["size"]
    messages: int = _QUOTA["messages"]
    full: Full = _QUOTA["full"]


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where the monitor listens; None: there is no monitor."""

    address: Address | None = _METRICS["address"]


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The address of this node, and either that of the other or the endpoints of etcd.  `address`
    None: the hub is not in a cluster.  `absent_after` in seconds."""

    address: str | None = _CLUSTER["address"]
    peers: tuple[str, ...] = _CLUSTER["peers"]
    etcd: tuple[str, ...] = _CLUSTER["etcd"]
    etcd_ca: Path | None = _CLUSTER["etcd_ca"]
    etcd_certificate: Path | None = _CLUSTER["etcd_certificate"]
    etcd_key: Path | None = _CLUSTER["etcd_key"]
    absent_after: int = _CLUSTER["absent_after"]

    @property
    def etcd_files(self) -> tuple[Path, ...]:
        """What a connection to etcd needs."""
        files = (self.etcd_ca, self.etcd_certificate, self.etcd_key)
        return tuple(path for path in files if path is not None)


@dataclass(frozen=True, slots=True)
class DevConfig:
    """For test inboxes: patterns of addresses that get a mailbox automatically."""

    accept: tuple[str, ...] = _DEV["accept"]
    any_password: bool = _DEV["any_password"]


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """When the collector works: messages and logins per second, seconds, per cent of space."""

    idle_load: int = _COLLECTOR["idle_load"]
    idle_seconds: int = _COLLECTOR["idle_seconds"]
    garbage: int = _COLLECTOR["garbage"]
    low_space: int = _COLLECTOR["low_space"]
    enough_space: int = _COLLECTOR["enough_space"]
    backup_lease: int = _COLLECTOR["backup_lease"]


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One [[domain]] table: values for its accounts instead of the defaults; None: the defaults
    apply."""

    name: str
    quota: int | None = None
    messages: int | None = _DOMAIN["messages"]
    expiry: int | None = _DOMAIN["expiry"]
    login_delay: int | None = _DOMAIN["login_delay"]
    spam_filter: bool | None = _DOMAIN["spam_filter"]
    spam_mark: int | None = _DOMAIN["spam_mark"]
    spam_refuse: int | None = _DOMAIN["spam_refuse"]


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """The filters that check messages.  `deadline` in seconds, `size` in octets; `options`: the
    tables [filter.NAME] of the filters in `use`."""

    rspamd: str | None = _FILTER["rspamd"]
    use: tuple[str, ...] = _FILTER["use"]
    failure: Failure = _FILTER["failure"]
    deadline: int = _FILTER["deadline"]
    size: int = _FILTER["size"]
    oversize: Oversize = _FILTER["oversize"]
    spam: Spam = _FILTER["spam"]
    junk: str = _FILTER["junk"]
    mixed: Mixed = _FILTER["mixed"]
    connections: int = _FILTER["connections"]
    authserv_id: str | None = _FILTER["authserv_id"]
    hostname: bool = _FILTER["hostname"]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration.  `source` is the file it was read from."""

    hostname: str
    user: str | None
    data: Path
    listen: tuple[Listener, ...]
    store: StoreConfig
    limits: Limits
    smtp: SmtpConfig
    pop3: Pop3Config
    source: Path | None = None
    chroot: Path | None = _TOP["chroot"]
    landlock: bool = _TOP["landlock"]
    log_format: LogFormat = _TOP["log_format"]
    users: UsersConfig = UsersConfig()
    quota: QuotaConfig = QuotaConfig()
    collector: CollectorConfig = CollectorConfig()
    dev: DevConfig = DevConfig()
    metrics: MetricsConfig = MetricsConfig()
    domain: tuple[DomainConfig, ...] = ()
    layer: Mapping[str, Any] = field(default_factory=dict)
    filter: FilterConfig = FilterConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Everything that the hub listens on: the [[listen]] tables, and the one for other
        nodes."""
        if self.cluster.address is None:
            return self.listen
        own = address(self.cluster.address)
        return (*self.listen, Listener("peer", own.text, own.host, own.port, own.path))


# Table of the file -> its class.  [filter] has nested tables, so the parser makes it.
SECTIONS: Mapping[str, Callable[..., Any]] = {
    "store": StoreConfig,
    "limits": Limits,
    "smtp": SmtpConfig,
    "pop3": Pop3Config,
    "users": UsersConfig,
    "quota": QuotaConfig,
    "collector": CollectorConfig,
    "dev": DevConfig,
    "metrics": MetricsConfig,
    "cluster": ClusterConfig,
}
