"""The filters of a worker, made from its configuration, and the mailboxes for junk."""

from __future__ import annotations

from metad import filters
from metad.config.model import Config
from metad.errors import RefusedError
from metad.filters.base import FilterContext
from metad.filters.chain import FilterChain, Rules
from metad.layers.base import Recipient
from metad.loglines import LogLines
from metad.sessions.context import WorkerContext
from metad.sessions.recipients import check
from metad.system.shared_memory import Cell, ProcessRow

_COUNTS = {
    "checks": Cell.FILTER_CHECKS,
    "failures": Cell.FILTER_FAILURES,
    "time_us": Cell.FILTER_TIME_US,
}


def make_chain(config: Config, loop: object, row: ProcessRow, log: LogLines) -> FilterChain | None:
    """The filters, started; None if there are none.  Raises MetadError, OSError."""
    if not filters.configured(config):
        return None

    def report(text: str) -> None:
        log.line("filter", text)

    def count(name: str, amount: int) -> None:
        row.add(_COUNTS[name], amount)

    given = config.filter
    made = []
    for name, options in filters.check(config).items():
        one = filters.find(name)()
        one.start(FilterContext(loop, config.hostname, options, report))  # type: ignore[arg-type]
        made.append(one)
    rules = Rules(
        given.deadline,
        given.failure == "defer",
        given.authserv_id or config.hostname,
        given.junk,
        given.mixed == "defer",
    )
    return FilterChain(made, rules, report, count)


def junk_recipients(
    context: WorkerContext, recipients: tuple[Recipient, ...], size: int
) -> tuple[Recipient, ...]:
    """The second mailboxes of recipients; one without keeps its own.

    Raises RefusedError if one of them is full.
    """
    junk = context.config.filter.junk
    found: dict[int, Recipient] = {}
    for one in recipients:
        local, _, domain = one.address.rpartition("@")
        address = junk if "@" in junk else f"{local.partition('+')[0]}{junk}@{domain}"
        try:
            accounts = context.users.expand(address) if junk else ()
        except RefusedError:
            accounts = ()
        if accounts:
            check(context, accounts, size)
            for account in accounts:
                found.setdefault(account.id, Recipient(account.id, one.address))
        else:
            found.setdefault(one.mailbox, one)
    return tuple(found.values())
