"""A renamed account keeps its mailbox, password and policy; aliases follow; domains are counted."""

import pytest

from metad.errors import DataError, ForeignDomainError, NoSuchUserError, UnknownUserError
from metad.users.account import Policy


def test_mailbox_password_and_policy_stay(users):
    ann = users.add("ann@example.org", b"secret")
    users.set_policy("ann@example.org", Policy(quota=4096))
    renamed = users.rename("Ann@example.org", "Anna@Example.org")
    assert (renamed.id, renamed.address, renamed.policy.quota) == (ann.id, "anna@example.org", 4096)
    assert users.verify("anna@example.org", b"secret") == renamed
    assert users.verify("ann@example.org", b"secret") is None
    assert users.by_id(ann.id) == renamed
    with pytest.raises(UnknownUserError):
        users.expand("ann@example.org")


def test_aliases_follow_with_their_tags(users):
    ann = users.add("ann@example.org")
    users.set_alias("info@example.org", ["ann@example.org", "ann+info@example.org"])
    users.set_alias("all@example.org", ["info@example.org"])
    users.rename("ann@example.org", "anna@example.net")
    assert users.alias("info@example.org").members == ("anna@example.net", "anna+info@example.net")
    assert [one.id for one in users.expand("all@example.org")] == [ann.id]
    assert users.named_by("anna@example.net") == ["info@example.org"]
    assert users.named_by("ann@example.org") == []


def test_the_last_address_of_a_domain_takes_the_domain_with_it(users):
    users.add("ann@example.org")
    users.rename("ann@example.org", "ann@example.net")
    with pytest.raises(ForeignDomainError):
        users.expand("ann@example.org")
    assert users.add("bob@example.org").address == "bob@example.org"


def test_an_imported_hash_is_counted_once(users):
    with users.transaction(write=True) as txn:
        users.insert(txn, "ann@example.org", {"hash": "{PLAIN}secret", "password_version": 1})
    users.rename("ann@example.org", "anna@example.org")
    assert not users.every_login_has_keys()
    users.remove("anna@example.org")
    assert users.every_login_has_keys()


@pytest.mark.parametrize(
    "new", ["bob@example.org", "info@example.org", "no address", "ann@example.org"]
)
def test_a_used_or_bad_address_changes_nothing(users, new):
    ann = users.add("ann@example.org", b"secret")
    users.add("bob@example.org")
    users.set_alias("info@example.org", ["bob@example.org"])
    with pytest.raises(DataError):
        users.rename("ann@example.org", new)
    assert users.account("ann@example.org") == ann


def test_unknown_users_and_postmaster_are_refused(users):
    with pytest.raises(NoSuchUserError):
        users.rename("ann@example.org", "anna@example.org")
    with pytest.raises(DataError, match="cannot be renamed"):
        users.rename("postmaster", "ann@example.org")
