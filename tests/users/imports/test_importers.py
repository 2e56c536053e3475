"""Files of other programs: the meaning of each line; a bad one is reported and affects no other."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.errors import DataError
from metad.users.imports import import_entries, importers
from metad.users.imports.import_entries import BadLine, ImportEntry, Secret
from metad.users.passwords import derive

HASH = "$6$saltsalt$" + "a" * 86
KEYS = derive(b"secret", b"saltsalt", 10)


def read(kind, text, **how):
    octets = text if isinstance(text, bytes) else text.encode()
    shadow = how.pop("shadow", None)
    if shadow is not None:
        how["shadow"] = importers.Text("shadow", io.BytesIO(shadow.encode()))
    source = importers.Source(importers.Text("file", io.BytesIO(octets)), **how)
    return list(importers.read(kind, source))


def good(found):
    bad = [one for one in found if isinstance(one, BadLine)]
    assert not bad, bad
    return found


def test_passwd_and_shadow_make_users_of_a_domain():
    found = read(
        "passwd",
        "root:x:0:0:root:/root:/bin/sh\n"
        "ann:x:1000:1000:Ann:/home/ann:/bin/sh\n"
        f"bob:{HASH}:1001:1001::/home/bob:/bin/sh\n"
        "cid:x:1002:1002::/:/bin/false\n"
        "dan:x:1003:1003::/:/bin/false\n"
        "nobody:x:65534:65534::/:/bin/false\n",
        shadow=f"root:{HASH}:1:0:9:7:::\nann:{HASH}:1:0:9:7:::\ncid:!{HASH}:1:0:9:7:::\n",
        domain="example.org",
    )
    assert [(one.place, one.address, one.secret.hash) for one in good(found)] == [
        ("file:2", "ann@example.org", HASH),
        ("file:3", "bob@example.org", HASH),
        ("file:4", "cid@example.org", None),
        ("file:5", "dan@example.org", None),
    ]


def test_passwd_needs_a_domain():
    with pytest.raises(DataError, match="--domain"):
        read("passwd", "")


@pytest.mark.parametrize(
    "line", ["ann:x:1000", "ann:x:+1000:1:::", "ann:x:1_000:1:::", "ann:x: 1000:1:::", "::::::",
             "ann:x:١٠٠٠:1:::"],
)  # fmt: skip
def test_a_bad_line_of_passwd_is_named(line):
    found = read("passwd", f"ann:x:1000:1:::\n{line}\nbob:x:1000:1:::\n", domain="x.org")
    assert [type(one) for one in found] == [ImportEntry, BadLine, ImportEntry]
    assert found[1].place == "file:2"


def test_dovecot_passwd_files_have_schemes_and_quotas():
    scram = import_entries.show_scram(KEYS)
    found = read(
        "dovecot",
        "# a comment\n"
        "ann@x.org:{PLAIN}sec:ret\n"
        f"bob:{{SHA512-CRYPT}}{HASH}:1000:1000::/home/bob::userdb_quota_rule=*:storage=1G:messages=9\n"
        f"cid@x.org:{HASH}::::::quota_rule=*:bytes=5000 nologin\n"
        f"dan@x.org:{{scram-sha-256}}{scram}::::::userdb_quota_rule=*:storage=100\n"
        "eve@x.org:::::::userdb_quota_storage_size=2M userdb_quota_message_count=5 other=1\n"
        "fay@x.org\n",
        domain="y.org",
    )
    by_name = {one.address: one for one in good(found)}
    assert by_name["ann@x.org"].secret == Secret(plain=b"sec")
    assert by_name["bob@y.org"].secret == Secret(hash=HASH)
    assert by_name["bob@y.org"].fields == {"quota": 1 << 30, "messages": 9}
    assert by_name["cid@x.org"].secret.empty
    assert by_name["cid@x.org"].fields == {"quota": 5000}
    assert by_name["dan@x.org"].secret == Secret(scram=KEYS)
    assert by_name["dan@x.org"].fields == {"quota": 100 * 1024}
    assert by_name["eve@x.org"].fields == {"quota": 2 << 20, "messages": 5}
    assert by_name["fay@x.org"].secret.empty


@pytest.mark.parametrize(
    "line",
    ["ann:{PLAIN}x", "a@x:{PLAIN}x::::::quota_rule=*:storage=lots"],
)  # fmt: skip
def test_a_bad_line_of_dovecot_is_named(line):
    (found,) = read("dovecot", line)
    assert isinstance(found, BadLine)
    assert found.place == "file:1"


@pytest.mark.parametrize(
    "line",
    ["a@x:{SSHA512.HEX}00", "a@x:plain", "a@x:{PLAIN}", "a@x:{SCRAM-SHA-256}4096,x,y,z",
     "a@x:{SCRAM-SHA-256}+4096,YWFh,YWFh,YWFh", "a@x:{PLAIN.B64}eA==", "a@x:{SSHA}W6ph",
     "a@x:{CRAM-MD5}9186d855e11eba527a7a52ca82b313e180d62234f0acc9051b527243d41e2740",
     "a@x:{PBKDF2}$1$salt$99999999999$" + "0" * 40, "a@x:{NTLM}00", "a@x:{SHA256}!"],
)  # fmt: skip
def test_a_user_with_an_odd_hash_is_taken_without_a_login(line):
    """Regression: the whole user was left out, and their mail bounced."""
    (found,) = read("dovecot", line)
    assert isinstance(found, ImportEntry)
    assert found.secret is None
    assert found.no_login


def test_an_odd_hash_of_passwd_or_shadow_is_no_reason_to_bounce_either():
    found = read("passwd", "ann:nohash:1000:1:::\nbob:x:1001:1:::\n", domain="x.org",
                 shadow="bob:nohash:1:0:99999:7:::\n")  # fmt: skip
    assert [(one.address, bool(one.no_login)) for one in good(found)] == [
        ("ann@x.org", True), ("bob@x.org", True)]  # fmt: skip


def test_a_quoted_member_survives_a_csv_and_a_virtual_map():
    """Regression: the members were split at the blank inside the quotes."""
    text = '"first last"@x.org'
    (found,) = read(
        "csv", f'address,members\nall@x.org,"{text.replace(chr(34), chr(34) * 2)} b@x.org"\n'
    )
    assert found.members == (text, "b@x.org")
    (found,) = read("virtual", f"all@x.org {text}, b@x.org\n")
    assert found.members == (text, "b@x.org")


def test_a_local_part_with_a_dot_in_a_virtual_map_is_no_domain():
    """Regression: `first.last ann@x.org` was silently dropped."""
    (found,) = read("virtual", "first.last ann@x.org\n", domain="x.org")
    assert (found.address, found.members) == ("first.last@x.org", ("ann@x.org",))
    (found,) = read("virtual", "first.last ann@x.org\n")
    assert isinstance(found, BadLine)
    assert read("virtual", "x.org anything\n") == []


def test_a_byte_order_mark_is_no_part_of_the_first_column():
    (found,) = good(read("csv", "\ufeffaddress\nann@x.org\n"))
    assert found.address == "ann@x.org"


def test_virtual_maps_are_aliases():
    found = read(
        "virtual",
        "# comment\n\nexample.org   anything\n"
        "info@example.org\tann@example.org,\n   bob@example.org cid@example.org\n"
        "  # a comment between\n"
        "@example.org ann@example.org\n"
        "postmaster ann\n",
        domain="example.org",
    )
    assert [(one.place, one.address, one.members) for one in good(found)] == [
        ("file:4", "info@example.org", ("ann@example.org", "bob@example.org", "cid@example.org")),
        ("file:7", "@example.org", ("ann@example.org",)),
        ("file:8", "postmaster@example.org", ("ann@example.org",)),
    ]


@pytest.mark.parametrize(
    "line",
    ["a@x.org", "a@x.org   ", "a@x.org |program", 'a@x.org "|program"', "a@x.org /var/mail/a",
     "a@x.org :include:/etc/list", "@x.org @y.org", "a@x.org root", "a b@x.org"],
)  # fmt: skip
def test_a_bad_line_of_a_virtual_map_is_named(line):
    (found,) = read("virtual", line)
    assert isinstance(found, BadLine)


def test_mailbox_maps_are_users_without_passwords():
    found = read("mailboxes", "ann@x.org x.org/ann/\nbob@x.org\tx\n@x.org all/\n")
    assert [type(one) for one in found] == [ImportEntry, ImportEntry, BadLine]
    assert found[1] == ImportEntry("file:2", "bob@x.org", import_entries.NO_SECRET)


def test_csv_names_its_columns():
    found = read(
        "csv",
        "\n"[:0] + "address,hash,quota,messages,expiry,login_delay,disabled,members,password\n"
        f"ann@x.org,{HASH},1GiB,100,90d,5s,yes,,\n"
        'bob,,0,,0,,no,,"pass,word"\n'
        'info@x.org,,,,,,,"ann@x.org bob",\n'
        ",,,,,,,,\n"
        "@x.org,,,,,,,ann@x.org,\n",
        domain="y.org",
    )
    ann, bob, info, catch_all = good(found)
    assert ann == ImportEntry(
        "file:2", "ann@x.org", Secret(hash=HASH),
        {"quota": 1 << 30, "messages": 100, "expiry": 90 * 86_400, "login_delay": 5,
         "disabled": True},
    )  # fmt: skip
    assert bob == ImportEntry(
        "file:3", "bob@y.org", Secret(plain=b"pass,word"),
        {"quota": 0, "expiry": 0, "disabled": False},
    )  # fmt: skip
    assert info == ImportEntry("file:4", "info@x.org", members=("ann@x.org", "bob@y.org"))
    assert catch_all == ImportEntry("file:6", "@x.org", members=("ann@x.org",))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "name,password",
        "address,adress",
        "address,address",
        "quota",
        "\x00",
        "address,pass\rword",
    ],
)
def test_csv_without_a_good_first_line_is_refused(header):
    with pytest.raises(DataError, match="file:1"):
        read("csv", f"{header}\nann@x.org\n")


@pytest.mark.parametrize(
    "row",
    ["a@x,lots,,", "a@x,,-5,", "a@x,,+5,", "a@x,,99999999999,", "a@x,,,perhaps", "a@x,,,,,,more",
     'a@x,"1,,', b"a@x\xff,,,", "a@x,,,\x00"],
)  # fmt: skip
def test_a_bad_row_is_named_and_hinders_no_other(row):
    octets = row if isinstance(row, bytes) else row.encode()
    found = read("csv", b"address,quota,messages,disabled\nann@x,,,\n" + octets + b"\n")
    assert isinstance(found[0], ImportEntry)
    assert [type(one) for one in found[1:]] == [BadLine]
    assert found[1].place.startswith("file:")


def test_a_line_that_is_too_long_is_one_bad_line():
    text = f"{'x' * 200_000}@x.org x\nann@x.org x\n"
    found = read("mailboxes", text)
    assert [type(one) for one in found] == [BadLine, ImportEntry]
    assert found[1].place == "file:2"


def test_only_lf_ends_a_line():
    found = read("mailboxes", "ann@x.org x\u2028y\x0bz\x85\nbob@x.org\r\n")
    assert [one.address for one in good(found)] == ["ann@x.org", "bob@x.org"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", importers.FORMATS)
@given(octets=st.binary(max_size=300))
def test_any_bytes_give_entries_and_bad_lines(kind, octets):
    head = b"address,hash,members\n" if kind == "csv" else b""
    for one in read(kind, head + octets, domain="x.org"):
        assert one.place.startswith(("file:", "shadow:"))


def test_no_secret_is_shown():
    secret = Secret(b"hidden1", "hidden2", KEYS)
    assert "hidden" not in repr(secret)
    assert KEYS.stored_key.hex() not in repr(secret)
    found = read("dovecot", "a@x:{SHA}hidden\nb@x:hidden\nc@x:{PLAIN}hid\x01den\n")
    assert not any("hid" in repr(one) for one in found)
    assert all(one.no_login for one in found)


def test_scram_keys_come_back():
    assert import_entries.scram(import_entries.show_scram(KEYS)).scram == KEYS
