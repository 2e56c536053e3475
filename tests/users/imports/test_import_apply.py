"""Imports: repeatable; passwords changed only if the source changed; sync removes."""

import pytest

from metad.errors import DataError, NoSpaceError
from metad.users import passwords
from metad.users.database import UserDatabase
from metad.users.imports import import_entries
from metad.users.imports.import_apply import Transfer
from metad.users.imports.import_entries import NO_SECRET, BadLine, ImportEntry, Secret

STRONG = "$6$saltsalt$" + "a" * 86
OTHER = "$6$saltsalt$" + "b" * 86
WEAK = "$1$saltsalt$" + "a" * 22


def run(users, *found, **how):
    made = Transfer(users, **how)
    made.run(found)
    return made


def counts(done):
    outcome = done.outcome
    return outcome.added, outcome.changed, outcome.unchanged, len(outcome.bad)


def one(address="ann@x.org", secret=None, **fields):
    return ImportEntry("f:1", address, secret, fields)


def alias(address, *members):
    return ImportEntry("f:9", address, members=members)


def test_the_same_file_again_changes_nothing(users):
    found = [
        one("ann@x.org", Secret(hash=STRONG), quota=5), one("bob@x.org", Secret(plain=b"secret")),
        one("cid@x.org", Secret(scram=passwords.make(b"x"))), one("dan@x.org", NO_SECRET),
        alias("info@x.org", "ann@x.org", "bob@x.org"), alias("@x.org", "info@x.org"),
    ]  # fmt: skip
    assert counts(run(users, *found)) == (6, 0, 0, 0)
    before = [*users.accounts(), *users.aliases()]
    assert counts(run(users, *found)) == (0, 0, 6, 0)
    assert [*users.accounts(), *users.aliases()] == before
    assert users.verify("bob@x.org", b"secret") is not None


def test_what_a_file_does_not_speak_of_stays(users):
    run(users, one("ann@x.org", Secret(hash=STRONG), quota=5, disabled=True))
    assert counts(run(users, one("ann@x.org", messages=7))) == (0, 1, 0, 0)
    ann = users.account("ann@x.org")
    assert (ann.policy.quota, ann.policy.messages, ann.disabled) == (5, 7, True)
    assert users.record("ann@x.org")["hash"] == STRONG


@pytest.mark.parametrize(
    "secret",
    [Secret(hash=STRONG), Secret(plain=b"first"),
     Secret(scram=passwords.derive(b"first", b"salt", 10))],
)  # fmt: skip
def test_a_password_changed_here_stays_until_the_file_changes(users, secret):
    run(users, one(secret=secret))
    users.set_password("ann@x.org", b"mine")
    assert counts(run(users, one(secret=secret))) == (0, 0, 1, 0)
    assert users.verify("ann@x.org", b"mine") is not None
    before = users.account("ann@x.org").password_version
    assert counts(run(users, one(secret=Secret(hash=OTHER)))) == (0, 1, 0, 0)
    assert users.verify("ann@x.org", b"mine") is None
    assert users.record("ann@x.org")["hash"] == OTHER
    assert users.account("ann@x.org").password_version == before + 1


def test_keys_that_a_login_added_stay_with_an_unchanged_hash(users, monkeypatch):
    monkeypatch.setattr("metad.users.hashes.check", lambda password, _: password == b"secret")
    run(users, one(secret=Secret(hash=STRONG)))
    assert users.verify("ann@x.org", b"secret").has_password
    assert counts(run(users, one(secret=Secret(hash=STRONG)))) == (0, 0, 1, 0)
    assert users.account("ann@x.org").has_keys


def test_a_stronger_password_is_never_replaced_by_a_weaker_hash(users):
    users.add("ann@x.org", b"secret")
    run(users, one("bob@x.org", Secret(hash=STRONG)))
    done = run(users, one("ann@x.org", Secret(hash=WEAK)), one("bob@x.org", Secret(hash=WEAK)))
    assert counts(done) == (0, 0, 2, 0)
    assert done.outcome.weak == 2
    assert users.verify("ann@x.org", b"secret") is not None
    assert users.record("bob@x.org")["hash"] == STRONG
    run(users, one("cid@x.org", Secret(hash=WEAK)))
    assert counts(run(users, one("cid@x.org", Secret(hash=STRONG)))) == (0, 1, 0, 0)


def test_a_file_without_a_password_takes_none_away(users):
    users.add("ann@x.org", b"secret")
    assert counts(run(users, one(secret=NO_SECRET))) == (0, 0, 1, 0)
    assert users.verify("ann@x.org", b"secret") is not None


def test_bad_entries_are_named_and_the_good_ones_taken(users):
    done = run(
        users, one("ann@x.org"), one("no address"), BadLine("f:3", "bad"), one("ANN@x.org"),
        one("bob@x.org", quota=1 << 65), alias("info@x.org", "nobody@x.org"),
        alias("ok@x.org", "ann@x.org"), alias("ok@x.org", "ann@x.org"),
        alias("ann@x.org", "ok@x.org"),
    )  # fmt: skip
    assert counts(done) == (2, 0, 0, 7)
    reasons = " ".join(bad.reason for bad in done.outcome.bad)
    for word in ("no address", "already named on an earlier line", "quota must be", "no such user",
                 "has this address already"):  # fmt: skip
        assert word in reasons
    assert [account.address for account in users.accounts()] == ["ann@x.org"]


def test_an_alias_may_name_an_account_of_a_later_line(users):
    assert counts(run(users, alias("info@x.org", "ann@x.org"), one("ann@x.org"))) == (2, 0, 0, 0)


def test_postfix_says_that_a_catch_all_does_not_catch_a_user(users):
    run(users, one("ann@x.org"))
    assert counts(run(users, alias("ann@x.org", "ann@x.org"))) == (0, 0, 1, 0)


def test_a_loop_in_a_file_is_a_bad_line(users):
    run(users, one("ann@x.org"), alias("a@x.org", "ann@x.org"))
    done = run(users, alias("b@x.org", "a@x.org"), alias("a@x.org", "b@x.org"))
    assert counts(done) == (1, 0, 0, 1)


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_batches_make_no_difference(users, monkeypatch, batch):
    monkeypatch.setattr(UserDatabase, "imported_batch", batch)
    seen = []
    done = run(
        users, *(one(f"u{n}@x.org") for n in range(5)), one("bad"), alias("i@x.org", "u1@x.org"),
        progress=lambda outcome: seen.append(outcome.lines),
    )  # fmt: skip
    assert counts(done) == (6, 0, 0, 1)
    assert seen[-1] == 7
    assert seen == sorted(seen)


# --- Dry run --------------------------------------------------------------------------------------


def test_a_dry_run_says_the_same_and_does_nothing(users):
    run(users, one("ann@x.org", quota=5), alias("old@x.org", "ann@x.org"))
    found = [
        one("ann@x.org", Secret(hash=STRONG), quota=6), one("bob@x.org", Secret(plain=b"secret")),
        alias("info@x.org", "bob@x.org", "ann@x.org"), alias("bad@x.org", "nobody@x.org"),
        alias("old@x.org", "ann@x.org"), one("not an address"), alias("loop@x.org", "loop@x.org"),
    ]  # fmt: skip
    before = [*users.accounts(), *users.aliases()]
    dry = run(users, *found, dry_run=True)
    assert [*users.accounts(), *users.aliases()] == before
    real = run(users, *found)
    assert counts(dry) == counts(real) == (2, 1, 1, 3)


def test_a_dry_sync_removes_no_user(users):
    users.add("ann@x.org")
    users.add("bob@x.org")
    done = run(users, one("ann@x.org"), dry_run=True)
    done.sync(lambda _: True, accounts=True, aliases=True)
    assert done.outcome.removed == 1
    assert users.account("bob@x.org") is not None


# --- Sync -----------------------------------------------------------------------------------------


def everything(address):
    return True


@pytest.fixture
def full(users):
    run(users, one("ann@x.org"), one("bob@x.org"), one("cid@y.org"),
        alias("info@x.org", "ann@x.org", "bob@x.org"), alias("i@y.org", "bob@x.org"))  # fmt: skip
    return users


def left(users):
    return [each.address for each in (*users.accounts(), *users.aliases())]


def test_sync_makes_the_database_equal_to_the_file(full):
    done = run(full, one("ann@x.org"), alias("info@x.org", "ann@x.org"))
    done.sync(everything, accounts=True, aliases=True)
    assert left(full) == ["ann@x.org", "info@x.org"]
    assert done.outcome.removed == 3
    assert full.alias("info@x.org").members == ("ann@x.org",)
    assert full.account("postmaster").id == 1


def test_sync_of_a_domain_leaves_the_others(full):
    done = run(full, one("ann@x.org"))
    done.sync(lambda a: a.endswith("@x.org"), accounts=True, aliases=True)
    assert left(full) == ["ann@x.org", "cid@y.org"]


def test_sync_of_what_a_format_does_not_speak_of_is_none(full):
    done = run(full, one("ann@x.org"), one("bob@x.org"))
    done.sync(everything, accounts=True, aliases=False)
    assert left(full) == ["ann@x.org", "bob@x.org", "i@y.org", "info@x.org"]
    done = run(full, alias("info@x.org", "ann@x.org"))
    done.sync(everything, accounts=False, aliases=True)
    assert left(full) == ["ann@x.org", "bob@x.org", "info@x.org"]


@pytest.mark.parametrize("found", [[], [one("ann@x.org"), BadLine("f:2", "bad")], [one("bad")]])
def test_a_broken_or_empty_file_removes_no_user(full, found):
    before = left(full)
    done = run(full, *found)
    with pytest.raises(DataError, match="nothing was removed"):
        done.sync(everything, accounts=True, aliases=True)
    assert left(full) == before


def test_a_removed_user_that_comes_again_has_a_new_number(full):
    old = full.account("bob@x.org").id
    done = run(full, one("ann@x.org"))
    done.sync(everything, accounts=True, aliases=True)
    run(full, one("bob@x.org"))
    assert full.account("bob@x.org").id > old
    assert old in [number for number, *_ in full.removed()]


# --- Disk full ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_in_the_middle_leaves_whole_accounts_and_can_be_gone_on_with(path, monkeypatch):
    monkeypatch.setattr("metad.users.lmdb_env.MAP_SIZE", 400 * 1024)
    monkeypatch.setattr(UserDatabase, "imported_batch", 100)
    found = [one(f"user{n}@x.org", Secret(hash=STRONG)) for n in range(3000)]
    with UserDatabase(path, create=True) as users:
        done = Transfer(users)
        with pytest.raises(NoSpaceError):
            done.run(found)
        here = list(users.accounts())
        assert len(here) == done.outcome.added >= 100
        assert all(users.record(each.address)["hash"] == STRONG for each in here)
    monkeypatch.setattr("metad.users.lmdb_env.MAP_SIZE", 64 << 20)
    with UserDatabase(path) as users:
        assert counts(run(users, *found)) == (3000 - len(here), 0, len(here), 0)
        assert len({each.id for each in users.accounts()}) == 3000


def test_the_exported_form_of_keys_is_the_imported_one(users):
    users.add("ann@x.org", b"secret")
    keys = passwords.unpacked(users.record("ann@x.org")["scram"])
    secret = import_entries.scram(import_entries.show_scram(keys))  # type: ignore[arg-type]
    run(users, one("bob@x.org", secret))
    assert users.verify("bob@x.org", b"secret") is not None
