"""The policy of an account: its own, otherwise its domain's, otherwise the default.

Rules of this file:

* Quota is checked at RCPT, by usage and the announced SIZE, and again after the data if every
  recipient has one.
* Mail is never deleted here: `expiry` is the age at which the collector deletes it.
"""

from __future__ import annotations

from typing import NamedTuple

from metad import limits
from metad.config.model import Config, DomainConfig
from metad.errors import MailboxFullError, OverQuotaError
from metad.filters.base import DEFAULT as FILTER_DEFAULT
from metad.filters.base import Preferences
from metad.store.usage import Usage
from metad.users.account import DEFAULT, POSTMASTER_ID, Account, Policy


class Quota(NamedTuple):
    """Octets and messages; 0: no limit.  `refuse`: permanently (552), not temporarily."""

    octets: int
    messages: int
    refuse: bool

    def check(self, usage: Usage, size: int) -> None:
        """Raise OverQuotaError if a message of `size` octets (0: unknown) has no room."""
        octets = self.octets
        if octets and size > octets:
            raise MailboxFullError
        over = octets and usage.octets + size > octets
        if over or (self.messages and usage.messages >= self.messages):
            raise MailboxFullError if self.refuse else OverQuotaError


class Policies:
    """The policies of a configuration, for any account."""

    def __init__(self, config: Config) -> None:
        defaults = Policy(
            config.quota.size, config.quota.messages, config.users.expiry, config.pop3.login_delay
        )
        self._default = defaults
        self._refuse = config.quota.full == "refuse"
        self._domains = {one.name: _over(_of_domain(one), defaults) for one in config.domain}
        policies = [defaults, *self._domains.values()]
        self._filtered = any(one[4:] != DEFAULT[4:] for one in policies)
        self._quotas = any(one.quota or one.messages for one in policies)
        self._least_expiry = min((one.expiry for one in policies if one.expiry), default=0)
        self._most_delay = max(one.login_delay or 0 for one in policies)

    def of(self, account: Account) -> Policy:
        """Every field is a number; 0 means no limit, never, no delay."""
        policy = self._default
        if self._domains:
            policy = self._domains.get(account.address.rpartition("@")[2], policy)
        if account.id == POSTMASTER_ID:
            policy = policy._replace(expiry=policy.expiry or limits.POSTMASTER_EXPIRY)
        return policy if account.policy == DEFAULT else _over(account.policy, policy)

    def quota(self, account: Account) -> Quota | None:
        """The quota of an account, None if it has none; most have none, so that case is fast."""
        if not self._quotas and account.policy is DEFAULT:
            return None
        policy = self.of(account)
        octets, messages = policy.quota or 0, policy.messages or 0
        return Quota(octets, messages, self._refuse) if octets or messages else None

    def preferences(self, accounts: tuple[Account, ...]) -> Preferences:
        """The filter preferences of an address that stands for these accounts.

        If the members of an alias differ, the defaults apply.
        """
        if not self._filtered and all(one.policy is DEFAULT for one in accounts):
            return FILTER_DEFAULT
        found = {_preferences(self.of(one)) for one in accounts}
        return found.pop() if len(found) == 1 else FILTER_DEFAULT

    def expiry(self, account: Account) -> int:
        """Seconds after which its mail is deleted; 0: never."""
        return self.of(account).expiry or 0

    def login_delay(self, account: Account) -> int:
        """The minimum number of seconds between two logins."""
        return self.of(account).login_delay or 0

    def least_expiry(self, own: int) -> tuple[int, bool]:
        """The smallest expiry of any user (0: none), and whether others may have a different one.

        `own`: the smallest that an account has set for itself (UserDatabase.extremes).
        """
        found = [one for one in (own, self._least_expiry) if one]
        return min(found, default=0), bool(own or self._domains)

    def most_login_delay(self, own: int) -> tuple[int, bool]:
        """The greatest login delay of any user, and whether others may have a smaller one."""
        return max(own, self._most_delay), bool(own or self._domains)


def _of_domain(one: DomainConfig) -> Policy:
    return Policy(
        one.quota,
        one.messages,
        one.expiry,
        one.login_delay,
        None if one.spam_filter is None else int(one.spam_filter),
        one.spam_mark,
        one.spam_refuse,
    )


def _preferences(policy: Policy) -> Preferences:
    mark, refuse = policy.spam_mark, policy.spam_refuse
    return Preferences(
        policy.spam_filter == 0,
        None if mark is None else mark / 100,
        None if refuse is None else refuse / 100,
    )


def _over(policy: Policy, defaults: Policy) -> Policy:
    """`policy`, with `defaults` for unset fields."""
    pairs = zip(policy, defaults, strict=True)
    return Policy(*(default if one is None else one for one, default in pairs))
