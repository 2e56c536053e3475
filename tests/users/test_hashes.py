"""Hashes of other programs: taken if they can be checked, checked, and never made weaker."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.errors import DataError
from metad.users import hashes
from metad.users.database import UserDatabase

SETTINGS = {
    "yescrypt": b"$y$j75$abcdefgh$",
    "sha512-crypt": b"$6$rounds=1000$saltsalt$",
    "sha256-crypt": b"$5$rounds=1000$saltsalt$",
    "md5-crypt": b"$1$saltsalt$",
    "bcrypt": b"$2b$04$abcdefghijklmnopqrstuu",
    "descrypt": b"ab",
}
# RFC 9106's reference program: "password", "somesalt".
ARGON2 = {
    "argon2id": "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$"
    "nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
    "argon2i": "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$"
    "iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8",
}
KNOWN_SHA512 = (
    "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnI"
    "FNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
)


def made(scheme):
    try:
        return hashes._crypt(b"secret", SETTINGS[scheme]).decode()
    except hashes.MetadError:  # type: ignore[attr-defined]
        pytest.skip(f"libcrypt of this system has no {scheme}")


@pytest.mark.parametrize("scheme", SETTINGS)
def test_a_hash_of_crypt_opens_to_its_password_alone(scheme):
    source = made(scheme)
    assert hashes.scheme_of(source) == scheme
    assert hashes.check(b"secret", source)
    for wrong in (b"Secret", b"secre", b"", b"secret\0", b"\0secret", b"x" * 2000):
        assert not hashes.check(wrong, source)


def test_the_example_of_the_specification_of_sha_crypt():
    assert hashes.check(b"Hello world!", KNOWN_SHA512)


@pytest.mark.parametrize(("scheme", "source"), ARGON2.items())
def test_argon2(scheme, source):
    assert hashes.scheme_of(source) == scheme
    assert hashes.check(b"password", source)
    assert not hashes.check(b"Password", source)


@pytest.mark.parametrize(
    "source",
    ["", "x", "*", "!", "!$6$x$y", "plain", "$", "$$", "$6$", "$9$salt$hash", "$6$salt$short",
     KNOWN_SHA512 + "x", KNOWN_SHA512 + "\n", "\n" + KNOWN_SHA512, KNOWN_SHA512[:-1] + "ä",
     "$2b$04$short", "aaaaaaaaaaaaaa", "$argon2id$",
     "$argon2id$v=19$m=256,t=2,p=0$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"],
)  # fmt: skip
def test_what_is_no_hash_is_refused(source):
    with pytest.raises(DataError) as caught:
        hashes.scheme_of(source)
    assert len(source) < 4 or source not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [KNOWN_SHA512.replace("$6$", "$6$rounds=999999999$"),
     "$2b$31$" + "a" * 53,
     ARGON2["argon2id"].replace("m=256", "m=4194304"),
     ARGON2["argon2id"].replace("t=2", "t=999999").replace("m=256", "m=65536")],
)  # fmt: skip
def test_a_hash_that_asks_for_too_much_work_is_refused(source):
    with pytest.raises(DataError, match="too much work"):
        hashes.scheme_of(source)


@pytest.mark.slow
@given(st.text())
def test_any_text_is_a_hash_or_an_error(text):
    try:
        assert hashes.scheme_of(text)
    except DataError:
        pass


def test_threads_do_not_disturb_each_other():
    sources = [made("sha512-crypt"), made("md5-crypt")]
    results = []  # type: ignore[var-annotated]

    def work(source):
        results.extend(hashes.check(b"secret", source) for _ in range(20))

    threads = [threading.Thread(target=work, args=(one,)) for one in sources * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == [True] * 120


def test_preload_loads_what_is_needed():
    hashes.preload()
    assert hashes._library.cache_info().currsize == 1


# --- In the database ------------------------------------------------------------------------------


def give_hash(users, address, source):
    account = users.account(address)
    with users.transaction(write=True) as txn:
        users.replace(txn, account.id, users.record(address) | {"hash": source})


def test_a_plain_login_adds_scram_keys_beside_the_hash(users):
    users.add("ann@example.org")
    source = made("sha512-crypt")
    give_hash(users, "ann@example.org", source)
    before = users.account("ann@example.org")
    assert (before.has_password, before.has_keys, before.unkeyed) == (True, False, True)
    assert not users.every_login_has_keys()
    assert users.verify("ann@example.org", b"wrong") is None
    assert users.account("ann@example.org") == before
    assert users.verify("ann@example.org", b"secret").id == before.id
    after = users.account("ann@example.org")
    assert after.has_keys
    assert after.password_version == before.password_version
    assert users.record("ann@example.org")["hash"] == source
    assert users.every_login_has_keys()
    assert users.verify("ann@example.org", b"secret") is not None
    assert users.verify("ann@example.org", b"wrong") is None


def test_the_keys_of_a_password_changed_meanwhile_are_not_kept(users, monkeypatch):
    users.add("ann@example.org")
    give_hash(users, "ann@example.org", made("md5-crypt"))
    monkeypatch.setattr(
        hashes, "check", lambda *_: users.set_password("ann@example.org", b"new") is not None
    )
    users.verify("ann@example.org", b"secret")
    assert users.verify("ann@example.org", b"secret") is None
    assert users.verify("ann@example.org", b"new") is not None


def test_a_new_password_ends_the_imported_one(users):
    users.add("ann@example.org")
    give_hash(users, "ann@example.org", made("sha512-crypt"))
    users.set_password("ann@example.org", b"new")
    assert "hash" not in users.record("ann@example.org")
    assert users.verify("ann@example.org", b"secret") is None


def test_who_has_only_a_hash_and_is_disabled_does_not_log_in_nor_count(users):
    users.add("ann@example.org")
    give_hash(users, "ann@example.org", made("sha512-crypt"))
    users.set_disabled("ann@example.org", True)
    assert users.every_login_has_keys()
    assert users.verify("ann@example.org", b"secret") is None
    users.set_disabled("ann@example.org", False)
    assert not users.every_login_has_keys()
    users.remove("ann@example.org")
    assert users.every_login_has_keys()


def test_scram_keys_of_who_cannot_log_in_are_made_up_and_stay_the_same(users, path):
    users.add("ann@example.org", b"secret")
    users.add("off@example.org", b"secret")
    users.add("none@example.org")
    users.set_disabled("off@example.org", True)
    assert users.scram_keys("ann@example.org")[0].address == "ann@example.org"
    made_up = {}
    for address in ("off@example.org", "none@example.org", "x@example.org", "\udcff", ""):
        account, keys = users.scram_keys(address)
        assert account is None
        made_up[address] = keys
    users.close()
    with UserDatabase(path) as again:
        for address, keys in made_up.items():
            assert again.scram_keys(address) == (None, keys)
