"""metad user check and rename: whether mail is accepted, whether a login works, and why not."""

import json

import pytest

from metad.errors import EX_DATAERR, EX_NOPERM, EX_NOUSER, EX_OK
from metad.users.database import UserDatabase


@pytest.fixture
def user(run, data):
    run("user", "add", "ann@x.org", "--password-stdin", "--data", data, stdin=b"secret\n")
    with UserDatabase(data / "users") as users:
        users.add("bob@x.org")
        users.set_alias("info@x.org", ["ann@x.org", "bob@x.org"])

    def command(verb, *arguments, stdin=b""):
        return run("user", verb, *arguments, "--data", data, stdin=stdin)

    return command


def test_what_becomes_of_mail_and_logins(user):
    shown = "mail   ok: delivered to ann@x.org\nlogin  ok: password not checked\n"
    assert user("check", "ann@x.org") == (EX_OK, shown, "")
    code, out, _ = user("check", "info@x.org")
    assert code == EX_OK
    assert "delivered to ann@x.org, bob@x.org" in out
    assert "login  no: no mailbox has this address" in out


def test_the_password_is_checked(user):
    code, out, _ = user("check", "ann@x.org", "--password-stdin", stdin=b"secret\n")
    assert (code, out.splitlines()[1]) == (EX_OK, "login  ok: the password is right")
    code, out, _ = user("check", "ann@x.org", "--password-stdin", stdin=b"other\n")
    assert (code, out.splitlines()[1]) == (EX_NOPERM, "login  no: wrong password")
    code, out, _ = user("check", "bob@x.org", "--password-stdin", stdin=b"other\n")
    assert (code, out.splitlines()[1]) == (EX_NOPERM, "login  no: the mailbox has no password")


@pytest.mark.parametrize(
    ("address", "reply"),
    [("cid@x.org", "550 5.1.1 User unknown"), ("ann@y.org", "550 5.7.1 Relay access denied")],
)
def test_mail_that_is_refused_is_told_with_its_reply(user, address, reply):
    code, out, _ = user("check", address, "--json")
    assert code == EX_NOUSER
    assert json.loads(out)["mail"] == {"ok": False, "reason": reply}


def test_a_disabled_mailbox(user):
    user("set", "ann@x.org", "--disable")
    code, out, _ = user("check", "ann@x.org")
    assert code == EX_NOUSER
    assert out == "mail   no: 550 5.2.1 Mailbox disabled\nlogin  no: the mailbox is disabled\n"


def test_rename(user):
    code, out, _ = user("rename", "ann@x.org", "anna@x.org")
    assert (code, out) == (EX_OK, "renamed ann@x.org to anna@x.org\n")
    assert "delivered to anna@x.org, bob@x.org" in user("check", "info@x.org")[1]
    code, _, err = user("rename", "anna@x.org", "bob@x.org")
    assert code == EX_DATAERR
    assert err.startswith("metad: fatal: bob@x.org: a user has this address already (")
