"""An unknown name behaves like an account with a password."""

from __future__ import annotations

import hashlib
from collections import Counter

import lmdb
import pytest

from metad.users import hashes, login_kinds, passwords
from metad.users.database import UserDatabase
from tests.users.test_hashes import ARGON2, SETTINGS, made
from tests.users.test_salted_hashes import SCHEMES

SECRET = b"k" * 32
NAMES = [f"name{number}@example.org".encode() for number in range(2000)]


def keys(iterations: int, salt: bytes = b"s" * 16) -> dict[str, object]:
    return {"scram": passwords.derive(b"secret", salt, iterations).packed()}


def give(users: UserDatabase, address: str, **fields: object) -> None:
    account = users.add(address)
    record = users.record(address)
    with users.transaction(write=True) as txn:
        users.replace(txn, account.id, record | fields)


def draw(kinds: dict[str, int], *, only_scram: bool = False) -> list[str]:
    return [login_kinds.drawn(kinds, SECRET, name, only_scram=only_scram) for name in NAMES]


# --- the draw -------------------------------------------------------------------------------------


def test_names_draw_each_kind_as_often_as_accounts_have_it():
    found = Counter(draw({"scram 4096 16": 700, "scram 10000 16": 200, "$6$": 100}))
    assert found["scram 4096 16"] == pytest.approx(1400, rel=0.1)
    assert found["scram 10000 16"] == pytest.approx(400, rel=0.2)
    assert found["$6$"] == pytest.approx(200, rel=0.3)


def test_a_name_keeps_its_kind_while_counts_change():
    """A name whose kind changed from day to day would betray that it has no account."""
    before = draw({"scram 4096 16": 700, "scram 10000 16": 300})
    after = draw({"scram 4096 16": 690, "scram 10000 16": 310})
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert changed < 60  # ten accounts of a thousand are one name in a hundred, of 2,000: 20


def test_the_kind_that_scram_shows_is_the_one_whose_work_a_plain_login_takes():
    kinds = {"scram 4096 16": 500, "scram 10000 12": 300, "$6$": 200}
    for plain, scram in zip(draw(kinds), draw(kinds, only_scram=True), strict=True):
        assert scram.startswith("scram")
        assert plain in (scram, "$6$")


def test_without_accounts_there_is_nothing_to_draw():
    assert login_kinds.drawn({}, SECRET, b"x", only_scram=True) == ""
    assert login_kinds.drawn({"$6$": 5}, SECRET, b"x", only_scram=True) == ""


def test_the_number_of_kinds_is_bounded():
    kinds: dict[str, int] = {}
    for number in range(100):
        kinds = login_kinds.recounted(kinds, "", f"scram {number} 16")
    assert len(kinds) == login_kinds.MOST_KINDS
    assert login_kinds.recounted(kinds, "unknown", "other") == kinds


@pytest.mark.parametrize("raw", [None, b"", b"\xc1", b"\x01", b"\x80"])
def test_counts_that_cannot_be_read_are_none(raw):
    assert login_kinds.unpacked(raw) == {}


# --- the work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SETTINGS)
def test_imitating_a_hash_of_crypt_is_the_same_call_as_checking_it(scheme, monkeypatch):
    source = made(scheme)
    work = hashes.work_of(source)
    assert "salt" not in work  # one kind for all accounts that hash so
    assert source.startswith(work) or work == "descrypt"
    real = hashes._crypt
    asked = []
    monkeypatch.setattr(hashes, "_crypt", lambda p, s: asked.append(real(p, s)) or asked[-1])
    hashes.imitate(b"password", work)
    (found,) = asked  # libcrypt took the setting: a refused one is an error
    assert hashes.scheme_of(found.decode()) == scheme
    assert hashes.work_of(found.decode()) == work


@pytest.mark.parametrize("source", ARGON2.values())
def test_imitating_argon2_takes_its_parameters(source, monkeypatch):
    work = hashes.work_of(source)
    assert work.endswith("m=256,t=2,p=1$")
    asked = []
    real = hashes._check_with_argon2
    monkeypatch.setattr(
        hashes, "_check_with_argon2", lambda p, s: asked.append(s) or real(p, s) is False
    )
    hashes.imitate(b"password", work)
    assert hashes.work_of(asked[0]) == work


@pytest.mark.parametrize("name", [*SCHEMES, "PBKDF2"])
def test_imitating_a_digest(name, monkeypatch):
    asked = []
    new, pbkdf2 = hashlib.new, hashlib.pbkdf2_hmac
    monkeypatch.setattr(hashlib, "new", lambda d, *a, **k: asked.append(d) or new(d, *a, **k))
    monkeypatch.setattr(
        hashlib, "pbkdf2_hmac", lambda d, p, s, n, z: asked.append((d, n)) or pbkdf2(d, p, s, n, z)
    )
    if name == "PBKDF2":
        hashes.imitate(b"x", hashes.work_of("{PBKDF2}$1$salt$4096$" + "0" * 40))
        assert asked == [("sha1", 4096)]
    else:
        hashes.imitate(b"x", f"{{{name}}}")
        assert asked == [SCHEMES[name].digest]


@pytest.mark.parametrize("password", [b"", b"\0", b"x" * 2000])
def test_a_password_that_no_hash_is_asked_for_costs_nothing_either(password, monkeypatch):
    monkeypatch.setattr(hashes, "_crypt", lambda *_: pytest.fail("asked"))
    hashes.imitate(password, "$6$")


# --- the database ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_unknown_name_shows_counts_of_iterations_as_accounts_do(users):
    """Regression: accounts imported with another count could be distinguished from unknown
    names."""
    for number in range(20):
        give(users, f"old{number}@example.org", **keys(2000, b"s" * 12))
        give(users, f"new{number}@example.org", **keys(3000))
    shown: Counter[tuple[int, int]] = Counter()
    for number in range(400):
        account, made_up = users.scram_keys(f"nobody{number}@example.org")
        assert account is None
        shown[made_up.iterations, len(made_up.salt)] += 1
    assert set(shown) == {(2000, 12), (3000, 16)}
    assert min(shown.values()) > 120


def test_all_spellings_of_an_unknown_name_show_one_salt(users):
    """Spellings of an account do: two salts for ANN and ann meant that ann did not exist."""
    users.add("ann@example.org", b"secret")
    for name in ("ann", "nobody"):
        spellings = (f"{name}@example.org", f"{name.upper()}@EXAMPLE.org", f'"{name}"@example.org')
        assert len({users.scram_keys(one)[1].salt for one in spellings}) == 1


def test_an_unknown_name_costs_the_check_of_some_account(users, monkeypatch):
    give(users, "ann@example.org", hash=made("sha512-crypt"))
    settings = []
    real = hashes._crypt
    monkeypatch.setattr(hashes, "_crypt", lambda p, s: settings.append(s[:14]) or real(p, s))
    for address in ("ann@example.org", "nobody@example.org", "nonsense", "\udcff"):
        assert users.verify(address, b"wrong") is None
    assert settings == [b"$6$rounds=1000"] * 4


def test_a_disabled_user_costs_the_check_of_its_own_hash(users, monkeypatch):
    give(users, "ann@example.org", hash=made("sha512-crypt"), disabled=True)
    asked = []
    real = hashes.check
    monkeypatch.setattr(hashes, "check", lambda p, s: asked.append(s) or real(p, s))
    assert users.verify("ann@example.org", b"secret") is None
    assert asked == [users.record("ann@example.org")["hash"]]


def kinds(users: UserDatabase) -> dict[str, int]:
    return dict(users._kinds())


def test_the_counts_follow_every_change(users):
    users.add("ann@example.org", b"secret")
    ten = login_kinds.ScramKind(10, 16).name
    assert kinds(users) == {ten: 1}
    give(users, "bob@example.org", hash=made("md5-crypt"))
    users.add("none@example.org")
    assert kinds(users) == {ten: 1, "$1$": 1}
    users.set_disabled("ann@example.org", True)
    users.rename("ann@example.org", "anne@example.org")
    assert kinds(users) == {ten: 1, "$1$": 1}
    assert users.verify("bob@example.org", b"secret") is not None  # adds keys
    assert kinds(users) == {ten: 2}
    users.set_password("none@example.org", b"x")
    users.remove("anne@example.org")
    assert kinds(users) == {ten: 2}
    users.remove("none@example.org")
    users.remove("bob@example.org")
    assert kinds(users) == {}


def test_a_database_from_before_they_were_counted_is_counted_at_the_first_start(users, path):
    users.add("ann@example.org", b"secret")
    users.close()
    with lmdb.open(str(path), max_dbs=16, map_size=1 << 30) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            txn.delete(b"kinds", db=meta)
    with UserDatabase(path) as again:
        again.add("bob@example.org", b"secret")
        assert kinds(again) == {}  # not counted in part
        assert again.scram_keys("x@example.org")[1].iterations == again.iterations
        again.reserve(0)
        assert kinds(again) == {login_kinds.ScramKind(10, 16).name: 2}
