"""Whether a recipient is accepted: its accounts, their quotas, the layer.

Rules of this file:

* An alias is checked as a whole and gets the worst reply of its members: a permanent refusal
  before a temporary one.
* Recipients beyond the first few count against the memory budget while the transaction lasts.
* After the data, a message is refused as over quota only if all its recipients are.
"""

from __future__ import annotations

from collections.abc import Mapping

from metad import limits
from metad.budget import Budget, Lease
from metad.errors import (
    ForeignDomainError,
    NoSpaceError,
    OverQuotaError,
    RefusedError,
    TooManyMailboxesError,
    UnknownUserError,
    UsersLostError,
)
from metad.layers.base import Recipient
from metad.protocol.address import is_postmaster
from metad.sessions.context import WorkerContext
from metad.users.account import Account
from metad.users.policy import Quota

# Makes a NamedTuple from a complete tuple: half the cost of calling its class.
_new = tuple.__new__


class Recipients:
    """The recipients of one transaction; one entry per mailbox."""

    __slots__ = ("_lease", "entries", "quotas", "size")

    def __init__(self, size: int = 0) -> None:
        """`size`: as announced by MAIL; 0: not announced."""
        self.size = size
        self.entries: dict[int, Recipient] = {}
        self.quotas: dict[int, Quota] = {}
        self._lease: Lease | None = None

    def accept(self, context: WorkerContext, address: str) -> None:
        """Accept one RCPT.  Raises RefusedError; then no entry was added."""
        try:
            accounts = context.users.expand(address)
        except (UnknownUserError, ForeignDomainError, UsersLostError):
            # RFC 5321 section 4.5.1: a server has a postmaster under its own name.
            if not is_postmaster(address, context.config.hostname):
                raise
            accounts = context.users.expand("postmaster")
        entries = self.entries
        if len(entries) + len(accounts) > limits.FREE_RECIPIENTS:
            self._make_room(context.budget, len(accounts))
        if len(accounts) == 1 and len(entries) < limits.MAX_RECIPIENTS:
            # The usual case: one mailbox, without a quota.
            account = accounts[0]
            if context.policies.quota(account) is None:
                mailbox = account.id
                context.layer.check_mailbox(mailbox)
                if mailbox not in entries:
                    entries[mailbox] = _new(Recipient, (mailbox, address))
                return
        quotas = check(context, accounts, self.size)
        if len(entries) + len(accounts) > limits.MAX_RECIPIENTS:
            raise TooManyMailboxesError(address)
        for account in accounts:
            entries.setdefault(account.id, Recipient(account.id, address))
        if quotas:
            self.quotas |= quotas

    def _make_room(self, budget: Budget, count: int) -> None:
        """Charge the memory budget for many recipients.  Raises NoSpaceError."""
        if self._lease is None:
            self._lease = Lease(budget)
        if not self._lease.take(count * limits.RECIPIENT_MEMORY):
            raise NoSpaceError("no memory for more recipients")

    def check_room(self, context: WorkerContext, octets: int) -> None:
        """Check quotas once the size is known.  Raises OverQuotaError if no recipient has room for
        it."""
        if len(self.quotas) == len(self.entries) and self.quotas:
            _check_room(context, self.quotas, octets)


def check(context: WorkerContext, accounts: tuple[Account, ...], size: int) -> dict[int, Quota]:
    """The quotas of those accounts that have one.  Raises the worst RefusedError of all."""
    check_mailbox, quota_of = context.layer.check_mailbox, context.policies.quota
    worst: RefusedError | None = None
    quotas: dict[int, Quota] = {}
    for account in accounts:
        try:
            check_mailbox(account.id)
            quota = quota_of(account)
            if quota is not None:
                quotas[account.id] = quota
                quota.check(context.layer.usage(account.id), size)
        except RefusedError as error:
            if worst is None or error.smtp.code > worst.smtp.code:
                worst = error
    if worst is not None:
        raise worst
    return quotas


def _check_room(context: WorkerContext, quotas: Mapping[int, Quota], octets: int) -> None:
    refused: list[OverQuotaError] = []
    for mailbox, quota in quotas.items():
        try:
            quota.check(context.layer.usage(mailbox), octets)
        except OverQuotaError as error:
            refused.append(error)
        else:
            return
    raise max(refused, key=lambda error: error.smtp.code)
