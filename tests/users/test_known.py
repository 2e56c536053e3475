"""Results of RCPT are cached for one transaction of the database, and no longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metad.errors import DisabledUserError, ForeignDomainError, UnknownUserError
from metad.users import account as account_module
from metad.users import lookup
from metad.users.account import Policy, pack_entry, unpack_entry


def elsewhere(path, *changes):
    """Change `users` in another process, which must open the database itself."""
    code = (
        "import sys; from metad.users.database import UserDatabase;"
        "from metad.users.account import Policy; users = UserDatabase(sys.argv[1]);"
    )
    subprocess.run([sys.executable, "-c", code + ";".join(changes), str(path)], check=True)


def test_an_address_is_remembered(users):
    made = users.add("ann@example.org")
    first = users.expand("Ann@Example.org")
    assert first == (made,)
    assert users.expand("Ann@Example.org") is first


ANN = "'ann@example.org'"
REMOVE = f"users.remove({ANN}, force=True)"
CHANGES = [
    ([f"users.set_disabled({ANN}, True)"], DisabledUserError),
    ([REMOVE], ForeignDomainError),
    (["users.add('x@example.org')", REMOVE], UnknownUserError),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "error"), CHANGES)
def test_a_change_by_another_process_holds_at_once(users, path, changes, error):
    users.add("ann@example.org")
    users.expand("ann@example.org")
    elsewhere(path, *changes)
    with pytest.raises(error):
        users.expand("ann@example.org")


@pytest.mark.slow
def test_a_new_number_policy_and_alias_hold_at_once(users, path):
    old = users.add("ann@example.org")
    users.set_alias("info@example.org", ["ann@example.org"])
    for address in ("ann@example.org", "info@example.org"):
        assert users.expand(address) == (old,)
    elsewhere(path, f"users.set_policy({ANN}, Policy(quota=7))")
    for address in ("ann@example.org", "info@example.org"):
        assert users.expand(address) == (old._replace(policy=Policy(quota=7)),)

    added = [f"users.add({name})" for name in (ANN, "'bob@example.org'")]
    members = f"users.set_alias('info@example.org', [{ANN}, 'bob@example.org'])"
    elsewhere(path, REMOVE, *added, members)
    (new,) = users.expand("ann@example.org")
    assert new.id != old.id
    assert [one.address for one in users.expand("info@example.org")] == [
        "ann@example.org", "bob@example.org",
    ]  # fmt: skip


def test_what_is_remembered_is_bounded_and_refusals_are_not_kept(users):
    for _ in users.add_many((f"u{number}@example.org", None) for number in range(lookup.KNOWN + 9)):
        pass
    for number in range(lookup.KNOWN + 9):
        assert users.expand(f"u{number}@example.org")[0].address == f"u{number}@example.org"
    assert 0 < len(users._known.accounts) <= lookup.KNOWN
    before = len(users._known.accounts)
    for number in range(9):
        with pytest.raises(UnknownUserError):
            users.expand(f"nobody{number}@example.org")
    assert len(users._known.accounts) == before


def test_no_read_transaction_outlives_a_look_up(users):
    """Otherwise old pages would never be reused, and the file would grow."""
    users.add("ann@example.org")
    users.expand("ann@example.org")
    with pytest.raises(UnknownUserError):
        users.expand("nobody@example.org")
    held = [line.split() for line in users._env.readers().splitlines()[1:]]
    assert all(fields[-1] == "-" for fields in held)


def test_policies_that_are_unpacked_once_are_the_same(monkeypatch):
    monkeypatch.setattr(account_module, "_POLICIES", 3)
    account_module._policies.clear()
    for _ in range(2):
        for number in range(9):
            policy = Policy(quota=number, expiry=None if number % 2 else 60)
            made = account_module.Account(number + 2, "ann@x.org", 2, 7, policy)
            assert unpack_entry(b"ann@x.org", pack_entry(made)) == made
            assert len(account_module._policies) <= 3
