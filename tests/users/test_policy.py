"""Quota, expiry and login delay: whose values apply, and their effects."""

import pytest

from metad import limits
from metad.config.parse import parse
from metad.errors import ConfigError, DataError, MailboxFullError, OverQuotaError
from metad.filters.base import Preferences
from metad.layers.base import Usage
from metad.users.account import MAX_SCORE, Account, Policy, pack_entry, unpack_account
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


def test_an_unread_postmaster_keeps_mail_for_ninety_days(tmp_path):
    postmaster = Account(1, "postmaster")
    assert policies(tmp_path, "").expiry(postmaster) == limits.POSTMASTER_EXPIRY
    assert policies(tmp_path, "").expiry(postmaster._replace(policy=Policy(expiry=0))) == 0


def test_replies_before_a_login_are_safe_for_everyone(tmp_path):
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


def test_without_the_file_no_user_has_logged_in(tmp_path):
    logins = LastLogins(tmp_path, readonly=True)
    assert logins.last(7) is None
    logins.close()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_is_as_if_no_user_had(tmp_path):
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


# --- What filters are to do -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        Policy(spam_filter=0),
        Policy(quota=5, spam_mark=0),
        Policy(spam_mark=650, spam_refuse=MAX_SCORE),
        Policy(1, 2, 3, 4, 1, 5, 6),
    ],
)
def test_scores_are_kept_in_an_entry(policy: Policy) -> None:
    account = Account(7, "a@example.org", 0, 3, policy)
    assert unpack_account("a@example.org", pack_entry(account)) == account


def test_an_entry_without_scores_is_as_it_was_before_there_were_any() -> None:
    """So an older metad reads it, and its entries are read here."""
    account = Account(7, "a@example.org", 0, 3, Policy(quota=5))
    packed = pack_entry(account)
    assert len(packed) == 20 + 20
    assert unpack_account("a@example.org", packed) == account
    with_scores = pack_entry(account._replace(policy=Policy(quota=5, spam_mark=100)))
    assert with_scores[:40] == packed


def test_preferences_are_the_accounts_then_the_domains() -> None:
    text = (
        '[[domain]]\nname = "strict.example"\nspam_refuse = 5.5\n'
        '[[domain]]\nname = "open.example"\nspam_filter = false\n'
    )
    policies = Policies(parse(text, None, None, {"METAD_DATA": "/nowhere"}))

    def of(*accounts: Account) -> Preferences:
        return policies.preferences(accounts)

    plain = Account(1001, "a@example.org")
    strict = Account(1002, "b@strict.example")
    own = Account(1003, "c@strict.example", policy=Policy(spam_refuse=MAX_SCORE, spam_mark=700))
    opened = Account(1004, "d@open.example")
    back = Account(1005, "e@open.example", policy=Policy(spam_filter=1))
    assert of(plain) == Preferences()
    assert of(strict) == Preferences(refuse=5.5)
    assert of(own) == Preferences(mark=7.0, refuse=1000.0)
    assert of(opened) == Preferences(off=True)
    assert of(back) == Preferences()
    assert of(strict, strict._replace(id=9)) == Preferences(refuse=5.5)
    assert of(strict, opened) == Preferences()  # an alias for both: the defaults


@pytest.mark.parametrize("value", ["true", '"5"', "-1", "1001", "nan"])
def test_a_score_that_is_none_is_refused(value: str) -> None:
    text = f'[[domain]]\nname = "a.example"\nspam_mark = {value}\n'
    with pytest.raises(ConfigError, match="spam_mark: must be a number from 0 to 1,000"):
        parse(text, None, None, {"METAD_DATA": "/nowhere"})
