"""Every counter of shared memory by name: what `status`, `gc`, metrics and docs/counters.md show.

Rule of this file: a counter's name, kind and text stand in one row of `COUNTERS`, nowhere else.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from metad.system.shared_memory import Cell


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


HUB: tuple[Counter, ...] = (
    Counter("messages", Cell.MESSAGES, Kind.TOTAL, "Messages stored.", "messages"),
    Counter("octets", Cell.MESSAGE_OCTETS, Kind.TOTAL, "Their size in bytes."),
    Counter("recipients", Cell.RECIPIENTS, Kind.TOTAL, "Their recipients."),
    Counter(
        "refused", Cell.REFUSED, Kind.TOTAL,
        "Connections, senders, recipients and messages that were refused or deferred.", "refused",
    ),
    Counter("groups", Cell.GROUPS, Kind.TOTAL, "Groups committed; each is synced once."),
    Counter("commit_failures", Cell.COMMIT_FAILURES, Kind.TOTAL, "Groups that failed."),
    Counter("logins", Cell.LOGINS, Kind.TOTAL, "POP3 logins."),
    Counter(
        "login_failures", Cell.LOGIN_FAILURES, Kind.TOTAL,
        "Logins with wrong credentials, including clients that hung up.",
    ),
    Counter("retrieved", Cell.RETRIEVED, Kind.TOTAL, "Messages sent by POP3.", "retrieved"),
    Counter("deleted", Cell.DELETED, Kind.TOTAL, "Messages deleted by POP3."),
    Counter("damaged", Cell.DAMAGED, Kind.TOTAL, "Messages that could not be read."),
    Counter("filter_checks", Cell.FILTER_CHECKS, Kind.TOTAL, "Messages that filters judged."),
    Counter(
        "filter_refused", Cell.FILTER_REFUSED, Kind.TOTAL,
        "Connections, senders, recipients and messages that filters refused or deferred.",
    ),
    Counter(
        "filter_junk", Cell.FILTER_JUNK, Kind.TOTAL, "Messages for the second mailboxes of users."
    ),
    Counter(
        "filter_failures", Cell.FILTER_FAILURES, Kind.TOTAL,
        "Questions that a filter did not answer.",
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
    Counter("octets_freed", Cell.FREED_OCTETS, Kind.TOTAL, "Bytes freed."),
    Counter("octets_moved", Cell.MOVED_OCTETS, Kind.TOTAL, "Bytes copied to survivor logs."),
    Counter("damaged", Cell.DAMAGED, Kind.TOTAL, "Records that could not be read."),
    Counter("expired", Cell.EXPIRED, Kind.TOTAL, "Messages deleted by expiry or user removal."),
    Counter("in_use", Cell.IN_USE, Kind.TOTAL, "Mailboxes skipped because they were in use."),
    Counter("unknown", Cell.ORPHANED, Kind.NOW, "Mailboxes with orphaned mail: without a user."),
)
PER_WORKER = {one.worker: one.cell for one in (*OPEN, *HUB) if one.worker}
TOTALS = {one.name: one.cell for one in HUB}
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
