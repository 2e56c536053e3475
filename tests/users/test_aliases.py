"""Aliases, catch-alls and their targets: never in a loop, never partial."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metad import limits
from metad.errors import (
    DataError,
    DisabledUserError,
    ForeignDomainError,
    NoSuchUserError,
    UnknownUserError,
)
from metad.users.account import POSTMASTER_ID, Alias
from metad.users.database import UserDatabase


@pytest.fixture
def people(users):
    return {name: users.add(f"{name}@example.org") for name in ("ann", "bob", "cid")}


def ids(users, address):
    return sorted(account.id for account in users.expand(address))


def test_an_alias_is_its_members(users, people):
    made = users.set_alias("Info@Example.org", ["ann@example.org", "BOB@example.org"])
    assert made == Alias("info@example.org", ("ann@example.org", "bob@example.org"))
    assert ids(users, "info@example.org") == [people["ann"].id, people["bob"].id]
    assert users.alias("INFO@example.org") == made
    assert list(users.aliases()) == [made]


def test_one_member_twice_and_by_two_ways_is_one_mailbox(users, people):
    users.set_alias("a@example.org", ["ann@example.org", "Ann@example.org", "bob@example.org"])
    users.set_alias("b@example.org", ["a@example.org", "ann@example.org"])
    assert ids(users, "b@example.org") == [people["ann"].id, people["bob"].id]


def test_the_order_is_exact_alias_base_of_the_tag_catch_all(users, people):
    users.set_alias("@example.org", ["cid@example.org"])
    users.set_alias("ann+list@example.org", ["bob@example.org"])
    assert ids(users, "ann+list@example.org") == [people["bob"].id]
    assert ids(users, "ann+other@example.org") == [people["ann"].id]
    assert ids(users, "nobody@example.org") == [people["cid"].id]
    assert ids(users, "nobody+x@example.org") == [people["cid"].id]


def test_the_base_of_a_tag_may_be_an_alias(users, people):
    users.set_alias("info@example.org", ["bob@example.org"])
    assert ids(users, "info+x@example.org") == [people["bob"].id]


def test_a_disabled_user_never_falls_through_to_the_catch_all(users, people):
    users.set_alias("@example.org", ["cid@example.org"])
    users.set_disabled("ann@example.org", True)
    for address in ("ann@example.org", "ann+x@example.org"):
        with pytest.raises(DisabledUserError):
            users.expand(address)


def test_an_alias_is_judged_by_the_worst_of_its_members(users, people):
    users.set_alias("info@example.org", ["ann@example.org", "bob@example.org"])
    users.set_disabled("bob@example.org", True)
    with pytest.raises(DisabledUserError):
        users.expand("info@example.org")


def test_a_domain_of_aliases_alone_is_served_until_the_last_is_gone(users, people):
    users.set_alias("info@other.org", ["ann@example.org"])
    with pytest.raises(UnknownUserError):
        users.expand("else@other.org")
    assert ids(users, "postmaster@other.org") == [POSTMASTER_ID]
    users.set_alias("info@other.org", ["bob@example.org"])
    users.remove_alias("info@other.org")
    with pytest.raises(ForeignDomainError):
        users.expand("info@other.org")


def test_postmaster_goes_before_the_catch_all_unless_an_alias_says_otherwise(users, people):
    users.set_alias("@example.org", ["cid@example.org"])
    assert ids(users, "postmaster@example.org") == [POSTMASTER_ID]
    users.set_alias("postmaster@example.org", ["ann@example.org"])
    assert ids(users, "postmaster@example.org") == [people["ann"].id]
    assert ids(users, "postmaster") == [POSTMASTER_ID]


def test_the_bare_postmaster_may_be_an_alias_for_every_domain(users, people):
    users.add("x@second.org")
    users.set_alias("postmaster", ["ann@example.org"])
    for address in ("postmaster", "PostMaster", "postmaster@example.org", "postmaster@second.org"):
        assert ids(users, address) == [people["ann"].id]
    users.remove_alias("postmaster")
    assert ids(users, "postmaster") == [POSTMASTER_ID]
    assert users.account("postmaster").id == POSTMASTER_ID


def test_the_catch_all_of_a_domain_in_unicode_is_that_of_its_a_labels(users, people):
    users.set_alias("@Bücher.example", ["ann@example.org"])
    assert ids(users, "x@xn--bcher-kva.example") == [people["ann"].id]
    assert ids(users, "x@BÜCHER.example") == [people["ann"].id]


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "reason"),
    [("nobody@example.org", "no such user"), ("x@foreign.org", "relays nothing"),
     ("", "not an address"), ("a b@example.org", "not an address"), ("ann", "not an address"),
     ("@example.org", "not an address"), ("\udcff@example.org", "not an address")],
)  # fmt: skip
def test_a_member_must_have_a_mailbox_here(users, people, member, reason):
    with pytest.raises(DataError, match=reason):
        users.set_alias("info@example.org", ["ann@example.org", member])
    assert users.alias("info@example.org") is None
    assert list(users.aliases()) == []


@pytest.mark.parametrize("address", ["", "info", "@", "@a b", "a\n@example.org", "x@", "@x\0y"])
def test_what_is_no_address_is_no_alias(users, people, address):
    with pytest.raises(DataError):
        users.set_alias(address, ["ann@example.org"])


@pytest.mark.parametrize("members", [[], [f"ann+{n}@example.org" for n in range(1001)]])
def test_an_alias_has_members_but_not_any_number(users, people, members):
    with pytest.raises(DataError, match="1 to 1,000"):
        users.set_alias("info@example.org", members)


def test_an_alias_cannot_have_the_name_of_a_user_nor_a_user_that_of_an_alias(users, people):
    with pytest.raises(DataError, match="has this address already"):
        users.set_alias("ann@example.org", ["bob@example.org"])
    users.set_alias("info@example.org", ["ann@example.org"])
    with pytest.raises(DataError, match="an alias has this address already"):
        users.add("info@example.org")


@pytest.mark.parametrize("member", ["a@example.org", "a+x@example.org", "c@example.org"])
def test_a_loop_is_refused_when_it_would_be_made(users, people, member):
    users.set_alias("a@example.org", ["ann@example.org"])
    users.set_alias("b@example.org", ["a@example.org"])
    users.set_alias("c@example.org", ["b@example.org", "bob@example.org"])
    before = list(users.aliases())
    with pytest.raises(DataError, match="lead back to itself"):
        users.set_alias("a@example.org", ["ann@example.org", member])
    assert list(users.aliases()) == before
    assert ids(users, "a@example.org") == [people["ann"].id]


def test_a_loop_through_the_catch_all_is_refused(users, people):
    users.set_alias("@example.org", ["ann@example.org"])
    users.set_alias("b@example.org", ["anybody@example.org"])
    with pytest.raises(DataError, match="lead back to itself"):
        users.set_alias("@example.org", ["b@example.org"])
    with pytest.raises(DataError, match="lead back to itself"):
        users.set_alias("anybody@example.org", ["b@example.org"])
    assert ids(users, "b@example.org") == [people["ann"].id]


def test_an_alias_for_too_many_others_is_refused(users, people, monkeypatch):
    monkeypatch.setattr(limits, "ALIAS_MEMBERS", 5)
    list(users.add_many((f"u{n}@example.org", None) for n in range(8)))
    users.set_alias("a@example.org", [f"u{n}@example.org" for n in range(4)])
    with pytest.raises(DataError, match="leads to over 5"):
        users.set_alias("b@example.org", ["a@example.org", "u5@example.org", "u6@example.org"])


# --- Removing -------------------------------------------------------------------------------------


def test_whom_an_alias_names_cannot_be_removed_behind_its_back(users, people):
    users.set_alias("info@example.org", ["ann+x@example.org"])
    with pytest.raises(DataError, match=r"named by the aliases info@example\.org"):
        users.remove("ann@example.org")
    assert ids(users, "info@example.org") == [people["ann"].id]
    assert users.named_by("ann@example.org") == ["info@example.org"]


def test_by_force_it_leaves_every_alias_and_the_empty_ones_go(users, people):
    users.set_alias("both@example.org", ["ann@example.org", "bob@example.org"])
    users.set_alias("one@example.org", ["ann@example.org"])
    users.set_alias("two@example.org", ["one@example.org", "cid@example.org"])
    users.set_alias("three@example.org", ["one@example.org"])
    users.remove("ann@example.org", force=True)
    assert ids(users, "both@example.org") == [people["bob"].id]
    assert ids(users, "two@example.org") == [people["cid"].id]
    for gone in ("one@example.org", "three@example.org", "ann@example.org"):
        with pytest.raises(UnknownUserError):
            users.expand(gone)


def test_an_alias_that_another_names_is_kept(users, people):
    users.set_alias("a@example.org", ["ann@example.org"])
    users.set_alias("b@example.org", ["a@example.org"])
    with pytest.raises(DataError, match="named by"):
        users.remove_alias("a@example.org")
    users.set_alias("b@example.org", ["bob@example.org"])
    users.remove_alias("a@example.org")
    assert [one.address for one in users.aliases()] == ["b@example.org"]


def test_what_is_no_alias_cannot_be_removed(users, people):
    for address in ("ann@example.org", "x@example.org"):
        with pytest.raises(NoSuchUserError):
            users.remove_alias(address)


def test_a_database_from_before_there_were_aliases_gets_them(path):
    import lmdb

    UserDatabase(path, create=True).close()
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as env:
        members = env.open_db(b"members", dupsort=True)
        with env.begin(write=True) as txn:
            txn.drop(members)
    with UserDatabase(path) as users:
        users.add("ann@example.org")
        users.set_alias("x@example.org", ["ann@example.org"])
        assert users.named_by("ann@example.org") == ["x@example.org"]


NAMES = st.sampled_from(["a", "b", "c", "d", "u", "v", "a+x", "b+x"])
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("set"), st.sampled_from(["a", "b", "c", "d", "*"]), st.sets(NAMES, max_size=3)
        ),
        st.tuples(st.just("remove"), NAMES, st.booleans()),
        st.tuples(st.just("drop"), st.sampled_from(["a", "b", "c", "d", "*"]), st.booleans()),
        st.tuples(st.just("add"), NAMES, st.none()),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_is_done_every_alias_leads_to_a_mailbox(tmp_path_factory, steps):
    def full(name):
        return "@x.org" if name == "*" else f"{name}@x.org"

    with UserDatabase(tmp_path_factory.mktemp("u") / "users", create=True) as users:
        users.add("u@x.org")
        for what, name, more in steps:
            try:
                if what == "set":
                    users.set_alias(full(name), sorted(map(full, more)))
                elif what == "remove":
                    users.remove(full(name), force=more)
                elif what == "drop":
                    users.remove_alias(full(name), force=more)
                else:
                    users.add(full(name))
            except (DataError, NoSuchUserError):
                pass
            here = {account.id for account in users.accounts()}
            for alias in users.aliases():
                found = users.expand(
                    alias.address.replace("@", "zz@", 1)
                    if alias.address == "@x.org"
                    else alias.address
                )
                assert {one.id for one in found} <= here
