"""Every counter of shared memory by name: what `status`, `gc`, metrics and docs/counters.md show.

Rule of this file: a counter's name, kind and text stand in one row of `COUNTERS`, nowhere else.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from metad.system.histograms import HISTOGRAMS
from metad.system.shared_memory import HISTOGRAM_CELLS, Cell, Role


class Kind(Enum):
    """`TOTAL` only grows, and survives the process that counted; `NOW` is the present value."""

    TOTAL = "total"
    NOW = "now"


class Counter(NamedTuple):
    """`name`: for the whole hub, or in `metad gc`.  `worker`: its name for one worker, if shown."""

    name: str
    cell: Cell
    kind: Kind
    doc: str
    worker: str = ""


class Labelled(NamedTuple):
    """Totals that differ in one label: metrics show them, with few values."""

    name: str
    label: str
    doc: str
    cells: tuple[tuple[str, int], ...]


HUB: tuple[Counter, ...] = (
    Counter("messages", Cell.MESSAGES, Kind.TOTAL, "Messages stored.", "messages"),
    Counter("bytes", Cell.MESSAGE_OCTETS, Kind.TOTAL, "Their size in bytes."),
    Counter("recipients", Cell.RECIPIENTS, Kind.TOTAL, "Their recipients."),
    Counter(
        "refused", Cell.REFUSED, Kind.TOTAL,
        "Connections, senders, recipients and messages that were refused or deferred.", "refused",
    ),
    Counter("groups", Cell.GROUPS, Kind.TOTAL, "Groups committed; each is synced once."),
    Counter(
        "log_bytes", Cell.LOG_OCTETS, Kind.TOTAL,
        "Bytes written to logs by these groups: messages, deletions, envelopes, alignment.",
    ),
    Counter("commit_failures", Cell.COMMIT_FAILURES, Kind.TOTAL, "Groups that failed."),
    Counter("logins", Cell.LOGINS, Kind.TOTAL, "POP3 logins."),
    Counter(
        "login_failures", Cell.LOGIN_FAILURES, Kind.TOTAL,
        "Logins with wrong credentials, including clients that hung up.",
    ),
    Counter("retrieved", Cell.RETRIEVED, Kind.TOTAL, "Messages sent by POP3.", "retrieved"),
    Counter("retrieved_bytes", Cell.RETRIEVED_OCTETS, Kind.TOTAL, "Their size in bytes."),
    Counter("deleted", Cell.DELETED, Kind.TOTAL, "Messages deleted by POP3."),
    Counter("damaged", Cell.DAMAGED, Kind.TOTAL, "Messages that could not be read."),
    Counter("filter_checks", Cell.FILTER_CHECKS, Kind.TOTAL, "Messages that filters checked."),
    Counter(
        "filter_refused", Cell.FILTER_REFUSED, Kind.TOTAL,
        "Connections, senders, recipients and messages that filters refused or deferred.",
    ),
    Counter(
        "filter_junk", Cell.FILTER_JUNK, Kind.TOTAL, "Messages for the second mailboxes of users."
    ),
    Counter(
        "filter_failures", Cell.FILTER_FAILURES, Kind.TOTAL,
        "Requests that a filter did not answer.",
    ),
    Counter(
        "filter_microseconds", Cell.FILTER_TIME_US, Kind.TOTAL,
        "Microseconds that messages waited for their verdicts.",
    ),
)  # fmt: skip
OPEN: tuple[Counter, ...] = (
    Counter("smtp_open", Cell.SMTP_OPEN, Kind.NOW, "Open SMTP and LMTP connections.", "smtp_open"),
    Counter("pop3_open", Cell.POP3_OPEN, Kind.NOW, "Open POP3 connections.", "pop3_open"),
)
COLLECTOR: tuple[Counter, ...] = (
    Counter("left", Cell.LEFT, Kind.NOW, "Logs left to collect in the round asked for."),
    Counter("logs_freed", Cell.FREED, Kind.TOTAL, "Logs freed."),
    Counter("bytes_freed", Cell.FREED_OCTETS, Kind.TOTAL, "Bytes freed."),
    Counter("bytes_moved", Cell.MOVED_OCTETS, Kind.TOTAL, "Bytes copied to survivor logs."),
    Counter("failed", Cell.UNCOLLECTED, Kind.TOTAL, "Collections that failed; the log says why."),
    Counter("damaged", Cell.DAMAGED, Kind.TOTAL, "Records that could not be read."),
    Counter("expired", Cell.EXPIRED, Kind.TOTAL, "Messages deleted by expiry or user removal."),
    Counter("in_use", Cell.IN_USE, Kind.TOTAL, "Mailboxes skipped because they were in use."),
    Counter("unknown", Cell.ORPHANED, Kind.NOW, "Mailboxes with orphaned mail: without a user."),
)
LABELLED: tuple[Labelled, ...] = (
    Labelled(
        "refusals", "reason", "What `refused` counts, by the reason.",
        (
            ("connection", Cell.REFUSED_CONNECTION),
            ("unknown_user", Cell.REFUSED_UNKNOWN),
            ("disabled_user", Cell.REFUSED_DISABLED),
            ("relay", Cell.REFUSED_RELAY),
            ("quota", Cell.REFUSED_QUOTA),
            ("size", Cell.REFUSED_SIZE),
            ("space", Cell.REFUSED_SPACE),
            ("failure", Cell.REFUSED_FAILURE),
            ("rate", Cell.REFUSED_RATE),
            ("syntax", Cell.REFUSED_SYNTAX),
            ("filter", Cell.REFUSED_FILTER),
            ("other", Cell.REFUSED_OTHER),
        ),
    ),
    Labelled(
        "login_attempts", "result", "POP3 logins by their result.",
        (
            ("ok", Cell.LOGINS),
            ("unknown_user", Cell.LOGIN_UNKNOWN),
            ("disabled_user", Cell.LOGIN_DISABLED),
            ("wrong_password", Cell.LOGIN_WRONG),
            ("hung_up", Cell.LOGIN_GONE),
            ("refused", Cell.LOGIN_REFUSED),
        ),
    ),
    Labelled(
        "tls_handshakes", "result", "TLS handshakes by version, or failed.",
        (("TLSv1.2", Cell.TLS_1_2), ("TLSv1.3", Cell.TLS_1_3), ("failed", Cell.TLS_FAILED)),
    ),
    Labelled(
        "process_deaths", "process", "Processes that died and were replaced.",
        tuple((one.name.lower(), Cell.DEATHS + one) for one in Role if one is not Role.NONE),
    ),
)  # fmt: skip
PER_WORKER = {one.worker: one.cell for one in (*OPEN, *HUB) if one.worker}
TOTALS = {one.name: one.cell for one in HUB}
# Every cell whose figure outlives the process that counted.
KEPT = sorted(
    {*TOTALS.values()}
    | {cell for one in LABELLED for _, cell in one.cells}
    | {at for one in HISTOGRAMS for at in range(one.cell, one.cell + HISTOGRAM_CELLS)}
)
COLLECTOR_FIGURES = {one.name: one.cell for one in COLLECTOR}


def as_markdown() -> str:
    """The tables of docs/counters.md."""
    parts = []
    for title, counters in (
        ("The hub (`metad status`)", HUB),
        ("Each worker (`metad status`)", tuple(one for one in (*OPEN, *HUB) if one.worker)),
        ("The collector (`metad gc`)", COLLECTOR),
    ):
        rows = [f"| `{one.name}` | {one.kind.value} | {one.doc} |" for one in counters]
        parts.append("\n".join([f"## {title}", "", "| name | kind | meaning |",
                                "| --- | --- | --- |", *rows, ""]))  # fmt: skip
    return "\n".join(parts)
