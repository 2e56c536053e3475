"""Every setting of the configuration file: its check, its default and its text in one row.

Rule of this file: `SETTINGS` is the whole list of keys.  metad.toml(5), `metad config show
--defaults` and the defaults of metad.config.model are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metad import limits
from metad.config import checks
from metad.config.cluster_settings import CLUSTER
from metad.config.setting import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "", "hostname", checks.domain, None,
        "The name in the greeting and in Received fields.  Default: the name of the machine.",
    ),
    Setting(
        "", "user", checks.user, None,
        "The system user that the hub runs as when root starts it.  Root needs it to start a hub.",
    ),
    Setting(
        "", "data", checks.path, None,
        "The directory of logs, index and users.  `--data` and METAD_DATA take precedence.  "
        "Default: $STATE_DIRECTORY, which systemd sets for the service, /var/lib/metad for root, "
        "otherwise $XDG_STATE_HOME/metad or ~/.local/state/metad.",
    ),
    Setting(
        "", "chroot", checks.path, None,
        "The directory that becomes the root directory of every process of the hub: the data "
        "directory or one above it.  Requires a start by root, or CAP_SYS_CHROOT.",
    ),
    Setting(
        "", "landlock", checks.boolean, True,
        "Whether the processes give up access to all files outside the data directory, on "
        "kernels with Landlock.  `metad status` shows what is in force.",
    ),
    Setting(
        "", "log_format", checks.choice("text", "json"), "text",
        'The form of the log: "text", a line of text, or "json", one JSON object per line.',
    ),
    Setting(
        "listen", "protocol", checks.choice("smtp", "lmtp", "pop3"), None,
        "The protocol spoken on this address.  Required.",
    ),
    Setting(
        "listen", "address", checks.address, None,
        'An IP address and a port ("0.0.0.0:25", "[::]:25"), a Unix socket ("unix:/PATH"), or '
        '"fd:NAME" for sockets that systemd passes under this name.  "[::]" serves IPv6 only.  '
        "Port 0 takes a free port, which the start prints.  Required.",
    ),
    Setting(
        "listen", "tls", checks.choice("none", "starttls", "implicit"), "none",
        "Whether the server offers TLS by STARTTLS or STLS, or the connection begins with TLS.",
    ),
    Setting(
        "listen", "proxy", checks.boolean, False,
        "Whether every connection begins with a PROXY header and comes from trusted_proxies.",
    ),
    Setting(
        "listen", "trusted_proxies", checks.list_of(checks.network), [],
        "The addresses and networks of the proxies.",
    ),
    Setting(
        "store", "layer", checks.layer_name, "log",
        'Where mail is stored.  "log": in logs of the hub.  "sort": in Maildirs for another '
        'server.  "null": nowhere; mail is accepted and discarded, for benchmarks.  Or the name'
        " of a layer of an installed package, whose own settings are in the table [layer].",
    ),
    Setting(
        "store", "workers", checks.integer(1, limits.MAX_WORKERS), 2,
        "The number of worker processes, each with its own log.  One per core is a good choice.",
    ),
    Setting(
        "store", "log_size",
        checks.size(limits.MIN_LOG_SIZE, limits.MAX_LOG_SIZE, limits.LOG_SIZE_STEP), "128MiB",
        "The size of a log file.  A message can be at most a quarter of it.",
    ),
    Setting(
        "store", "sync", checks.boolean, True,
        "Whether mail is made durable before it is acknowledged.  false loses acknowledged mail"
        " when the machine stops: for benchmarks only.",
    ),
    Setting(
        "store", "align", checks.choice(512, 4096, 8192, 16384, 32768, 65536), None,
        "The boundary in bytes on which each group of messages begins, so that no write touches a "
        "block that holds acknowledged mail.  Default: the larger of the file system's block and "
        "the disk's physical sector, at least 4096.  512 saves space but may lose acknowledged "
        "mail in a power cut, except on disks that write 512 bytes as a unit.",
    ),
    Setting(
        "store", "size_limit", checks.size(limits.MIN_LOG_SIZE, 1 << 60), None,
        "Maximum total size of all logs.  At the limit new mail is deferred (452).  Default: "
        "the available disk space.",
    ),
    Setting(
        "collector", "idle_load", checks.integer(0, 1_000_000), limits.IDLE_LOAD,
        "The hub is idle while it handles fewer than this many messages per second.",
    ),
    Setting(
        "collector", "idle_seconds", checks.integer(0, 86_400), limits.IDLE_SECONDS,
        "How many seconds the hub must have been idle before the collector starts.",
    ),
    Setting(
        "collector", "garbage", checks.integer(5, 99), limits.GARBAGE,
        "The percentage of a log that must be garbage before an idle hub collects it.  Logs "
        "with older mail need more.",
    ),
    Setting(
        "collector", "low_space", checks.integer(1, 90), limits.LOW_SPACE,
        "When the free share of the space for logs (size_limit, or the disk) falls below this "
        "percentage, the collector also works under load.",
    ),
    Setting(
        "collector", "enough_space", checks.integer(1, 95), limits.ENOUGH_SPACE,
        "The percentage of free space at which collection under load ends.",
    ),
    Setting(
        "collector", "backup_lease", checks.integer(1, 86_400), limits.BACKUP_LEASE,
        "Seconds without progress after which a backup or fsck no longer stops collection.",
    ),
    Setting(
        "limits", "message_size", checks.size(limits.MIN_MESSAGE_SIZE, limits.MAX_LOG_SIZE // 4),
        "30MiB",
        "The maximum message size, announced by SIZE.  At most a quarter of log_size; the "
        "default is reduced to fit.",
    ),
    Setting(
        "limits", "recipients", checks.integer(100, limits.MAX_RECIPIENTS), limits.RECIPIENTS,
        "The maximum number of recipients of one transaction (RFC 5321 requires at least 100).",
    ),
    Setting(
        "limits", "smtp_errors", checks.integer(1, 10_000), limits.SMTP_ERRORS,
        "The number of errors after which the server ends an SMTP session.",
    ),
    Setting(
        "limits", "command_line", checks.integer(1024, 65_536), limits.SMTP_COMMAND_LINE,
        "The maximum length of an SMTP command line in bytes, including its line end.",
    ),
    Setting(
        "limits", "connections", checks.integer(100, 1_000_000), limits.CONNECTIONS,
        "The maximum number of simultaneous connections to the hub.  Above it clients get 421.",
    ),
    Setting(
        "limits", "network_connections", checks.integer(1, 1_000_000),
        limits.NETWORK_CONNECTIONS,
        "The maximum number of simultaneous connections from one client address (IPv6: one "
        "/64).",
    ),
    Setting(
        "limits", "message_rate", checks.integer(0, 1_000_000), 0,
        "The maximum number of messages per minute from one client address (IPv6: one /64).  0:"
        " no limit.",
    ),
    Setting(
        "limits", "memory", checks.size(limits.MIN_MEMORY, limits.MAX_MEMORY), "128MiB",
        "Per-worker memory for client data.  Half buffers incoming messages (the excess spills "
        "to unlinked temporary files); half bounds unread input and unsent output (the excess "
        "disconnects the longest-blocked client).",
    ),
    Setting(
        "limits", "unfinished", checks.size(limits.MIN_UNFINISHED, 1 << 50), "4GiB",
        "Per-worker limit on messages that are still arriving, on disk and in memory.  One client "
        "network may hold half of what others leave, and all together at most half of the free "
        "disk space; more is deferred (452).",
    ),
    Setting(
        "limits", "heartbeat", checks.integer(1, 3600), limits.HEARTBEAT,
        "The number of seconds without a heartbeat after which a worker counts as hung and is "
        "replaced.",
    ),
    Setting(
        "limits", "stop_deadline", checks.integer(1, 3600), limits.STOP_DEADLINE,
        "The number of seconds that sessions have to finish their transactions when the hub "
        "stops.",
    ),
    Setting(
        "limits", "reload_deadline", checks.integer(1, 86_400), limits.RELOAD_DEADLINE,
        "The number of seconds that sessions have to end by themselves after a reload, before "
        "they are treated as at a stop.",
    ),
    Setting(
        "smtp", "bare_line_ends", checks.choice("refuse", "repair"), "refuse",
        'What to do with a message that has a bare CR or LF: "refuse" it with 550, or "repair" '
        "it by making CR LF of each.",
    ),
    Setting(
        "smtp", "repair_networks", checks.list_of(checks.network), [],
        "Clients whose bare CR and LF are always repaired, and whose commands may end in LF alone.",
    ),
    Setting(
        "smtp", "strict", checks.boolean, False,
        "Refuse an address without angle brackets, or with a blank before it, in MAIL and RCPT "
        "(Postfix: strict_rfc821_envelopes).",
    ),
    Setting(
        "smtp", "clients", checks.list_of(checks.network), [],
        "Networks that may connect to SMTP and LMTP, for a hub behind a filter.  Empty: all.",
    ),
    Setting(
        "pop3", "plaintext", checks.choice("never", "loopback", "always"), "loopback",
        'Where clients may send a password without TLS: "never", over "loopback", or "always".',
    ),
    Setting(
        "pop3", "default_domain", checks.domain, None,
        "The domain of a login name without one.  Default: none.",
    ),
    Setting(
        "pop3", "scram", checks.choice("auto", "always", "never"), "auto",
        'Whether SCRAM-SHA-256 is offered.  "auto": while every user who can log in has SCRAM '
        "keys.",
    ),
    Setting(
        "pop3", "master_users", checks.list_of(checks.mail_address), [],
        "Users who may open every mailbox with their own password, to move mail away or to look "
        'into a complaint: by the login name "mailbox*master" or by the authorization identity of '
        "SASL.  Each use is logged.  Empty: none.",
    ),
    Setting(
        "pop3", "login_delay", checks.integer(0, 86_400), 0,
        "The minimum number of seconds between two logins of a user (LOGIN-DELAY, RFC 2449).  "
        "0: none.",
    ),
    Setting(
        "users", "scram_iterations",
        checks.integer(limits.SCRAM_ITERATIONS, limits.MAX_SCRAM_ITERATIONS),
        limits.SCRAM_ITERATIONS,
        "The iteration count of new SCRAM keys (RFC 7677 requires at least 4096).  The first "
        "login of each user after a start costs this much work.",
    ),
    Setting(
        "users", "expiry", checks.duration(*limits.EXPIRY), 0,
        'The age at which the collector deletes mail, such as "90d".  0: never.',
    ),
    Setting(
        "quota", "size", checks.size(0, limits.MAX_QUOTA), 0,
        'The maximum size of a mailbox, such as "1GiB", as POP3 counts it.  0: no limit.',
    ),
    Setting(
        "quota", "messages", checks.integer(0, limits.MAX_QUOTA_MESSAGES), 0,
        "The maximum number of messages in a mailbox.  0: no limit.",
    ),
    Setting(
        "quota", "full", checks.choice("defer", "refuse"), "defer",
        'The reply to mail for a full mailbox: "defer" (452) or "refuse" (552).',
    ),
    Setting(
        "metrics", "address", checks.local_address, None,
        "A loopback address (\"127.0.0.1:9125\") or a Unix socket (\"unix:/PATH\") that serves "
        "Prometheus metrics (/metrics), health (/healthz, /readyz) and a status page.  Default: "
        "none.",
    ),
    *CLUSTER,
    Setting(
        "dev", "accept", checks.list_of(checks.address_pattern), [],
        "For tests: patterns of addresses, such as \"*@*\", that get a mailbox when mail or a "
        "login first asks for them.",
    ),
    Setting(
        "dev", "any_password", checks.boolean, False,
        "For tests: every password opens every mailbox.",
    ),
    Setting(
        "domain", "name", checks.domain, None,
        "The domain whose accounts these settings are for.  Required.",
    ),
    Setting(
        "domain", "quota", checks.size(0, limits.MAX_QUOTA), None,
        "quota.size for this domain.",
    ),
    Setting(
        "domain", "messages", checks.integer(0, limits.MAX_QUOTA_MESSAGES), None,
        "quota.messages for this domain.",
    ),
    Setting(
        "domain", "expiry", checks.duration(*limits.EXPIRY), None,
        "users.expiry for this domain.",
    ),
    Setting(
        "domain", "login_delay", checks.integer(0, 86_400), None,
        "pop3.login_delay for this domain.",
    ),
    Setting(
        "domain", "spam_filter", checks.boolean, None,
        "Whether filters refuse and mark mail for this domain.  Default: true.",
    ),
    Setting(
        "domain", "spam_mark", checks.score, None,
        "The spam score at which mail for this domain is marked.  Default: the filter's.",
    ),
    Setting(
        "domain", "spam_refuse", checks.score, None,
        "The spam score at which mail for this domain is refused.  Default: the filter's.",
    ),
    Setting(
        "filter", "rspamd", checks.server, None,
        'Where a worker of rspamd listens: "unix:/PATH" or "127.0.0.1:11333".  It checks every '
        "message before it is accepted.  Default: none.",
    ),
    Setting(
        "filter", "use", checks.list_of(checks.layer_name), [],
        "The names of filters of installed packages, asked in this order and before rspamd.  "
        "The settings of each are in the table [filter.NAME].",
    ),
    Setting(
        "filter", "failure", checks.choice("accept", "defer"), "accept",
        'What to do when a filter does not answer as it should: "accept" the message with the '
        'field X-Metad-Filter, or "defer" it with 451.',
    ),
    Setting(
        "filter", "deadline", checks.duration(1, 240), "10s",
        "How long a filter may take for one answer.",
    ),
    Setting(
        "filter", "size", checks.size(1, limits.MAX_LOG_SIZE), "10MiB",
        "The size above which rspamd does not check the whole message.",
    ),
    Setting(
        "filter", "oversize", checks.choice("skip", "partial"), "skip",
        'What rspamd gets of a larger message: nothing ("skip"), or its first bytes '
        '("partial"; signatures over the whole message then fail).',
    ),
    Setting(
        "filter", "spam", checks.choice("mark", "junk"), "mark",
        'What becomes of spam that is not refused: "mark" it with X-Spam, or also deliver it to '
        'the "junk" mailbox.',
    ),
    Setting(
        "filter", "junk", checks.junk, "+junk",
        "The mailbox for quarantined mail: a detail that is appended to the user's local part, "
        "or an address.  Mail stays in the user's mailbox when there is no such mailbox.",
    ),
    Setting(
        "filter", "mixed", checks.choice("defer", "mark"), "defer",
        "What to do in SMTP with a recipient whose spam_ settings differ from those before it: "
        '"defer" it with 452, so that it comes in a transaction of its own, or accept it and '
        'only "mark" spam.',
    ),
    Setting(
        "filter", "connections", checks.integer(1, 1_000), limits.FILTER_CONNECTIONS,
        "The maximum number of connections of one worker to rspamd.  More messages wait.",
    ),
    Setting(
        "filter", "authserv_id", checks.domain, None,
        "The name in Authentication-Results fields.  Default: hostname.",
    ),
    Setting(
        "filter", "hostname", checks.boolean, True,
        "Whether the client's name is looked up in DNS for rspamd.",
    ),
)  # fmt: skip

# The value of each setting that is not in the file, as the program uses it; "" for the top.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    table: {
        one.name: None if one.default is None else one.check(one.default)
        for one in SETTINGS
        if one.table == table
    }
    for table in {one.table for one in SETTINGS}
}

DEFAULT_LISTEN = (
    {"protocol": "smtp", "address": "127.0.0.1:2525"},
    {"protocol": "pop3", "address": "127.0.0.1:1110"},
)

TABLES = (
    "store", "collector", "limits", "smtp", "pop3", "users", "quota", "filter", "metrics",
    "cluster", "dev",
)  # fmt: skip
LISTS = ("listen", "domain")
