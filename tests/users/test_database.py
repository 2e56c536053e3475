"""The users database: whose mail an address receives, permanent ids, passwords, and bad
databases."""

import multiprocessing
import os
import time

import lmdb
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.errors import (
    DataError,
    DisabledUserError,
    ForeignDomainError,
    NoSpaceError,
    NoSuchUserError,
    OsError,
    UnavailableError,
    UnknownUserError,
)
from metad.users import lmdb_env, lookup, passwords
from metad.users.account import MAX_ID, POSTMASTER_ID, login_name
from metad.users.database import UserDatabase


@pytest.fixture(autouse=True)
def quick_hashing(monkeypatch):
    make = passwords.make
    monkeypatch.setattr(passwords, "make", lambda password, iterations=0: make(password, 10))


def raw_put(path, table, key, value):
    """Write behind the database's back, as a newer metad or a bad disk would."""
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as env:
        opened = env.open_db(table)
        with env.begin(write=True) as txn:
            txn.put(key, value, db=opened)


def change_record(path, number, **changes):
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as env:
        accounts = env.open_db(b"accounts")
        with env.begin(write=True) as txn:
            key = number.to_bytes(8, "big")
            record = msgpack.unpackb(txn.get(key, db=accounts))
            txn.put(key, msgpack.packb(record | changes), db=accounts)


def record_of(path, number, table=b"accounts"):
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as env:
        opened = env.open_db(table)
        with env.begin() as txn:
            return msgpack.unpackb(txn.get(number.to_bytes(8, "big"), db=opened))


# --- Whose mail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["ann@example.org", "Ann@EXAMPLE.org", '"ann"@example.org', "ann+lists@example.org",
     "ANN+a+b@Example.Org", "ann+@example.org"],
)  # fmt: skip
def test_an_address_is_found_folded_and_by_the_base_of_its_tag(users, address):
    ann = users.add("Ann@Example.org")
    assert users.resolve(address) == ann
    assert ann.address == "ann@example.org"


def test_an_exact_address_goes_before_the_base_of_its_tag(users):
    users.add("ann@example.org")
    tagged = users.add("ann+x@example.org")
    assert users.resolve("ann+x@example.org") == tagged


@pytest.mark.parametrize("address", ["bob@example.org", "bob+ann@example.org", "+ann@example.org"])
def test_an_unknown_user_of_a_served_domain_is_unknown(users, address):
    users.add("ann@example.org")
    with pytest.raises(UnknownUserError):
        users.resolve(address)


@pytest.mark.parametrize("address", ["ann@example.com", "ann@mail.example.org", "postmaster@x.org"])
def test_a_domain_without_an_account_is_foreign(users, address):
    users.add("ann@example.org")
    with pytest.raises(ForeignDomainError):
        users.resolve(address)


@pytest.mark.parametrize("address", ["", "ann", "@example.org", "a\0@example.org",
                                     "\udce4@example.org",
                                     "x" * 600 + "@example.org", "a b@example.org"])  # fmt: skip
def test_what_is_no_address_is_an_unknown_user(users, address):
    users.add("ann@example.org")
    with pytest.raises(UnknownUserError):
        users.resolve(address)


@pytest.mark.parametrize("address", ["postmaster", "PostMaster", "Postmaster@Example.org",
                                     "postmaster+x@example.org"])  # fmt: skip
def test_postmaster_is_built_in_for_every_domain_served(users, address):
    users.add("ann@example.org")
    assert users.resolve(address).id == POSTMASTER_ID


def test_an_account_named_postmaster_goes_before_the_built_in_one(users):
    own = users.add("postmaster@example.org")
    assert users.resolve("postmaster@example.org") == own
    assert users.resolve("postmaster").id == POSTMASTER_ID


@pytest.mark.parametrize("address", ["ann@example.org", "ann+x@example.org"])
def test_a_disabled_user_is_refused_and_falls_through_to_nothing(users, address):
    users.add("ann@example.org")
    assert users.set_disabled("ann@example.org", True).disabled
    with pytest.raises(DisabledUserError):
        users.resolve(address)
    users.set_disabled("ann@example.org", False)
    assert not users.resolve(address).disabled


def test_a_disabled_tagged_address_does_not_fall_through_to_its_base(users):
    users.add("ann@example.org")
    users.add("ann+x@example.org")
    users.set_disabled("ann+x@example.org", True)
    with pytest.raises(DisabledUserError):
        users.resolve("ann+x@example.org")


def test_an_entry_of_an_unknown_kind_is_no_user(users, path):
    users.add("ann@example.org")
    users.close()
    raw_put(path, b"addresses", b"list@example.org", b"\x07" + bytes(30))
    with UserDatabase(path) as again:
        with pytest.raises(UnknownUserError):
            again.resolve("list@example.org")
        assert [one.address for one in again.accounts()] == ["ann@example.org"]


# --- Ids ------------------------------------------------------------------------------------------


def test_ids_are_never_given_twice(users, path):
    first = users.add("ann@example.org")
    assert first.id > POSTMASTER_ID
    users.remove("ann@example.org")
    users.close()
    with UserDatabase(path, create=True) as again:
        assert again.add("ann@example.org").id > first.id


def test_removal_leaves_a_dated_tombstone_without_the_keys(users, path):
    before = int(time.time())
    ann = users.add("ann@example.org", b"secret")
    assert users.remove("ANN@example.org") == ann
    ((number, address, when),) = users.removed()
    assert (number, address) == (ann.id, "ann@example.org")
    assert before <= when <= time.time()
    users.close()
    assert "scram" not in record_of(path, ann.id, b"removed")


def test_a_removed_user_is_gone_and_so_is_its_domain_with_the_last(users):
    users.add("ann@example.org")
    users.add("bob@example.org")
    users.remove("ann@example.org")
    with pytest.raises(UnknownUserError):
        users.resolve("ann@example.org")
    users.remove("bob@example.org")
    with pytest.raises(ForeignDomainError):
        users.resolve("bob@example.org")
    assert users.account("bob@example.org") is None
    assert list(users.accounts()) == []


@pytest.mark.parametrize("address", ["bob@example.org", "nonsense", "ann+x@example.org"])
def test_who_is_not_there_cannot_be_changed(users, address):
    users.add("ann@example.org")
    for change in (users.remove, lambda who: users.set_password(who, b"x")):
        with pytest.raises(NoSuchUserError):
            change(address)


def test_postmaster_cannot_be_removed(users):
    with pytest.raises(DataError, match="built in"):
        users.remove("postmaster")


def test_an_account_is_found_by_its_id(users):
    ann = users.add("ann@example.org", b"x")
    assert users.by_id(ann.id) == ann
    assert users.by_id(ann.id + 1) is None


def test_no_id_is_given_that_the_store_cannot_count(users, path):
    users.close()
    raw_put(path, b"meta", b"next", MAX_ID.to_bytes(8, "big"))
    with UserDatabase(path) as again:
        assert again.add("ann@example.org").id == MAX_ID
        with pytest.raises(DataError, match="have been assigned"):
            again.add("bob@example.org")


# --- Adding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "ann", "a b@example.org", "ann@", "@example.org",
                                     "a\r\n@example.org", "a\0@b", "x" * 300 + "@example.org",
                                     '"' + "\\\\" * 192 + '"@' + "a." * 120 + "b"])  # fmt: skip
def test_what_is_no_address_is_not_added(users, address):
    with pytest.raises(DataError) as caught:
        users.add(address)
    assert "\n" not in str(caught.value)
    assert list(users.accounts()) == []


def test_an_address_there_already_is_not_added_again(users):
    ann = users.add("ann@example.org")
    with pytest.raises(DataError, match="already"):
        users.add("ANN@example.org")
    assert list(users.accounts()) == [ann]


def test_a_bad_password_adds_no_user(users):
    with pytest.raises(DataError, match="empty"):
        users.add("ann@example.org", b"")
    assert list(users.accounts()) == []


def test_many_are_added_in_batches_and_a_bad_one_hinders_no_other(users):
    entries = [
        ("a@x.org", None),
        ("bad", None),
        ("A@x.org", None),
        ("b@x.org", b"pw"),
        ("c@x.org", b""),
    ]
    results = list(users.add_many(entries, batch=2))
    assert [getattr(one, "address", type(one)) for one in results] == [
        "a@x.org", DataError, DataError, "b@x.org", DataError,
    ]  # fmt: skip
    assert [one.address for one in users.accounts()] == ["a@x.org", "b@x.org"]


def test_accounts_are_listed_by_address_across_pieces(users, monkeypatch):
    monkeypatch.setattr(lookup, "BATCH", 7)
    names = [f"u{number:03}@example.org" for number in range(50)]
    list(users.add_many((name, None) for name in reversed(names)))
    assert [one.address for one in users.accounts()] == names
    assert [one.address for one in users.accounts(builtin=True)] == ["postmaster", *names]


def test_listing_goes_on_while_accounts_are_removed(users, monkeypatch):
    monkeypatch.setattr(lookup, "BATCH", 2)
    list(users.add_many((f"u{number}@x.org", None) for number in range(6)))
    listing = users.accounts()
    first = next(listing)
    users.remove("u3@x.org")
    assert [first.address, *(one.address for one in listing)] == [
        "u0@x.org", "u1@x.org", "u2@x.org", "u4@x.org", "u5@x.org",
    ]  # fmt: skip


# --- Passwords ------------------------------------------------------------------------------------


def test_only_the_right_password_opens(users):
    ann = users.add("ann@example.org", b"secret")
    assert users.verify("Ann@Example.org", b"secret") == ann
    assert users.verify("ann@example.org", b"Secret") is None
    assert users.verify("ann@example.org", b"") is None


@pytest.mark.parametrize(
    "address", ["bob@example.org", "ann+x@example.org", "ann", "a\0b", "\udcff", ""]
)
def test_unknown_users_tags_and_nonsense_do_not_log_in(users, address):
    users.add("ann@example.org", b"secret")
    assert users.verify(address, b"secret") is None


def test_a_disabled_user_does_not_log_in(users):
    users.add("ann@example.org", b"secret")
    users.set_disabled("ann@example.org", True)
    assert users.verify("ann@example.org", b"secret") is None


def test_a_user_without_a_password_does_not_log_in(users):
    ann = users.add("ann@example.org")
    assert not ann.has_password
    assert users.verify("ann@example.org", b"") is None


def test_every_failure_costs_one_hash_of_the_same_work(users, monkeypatch):
    users.add("ann@example.org", b"secret")
    users.add("off@example.org", b"secret")
    users.add("none@example.org")
    users.set_disabled("off@example.org", True)
    checks = []
    monkeypatch.setattr(passwords, "check", lambda password, keys: checks.append(password))
    for address in ("ann@example.org", "off@example.org", "none@example.org", "x@y", "nonsense"):
        assert users.verify(address, b"wrong") is None
    assert checks == [b"wrong"] * 5


def test_the_stand_in_for_an_unknown_user_works_as_hard_as_a_real_one():
    assert passwords.fake(b"s", b"a@b").iterations == passwords.limits.SCRAM_ITERATIONS  # type: ignore[attr-defined]


def test_a_new_password_replaces_the_old_one_and_changes_the_version(users):
    ann = users.add("ann@example.org", b"old")
    changed = users.set_password("ann@example.org", b"new")
    assert changed.password_version == ann.password_version + 1
    assert users.account("ann@example.org") == changed
    assert users.verify("ann@example.org", b"old") is None
    assert users.verify("ann@example.org", b"new") == changed


def test_postmaster_logs_in_once_it_has_a_password(users):
    assert users.verify("postmaster", b"pw") is None
    users.set_password("postmaster", b"pw")
    assert users.verify("postmaster", b"pw").id == POSTMASTER_ID


def test_no_password_is_in_the_files(users, path):
    users.add("ann@example.org", b"a-very-secret-password")
    users.close()
    assert b"a-very-secret-password" not in (path / "data.mdb").read_bytes()


def test_what_is_not_known_of_an_account_is_kept(users, path):
    ann = users.add("ann@example.org", b"x")
    users.close()
    change_record(path, ann.id, quota=5, future={"a": [1, b"\xff"]})
    with UserDatabase(path) as again:
        again.set_password("ann@example.org", b"y")
        again.set_disabled("ann@example.org", True)
    record = record_of(path, ann.id)
    assert record["quota"] == 5
    assert record["future"] == {"a": [1, b"\xff"]}


@pytest.mark.parametrize(
    ("user", "domain", "name"),
    [
        ("ann", "example.org", "ann@example.org"),
        ("ann", None, "ann"),
        ("ann@x.org", "example.org", "ann@x.org"),
        ("Postmaster", "example.org", "Postmaster"),
    ],
)
def test_a_login_name_without_a_domain_gets_the_default_one(user, domain, name):
    assert login_name(user, domain) == name


# --- Processes ------------------------------------------------------------------------------------


def _child_add(path, name, count):
    with UserDatabase(path, create=True) as users:
        for number in range(count):
            users.add(f"{name}{number}@example.org")


@pytest.mark.slow
def test_several_processes_make_and_fill_one_database(path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_child_add, args=(path, name, 20)) for name in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    with UserDatabase(path) as users:
        found = list(users.accounts())
    assert len(found) == 60
    assert sorted(one.id for one in found) == list(range(2, 62))


@pytest.mark.slow
def test_a_change_of_another_process_is_seen_at_once(users, path):
    users.add("ann@example.org")
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_child_add, args=(path, "bob", 1))
    child.start()
    child.join(60)
    assert users.resolve("bob0@example.org").address == "bob0@example.org"


# --- Bad databases --------------------------------------------------------------------------------


def test_a_database_that_is_not_there_is_not_made_by_reading(path):
    with pytest.raises(UnavailableError, match="no users database"):
        UserDatabase(path)
    assert not path.exists()


def test_an_environment_without_tables_is_no_database(path):
    path.mkdir()
    lmdb.open(str(path)).close()
    with pytest.raises(UnavailableError, match="no users database"):
        UserDatabase(path)


@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_a_newer_metad_is_refused_untouched(users, path, create):
    users.close()
    raw_put(path, b"meta", b"format", msgpack.packb(lmdb_env.FORMAT + 1))
    before = (path / "data.mdb").read_bytes()
    with pytest.raises(DataError, match="newer metad"):
        UserDatabase(path, create=create)
    assert (path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\xa1x", b"\xc0"])
def test_a_format_that_is_no_number_is_refused(users, path, value):
    users.close()
    raw_put(path, b"meta", b"format", value)
    with pytest.raises(DataError, match="not a users database"):
        UserDatabase(path)


def test_a_file_that_is_no_lmdb_is_damaged(path):
    path.mkdir()
    (path / "data.mdb").write_bytes(b"nonsense" * 4096)
    with pytest.raises(DataError, match="damaged"):
        UserDatabase(path)


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x05"])
def test_a_record_that_is_no_map_is_reported_and_left_alone(users, path, value):
    ann = users.add("ann@example.org", b"x")
    users.close()
    raw_put(path, b"accounts", ann.id.to_bytes(8, "big"), value)
    with UserDatabase(path) as again:
        for act in (
            lambda: again.verify("ann@example.org", b"x"),
            lambda: again.remove("ann@example.org"),
        ):
            with pytest.raises(DataError, match="not a map"):
                act()
        assert again.resolve("ann@example.org") == ann


@pytest.mark.slow
def test_a_full_map_is_no_space_and_adds_nothing_of_the_batch(path, monkeypatch):
    monkeypatch.setattr(lmdb_env, "MAP_SIZE", 256 * 1024)
    with UserDatabase(path, create=True) as users:
        with pytest.raises(NoSpaceError):
            list(
                users.add_many(
                    ((f"u{number}@x.org", None) for number in range(20_000)), batch=20_000
                )
            )
        assert list(users.accounts()) == []
        assert users.add("ann@x.org").id == 2


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(OsError, match="No such file"):
        UserDatabase(tmp_path / "none" / "users", create=True)


def test_the_files_are_for_their_owner_alone(users, path):
    modes = [os.stat(path / name).st_mode & 0o777 for name in (".", "data.mdb", "lock.mdb")]
    assert modes == [0o700, 0o600, 0o600]


@pytest.mark.slow
@given(st.text(max_size=60), st.binary(max_size=20))
def test_any_name_and_password_are_refused_without_another_error(shared_users, name, password):
    assert shared_users.verify(name, password) is None
    for address in (name, f"{name}@example.org"):
        try:
            assert shared_users.resolve(address).id == POSTMASTER_ID
        except (UnknownUserError, ForeignDomainError):
            assert shared_users.account("ann@example.org") is not None


@pytest.fixture(scope="module")
def shared_users(tmp_path_factory):
    with UserDatabase(tmp_path_factory.mktemp("shared") / "users", create=True) as users:
        users.add("ann@example.org")
        yield users


@pytest.mark.parametrize("name", ["admin", "a@b@c", "", "x" * 600 + "@y.org", "\udcff@x.org"])
def test_what_is_no_address_has_no_account(users, name):
    """Regression: a failing look-up left a POP3 client without an answer."""
    assert users.account(name) is None
