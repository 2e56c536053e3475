"""Quota, expiry and login delay: whose, and what they lead to."""

import pytest

from metad import limits
from metad.config.parse import parse
from metad.errors import DataError, MailboxFullError, OverQuotaError
from metad.layers.base import Usage
from metad.users.account import Account, Policy
from metad.users.last_logins import LastLogins
from metad.users.policy import Policies, Quota

EVERYTHING = """
[users]
expiry = "90d"
[quota]
size = "10MiB"
messages = 100
full = "refuse"
[pop3]
login_delay = 5
[[domain]]
name = "big.org"
quota = "1GiB"
expiry = 0
[[domain]]
name = "slow.org"
login_delay = 60
"""


def policies(tmp_path, text=EVERYTHING):
    return Policies(parse(text, None, tmp_path, {}))


def account(address, **own):
    return Account(5, address, 0, 0, Policy(**own))


def test_without_any_setting_there_is_no_bound(tmp_path):
    found = policies(tmp_path, "")
    ann = Account(5, "ann@example.org")
    assert found.quota(ann) is None
    assert found.of(ann) == Policy(0, 0, 0, 0)
    assert (found.expiry(ann), found.login_delay(ann)) == (0, 0)
    assert found.least_expiry(0) == (0, False)
    assert found.most_login_delay(0) == (0, False)


def test_the_account_goes_before_its_domain_and_that_before_everybody(tmp_path):
    found = policies(tmp_path)
    day = 86_400
    assert found.of(account("a@x.org")) == Policy(10 << 20, 100, 90 * day, 5)
    assert found.of(account("a@big.org")) == Policy(1 << 30, 100, 0, 5)
    assert found.of(account("a@slow.org")) == Policy(10 << 20, 100, 90 * day, 60)
    own = account("a@big.org", quota=0, messages=7, expiry=day)
    assert found.of(own) == Policy(0, 7, day, 5)
    assert found.quota(own) == Quota(0, 7, True)


def test_a_quota_of_ones_own_holds_without_any_default(tmp_path):
    found = policies(tmp_path, "")
    assert found.quota(account("a@x.org", quota=10)) == Quota(10, 0, False)
    assert found.quota(account("a@x.org", quota=0)) is None


def test_the_postmaster_that_nobody_reads_keeps_mail_for_ninety_days(tmp_path):
    postmaster = Account(1, "postmaster")
    assert policies(tmp_path, "").expiry(postmaster) == limits.POSTMASTER_EXPIRY
    assert policies(tmp_path, "").expiry(postmaster._replace(policy=Policy(expiry=0))) == 0


def test_what_is_said_before_a_login_is_safe_for_everybody(tmp_path):
    found = policies(tmp_path)
    assert found.least_expiry(0) == (90 * 86_400, True)
    assert found.least_expiry(60) == (60, True)
    assert found.most_login_delay(0) == (60, True)
    assert found.most_login_delay(600) == (600, True)


@pytest.mark.parametrize(
    ("octets", "messages", "size", "error"),
    [(0, 0, 0, None), (90, 0, 10, None), (91, 0, 10, OverQuotaError), (100, 0, 0, None),
     (101, 0, 0, OverQuotaError), (0, 0, 100, None), (0, 0, 101, MailboxFullError),
     (0, 9, 1, None), (0, 10, 1, OverQuotaError)],
)  # fmt: skip
def test_a_quota_is_usage_and_size(octets, messages, size, error):
    quota = Quota(100, 10, False)
    if error is None:
        quota.check(Usage(octets, messages), size)
        return
    with pytest.raises(OverQuotaError) as caught:
        quota.check(Usage(octets, messages), size)
    assert type(caught.value) is error


def test_what_a_sender_hears_is_a_matter_of_configuration():
    with pytest.raises(OverQuotaError) as caught:
        Quota(100, 0, False).check(Usage(100, 1), 1)
    assert caught.value.smtp.wire == b"452 4.2.2 Mailbox full\r\n"
    with pytest.raises(OverQuotaError) as caught:
        Quota(100, 0, True).check(Usage(100, 1), 1)
    assert caught.value.smtp.wire == b"552 5.2.2 Mailbox full\r\n"
    # Larger than the whole quota: no second try will help.
    with pytest.raises(OverQuotaError) as caught:
        Quota(100, 0, False).check(Usage(0, 0), 101)
    assert caught.value.smtp.code == 552


# --- In the database ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(0, 0, 0, 0), Policy(1 << 60, 4_000_000_000, 86_400, 60), Policy(quota=5),
     Policy(login_delay=1)],
)  # fmt: skip
def test_a_policy_comes_back_with_every_way_to_its_account(users, policy):
    users.add("ann@example.org")
    ann = users.set_policy("ann@example.org", policy)
    assert ann.policy == policy
    assert users.account("ann@example.org") == ann
    assert users.resolve("ann+x@example.org") == ann
    assert users.by_id(ann.id) == ann
    assert list(users.accounts()) == [ann]


@pytest.mark.parametrize("policy", [Policy(quota=-1), Policy(quota=1 << 64), Policy(expiry=1 << 32),
                                    Policy(messages=(1 << 32) - 1)])  # fmt: skip
def test_a_policy_that_cannot_be_kept_is_refused(users, policy):
    ann = users.add("ann@example.org")
    with pytest.raises(DataError, match="must be from 0 to"):
        users.set_policy("ann@example.org", policy)
    assert users.account("ann@example.org") == ann


def test_setting_a_policy_does_not_end_logins_nor_anything_else(users):
    ann = users.add("ann@example.org", b"secret")
    changed = users.set_policy("ann@example.org", Policy(quota=5))
    assert changed.password_version == ann.password_version
    assert users.set_policy("ann@example.org", Policy()) == ann
    assert users.verify("ann@example.org", b"secret") == ann


def test_the_extremes_are_those_of_all_accounts(users):
    for name, policy in (("a", Policy(expiry=100)), ("b", Policy(expiry=50, login_delay=7)),
                         ("c", Policy(expiry=0, login_delay=3))):  # fmt: skip
        users.add(f"{name}@x.org")
        users.set_policy(f"{name}@x.org", policy)
    assert users.extremes() == (50, 7)


# --- Last logins ----------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return [1_000_000.0]


@pytest.fixture
def logins(tmp_path, clock):
    made = LastLogins(tmp_path, clock=lambda: clock[0])
    yield made
    made.close()


def test_a_login_is_known_at_once_here_and_after_a_flush_elsewhere(logins, tmp_path):
    other = LastLogins(tmp_path, readonly=True)
    logins.note(7)
    assert (logins.last(7), other.last(7), logins.pending) == (1_000_000, None, True)
    logins.flush()
    assert (other.last(7), other.last(6), other.last(8), logins.pending) == (
        1_000_000, None, None, False)  # fmt: skip
    logins.note(8, at_once=True)
    assert other.last(8) == 1_000_000
    other.close()


def test_a_login_is_too_soon_within_the_delay(logins, clock):
    assert not logins.too_soon(7, 60)
    logins.note(7)
    assert logins.too_soon(7, 60)
    clock[0] += 59.5
    assert logins.too_soon(7, 60)
    clock[0] += 1
    assert not logins.too_soon(7, 60)


def test_a_login_in_the_future_does_not_lock_out(logins, clock):
    logins.note(7)
    clock[0] -= 3600
    assert not logins.too_soon(7, 60)


def test_without_the_file_nobody_has_logged_in(tmp_path):
    logins = LastLogins(tmp_path, readonly=True)
    assert logins.last(7) is None
    logins.close()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_is_as_if_nobody_had(tmp_path):
    (tmp_path / "logins").write_bytes(b"\0" * 60)
    logins = LastLogins(tmp_path)
    assert logins.last(7) is None
    logins.close()


def test_a_full_disk_costs_only_the_fact(logins, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    logins.note(7, at_once=True)
    assert logins.last(7) is None
